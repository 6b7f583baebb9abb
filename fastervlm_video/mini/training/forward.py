"""Hugging Face's Llama over a video and many packed questions: its own modules, another attention mask.

The video's tokens run once, causally; the questions' tokens run beside them and attend to the video's keys and
values. With a single question this is ``LlamaModel.forward`` over the concatenation.

In training two regularisers may act on the video's tokens. All of them stay in the sequence.
"""

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import LlamaModel
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, apply_rotary_pos_emb

from fastervlm_video.mini.training.packing import PackedQuestions

__all__ = ["VideoDropout", "question_states"]

Rotary = tuple[Tensor, Tensor]


@dataclass(frozen=True, slots=True)
class VideoDropout:
    """Regularisers of one training step, so that no answer hangs on what single video tokens were made to hold.

    Attributes:
        updated_share: of the video's tokens that the layers update; the others keep their embedding through all
            layers, as if every residual branch were dropped (stochastic depth, Huang et al., 2016).
        hidden_share: of keys that each head of each layer does not see, before its softmax (DropKey, Li et al.,
            2023); never a token's own.
        exempt: tokens at the front that nothing happens to: the text before the video.
    """

    updated_share: float
    hidden_share: float
    exempt: int

    def draw_updated(self, batch: int, length: int) -> Tensor:
        """Boolean [B, P, 1]: which tokens the layers update, the same in all of them."""
        updated = torch.rand(batch, length, 1) < self.updated_share
        updated[:, : self.exempt] = True
        return updated

    def draw_visible(self, batch: int, heads: int, length: int) -> Tensor:
        """Boolean [B, heads, 1, P]: which keys a layer's heads may see."""
        visible = torch.rand(batch, heads, 1, length) >= self.hidden_share
        visible[..., : self.exempt] = True
        return visible


@dataclass(frozen=True, slots=True, eq=False)
class _Stream:
    """Hidden states [B, S, C] and the rotary tables of their positions."""

    hidden: Tensor
    rotary: Rotary


def question_states(
    model: LlamaModel,
    video: Tensor,
    positions: Tensor,
    questions: PackedQuestions,
    dropout: VideoDropout | None = None,
) -> Tensor:
    """Final hidden states of the questions' tokens.

    Args:
        model: the language model, without its head.
        video: floating [B, P, C], embeddings of everything in front of the questions.
        positions: float32 [P], their positions; need not be whole numbers.
        questions: to be asked, at the positions that follow.
        dropout: in training.

    Returns:
        floating [B, Q, C].
    """
    asked = model.embed_tokens(questions.ids)
    asked_positions = positions[-1] + 1 + questions.offset.to(positions.dtype)
    mask = questions.mask(video.shape[1])
    front = _Stream(video, model.rotary_emb(video, positions[None]))
    back = _Stream(asked, model.rotary_emb(asked, asked_positions))
    updated = dropout.draw_updated(*video.shape[:2]) if dropout else None
    layers = list(model.layers)
    for index, module in enumerate(layers):
        layer = cast("LlamaDecoderLayer", module)
        seen_front, seen_back = _visible(layer, front, mask, dropout)
        moved, back = _layer(layer, front, back, seen_front, seen_back, last=index == len(layers) - 1)
        hidden = moved.hidden if updated is None else torch.where(updated, moved.hidden, front.hidden)
        front = _Stream(hidden, front.rotary)
    states: Tensor = model.norm(back.hidden)
    return states


def _visible(
    layer: LlamaDecoderLayer, front: _Stream, mask: Tensor, dropout: VideoDropout | None
) -> tuple[Tensor | None, Tensor]:
    """What the video's tokens (None: all before them) and the questions' may attend to in one layer."""
    if dropout is None or dropout.hidden_share == 0:
        return None, mask
    batch, length = front.hidden.shape[:2]
    visible = dropout.draw_visible(batch, layer.self_attn.config.num_attention_heads, length)
    own = torch.eye(length, dtype=torch.bool)
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    keys = torch.cat([visible, visible.new_ones(*visible.shape[:3], mask.shape[-1] - length)], dim=-1)
    return (visible | own) & causal, mask & keys


def _layer(
    layer: LlamaDecoderLayer,
    front: _Stream,
    back: _Stream,
    seen_front: Tensor | None,
    seen_back: Tensor,
    *,
    last: bool,
) -> tuple[_Stream, _Stream]:
    """One decoder layer over both streams; after the last one the video's own states are not needed."""
    attention = layer.self_attn
    query_front, key_front, value_front = _project(layer, front)
    query_back, key_back, value_back = _project(layer, back)
    keys, values = torch.cat([key_front, key_back], dim=2), torch.cat([value_front, value_back], dim=2)
    mixed = scaled_dot_product_attention(query_back, keys, values, attn_mask=seen_back, scale=attention.scaling)
    back = _Stream(_update(layer, back.hidden, mixed), back.rotary)
    if not last:
        causal = seen_front is None
        mixed = scaled_dot_product_attention(
            query_front, key_front, value_front, attn_mask=seen_front, is_causal=causal, scale=attention.scaling
        )
        front = _Stream(_update(layer, front.hidden, mixed), front.rotary)
    return front, back


def _project(layer: LlamaDecoderLayer, stream: _Stream) -> tuple[Tensor, Tensor, Tensor]:
    attention, normed = layer.self_attn, layer.input_layernorm(stream.hidden)
    parts = (attention.q_proj, attention.k_proj, attention.v_proj)
    query, key, value = (part(normed).unflatten(-1, (-1, attention.head_dim)).transpose(1, 2) for part in parts)
    query, key = apply_rotary_pos_emb(query, key, *stream.rotary)
    return query, key, value


def _update(layer: LlamaDecoderLayer, hidden: Tensor, mixed: Tensor) -> Tensor:
    hidden = hidden + layer.self_attn.o_proj(mixed.transpose(1, 2).flatten(2))
    updated: Tensor = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
    return updated
