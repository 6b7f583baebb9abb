"""FastV (arXiv 2403.06764), the main baseline of the paper: visual tokens pruned inside the language model.

All tokens run through the first K layers. The attention of the last of these, from the prompt's last token to each
visual token, averaged over heads, ranks them; the best go on, at their original positions, and the others are gone
from the later layers, for the generated tokens too::

    layer        0  …  K-1                K  …  L-1
    visual       all, ranked by K-1       the best `keep`
    text         all                      all

K = 0 ranks by layer 0 and drops tokens before it, so that every layer works on the best ones only: the budget then
costs as much compute as that of methods which prune before the language model.

Every question has its own ranking, and its own keys and values: nothing can be shared between questions. This is the
harness's alone; the service has no such method.
"""

from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn
from transformers import DynamicCache, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, apply_rotary_pos_emb, repeat_kv

from fastervlm_video.errors import CheckpointError, InvalidRequestError
from fastervlm_video.language import Prompt
from fastervlm_video.language.embedding import embed_prompt
from fastervlm_video.language.end_ids import end_token_ids
from fastervlm_video.models import LanguageHalf
from fastervlm_video.prune import top_k_stable

__all__ = ["FastV", "FastVAnswer", "mean_visual_tokens"]

Rotation = tuple[Tensor, Tensor]


def mean_visual_tokens(full: int, kept: int, *, layer: int, layers: int) -> float:
    """Visual tokens per layer on average: what a budget of FastV costs, to be compared with others' counts.

    Args:
        full: visual tokens before pruning.
        kept: after.
        layer: K.
        layers: L.
    """
    return (layer * full + (layers - layer) * kept) / layers


@dataclass(frozen=True, slots=True)
class FastVAnswer:
    """A generated answer.

    Attributes:
        token_ids: generated ids, the end-of-answer token included.
        kept_indices: which visual tokens went on, ascending.
    """

    token_ids: tuple[int, ...]
    kept_indices: tuple[int, ...]


