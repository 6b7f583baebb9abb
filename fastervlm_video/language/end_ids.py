"""Which token ids end an answer."""

from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["end_token_ids"]


def end_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None = None) -> frozenset[int]:
    """Ids that end an answer, from the first that names any: generation config, model config, tokenizer."""
    named: list[int | list[int] | None] = [
        getattr(model.generation_config, "eos_token_id", None),
        getattr(model.config, "eos_token_id", None),
        tokenizer.eos_token_id if tokenizer is not None else None,
    ]
    ids = next((ids for ids in named if ids is not None), [])
    return frozenset([ids] if isinstance(ids, int) else ids)
