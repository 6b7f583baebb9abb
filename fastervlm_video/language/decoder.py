"""Decoding a changing batch, step by step: tensors only, no threads and no queues."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor, nn

from fastervlm_video.config import SamplingParams
from fastervlm_video.language.kv_cache import PaddedCache, check_full_attention
from fastervlm_video.language.prompt import Prompt
from fastervlm_video.language.sampling import sample_tokens
from fastervlm_video.models.base import LanguageHalf

__all__ = ["BatchDecoder", "RowSampler"]


@dataclass(slots=True)
class RowSampler:
    """One row's sampling settings and its own source of randomness, which no other row draws from."""

    params: SamplingParams
    _generator: torch.Generator = field(default_factory=torch.Generator)

    def __post_init__(self) -> None:
        if self.params.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(self.params.seed)

    def draw(self) -> float:
        """The next uniform number in [0, 1); greedy rows draw none."""
        if self.params.temperature == 0:
            return 0.0
        return float(torch.rand((), generator=self._generator, dtype=torch.float64))


class BatchDecoder:
    """Rows that are decoded together, each as if it were alone.

    Rows join between steps, behind those that are there, and leave between steps. A failed call leaves the
    batch as it was if it was :meth:`join`; after any other the whole batch must be dropped, ``retain([])``.
    Callers run it under ``torch.inference_mode()``.

    Raises:
        CheckpointError: the model's attention is not supported, see :func:`check_full_attention`.
    """

    def __init__(self, half: LanguageHalf) -> None:
        check_full_attention(half.language_model.config)
        self._model = half.language_model
        self._projector = half.projector
        self._embedding = cast("nn.Embedding", self._model.get_input_embeddings())
        self._device = self._embedding.weight.device
        self._cache: PaddedCache | None = None
        self._samplers: list[RowSampler] = []
        self._last_tokens: list[int] = []

    @property
    def vocabulary_size(self) -> int:
        """Rows of the input embedding; prompt ids must be below it."""
        return self._embedding.num_embeddings

    def embed(self, prompt: Prompt, visual: Tensor) -> Tensor:
        """A prompt as the language model's input, [len(prompt), H]; only kept tokens are projected."""
        weight = next(self._projector.parameters(), self._embedding.weight)
        projected = self._projector(visual.to(weight.device, weight.dtype))
        return torch.cat(
            [
                self._embed_ids(prompt.ids_before),
                projected.to(self._device, self._embedding.weight.dtype),
                self._embed_ids(prompt.ids_after),
            ]
        )

    def join(self, embeds: Sequence[Tensor], samplers: Sequence[RowSampler]) -> list[int | None]:
        """Compute newcomers' prompts in one pass and append them to the batch.

        Args:
            embeds: one [L, H] per newcomer, see :meth:`embed`.
            samplers: one per newcomer.

        Returns:
            the newcomers' first tokens; None for a row whose logits are not finite.
        """
        cache = PaddedCache([len(row) for row in embeds])
        # pad_sequence pads behind; flipping twice puts the padding in front.
        padded = nn.utils.rnn.pad_sequence([row.flip(0) for row in embeds], batch_first=True).flip(1)
        mask = cache.attention_mask(self._device)
        positions = (mask.cumsum(dim=-1) - 1).clamp(min=0)
        tokens = self._forward(cache, samplers, mask=mask, positions=positions, inputs_embeds=padded)
        self._cache = self._cache.join(cache) if self._cache else cache
        self._samplers.extend(samplers)
        self._last_tokens.extend(token or 0 for token in tokens)
        return tokens

    def step(self) -> list[int | None]:
        """Every row's next token, in one pass; None for a row whose logits are not finite."""
        assert self._cache is not None
        positions = torch.tensor(self._cache.lengths, device=self._device)[:, None]
        last = torch.tensor(self._last_tokens, device=self._device)[:, None]
        self._cache.extend()
        mask = self._cache.attention_mask(self._device)
        tokens = self._forward(self._cache, self._samplers, mask=mask, positions=positions, input_ids=last)
        self._last_tokens = [token or 0 for token in tokens]
        return tokens

    def retain(self, rows: Sequence[int]) -> None:
        """Drop every row but these."""
        self._samplers = [self._samplers[row] for row in rows]
        self._last_tokens = [self._last_tokens[row] for row in rows]
        self._cache = self._cache.select(rows) if self._cache and rows else None

    def _embed_ids(self, ids: Sequence[int]) -> Tensor:
        return cast("Tensor", self._embedding(torch.tensor(ids, dtype=torch.long, device=self._device)))

    def _forward(
        self,
        cache: PaddedCache,
        samplers: Sequence[RowSampler],
        *,
        mask: Tensor,
        positions: Tensor,
        **inputs: Tensor,
    ) -> list[int | None]:
        output = self._model(
            **inputs,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache.past,
            use_cache=True,
            logits_to_keep=1,
        )
        logits = output.logits[:, -1].float()
        settings = torch.tensor([[s.params.temperature, s.params.top_p, s.draw()] for s in samplers])
        temperatures, top_ps, uniforms = settings.to(logits).unbind(dim=1)
        tokens = sample_tokens(logits, temperatures, top_ps, uniforms)
        # Infinite and undefined maxima alike: an overflow upstream. -inf elsewhere in a row is legitimate.
        usable = torch.isfinite(logits.amax(dim=-1))
        return [token if good else None for token, good in torch.stack([tokens, usable], dim=1).tolist()]