class FastV:
    """Greedy decoding with text-attention pruning, one question at a time.

    Args:
        half: projector and language model, with SDPA attention.
        layer: K.

    Raises:
        CheckpointError: the language model is not a Llama, or has another attention implementation.
        InvalidRequestError: there is no such layer.
    """

    def __init__(self, half: LanguageHalf, layer: int) -> None:
        model = half.language_model
        if not isinstance(model, LlamaForCausalLM):
            raise CheckpointError(f"FastV is implemented for Llama language models, not for {type(model).__name__}")
        if model.config._attn_implementation != "sdpa":
            raise CheckpointError(f"FastV needs SDPA attention, got {model.config._attn_implementation!r}")
        if not 0 <= layer < len(model.model.layers):
            raise InvalidRequestError(f"FastV's layer must be in [0, {len(model.model.layers)}), got {layer}")
        self.layer = layer
        self._model = model
        self._layers = [cast("LlamaDecoderLayer", module) for module in model.model.layers]
        self._embed = partial(embed_prompt, half)
        self._end_ids = end_token_ids(model)

    @property
    def num_layers(self) -> int:
        """L."""
        return len(self._layers)

    @torch.inference_mode()
    def answer(self, prompt: Prompt, visual: Tensor, keep: int, max_tokens: int) -> FastVAnswer:
        """Answer greedily.

        Args:
            prompt: ids around the visual tokens.
            visual: floating [n, C], features of all visual tokens.
            keep: how many of them go on, in [1, n].
            max_tokens: most tokens to generate.

        Raises:
            InvalidRequestError: there are not that many visual tokens, or there is text between them.
        """
        if prompt.inserts:
            raise InvalidRequestError(
                f"FastV needs visual tokens in one run, but this prompt has text at {len(prompt.inserts)} places among "
                "them; use a method that prunes before the language model"
            )
        if not 1 <= keep <= prompt.num_visual:
            raise InvalidRequestError(f"cannot keep {keep} of {prompt.num_visual} visual tokens")
        cache = DynamicCache(config=self._model.config)
        hidden, kept = self._prefill(prompt, visual, keep, cache)
        ids = [self._next_id(hidden)]
        while len(ids) < max_tokens and ids[-1] not in self._end_ids:
            position = len(prompt) + len(ids) - 1  # as if nothing had been dropped
            ids.append(self._next_id(self._step(ids[-1], position, cache)))
        return FastVAnswer(tuple(ids), tuple(kept.tolist()))

    def _prefill(self, prompt: Prompt, visual: Tensor, keep: int, cache: DynamicCache) -> tuple[Tensor, Tensor]:
        """Hidden states [1, S', H] behind the last layer, and the int64 [keep] visual tokens that got there."""
        hidden = self._embed(prompt, visual)[None]
        positions = torch.arange(len(prompt), device=hidden.device)[None]
        rotation: Rotation = self._model.model.rotary_emb(hidden, positions)
        start, stop = len(prompt.ids_before), len(prompt.ids_before) + prompt.num_visual
        importance = torch.empty(0)
        kept = torch.empty(0)
        for index, layer in enumerate(self._layers):
            if index == max(self.layer - 1, 0):
                importance = _last_token_attention(layer, hidden, rotation)[start:stop]
            if index == self.layer:
                kept = top_k_stable(importance, keep).sort().values
                head, tail = positions[:, :start], positions[:, stop:]
                positions = torch.cat([head, positions[:, start:stop][:, kept], tail], dim=1)
                hidden = hidden[:, positions[0]]
                rotation = self._model.model.rotary_emb(hidden, positions)
            hidden = self._run(layer, hidden, positions, rotation, cache)
        return hidden, kept

    def _step(self, token_id: int, position: int, cache: DynamicCache) -> Tensor:
        """One generated token through all layers; each has its own length of cached keys."""
        embedding = cast("nn.Embedding", self._model.get_input_embeddings())
        device = embedding.weight.device
        hidden = cast("Tensor", embedding(torch.tensor([[token_id]], device=device)))
        positions = torch.tensor([[position]], device=device)
        rotation: Rotation = self._model.model.rotary_emb(hidden, positions)
        for layer in self._layers:
            hidden = self._run(layer, hidden, positions, rotation, cache)
        return hidden

    @staticmethod
    def _run(
        layer: LlamaDecoderLayer, hidden: Tensor, positions: Tensor, rotation: Rotation, cache: DynamicCache
    ) -> Tensor:
        # Without a mask SDPA is causal over several tokens, and lets a single one see all that is cached.
        output: Tensor = layer(
            hidden,
            attention_mask=None,
            position_ids=positions,
            position_embeddings=rotation,
            past_key_values=cache,
            use_cache=True,
        )
        return output

    def _next_id(self, hidden: Tensor) -> int:
        logits = self._model.lm_head(self._model.model.norm(hidden[:, -1]))
        return int(logits.argmax(dim=-1))


def _last_token_attention(layer: LlamaDecoderLayer, hidden: Tensor, rotation: Rotation) -> Tensor:
    """How the last token's attention in a layer is spread over all tokens, averaged over heads: one row, no matrix.

    Args:
        layer: of a Llama.
        hidden: floating [1, S, H], the layer's input.
        rotation: cosines and sines [1, S, D] of the tokens' positions.

    Returns:
        float32 [S].
    """
    attention = layer.self_attn
    normed = layer.input_layernorm(hidden)
    keys = attention.k_proj(normed).unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)
    query = attention.q_proj(normed[:, -1:]).unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)
    cos, sin = rotation
    _, keys = apply_rotary_pos_emb(keys, keys, cos, sin)
    query, _ = apply_rotary_pos_emb(query, query, cos[:, -1:], sin[:, -1:])
    keys = repeat_kv(keys, attention.num_key_value_groups)
    logits = (query.float() @ keys.float().transpose(2, 3)) * attention.scaling
    return cast("Tensor", logits.softmax(dim=-1).mean(dim=1)[0, 0])
