"""Hugging Face's Llama over a video and many packed questions: its own modules, another attention mask.

The video's tokens run once, causally; the questions' tokens run beside them and attend to the video's keys and
values. With a single question this is ``LlamaModel.forward`` over the concatenation.

In training two regularisers may act on the video's tokens (:mod:`~fastervlm_video.mini.training.dropout`). All of them
stay in the sequence.
"""

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import LlamaModel
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, apply_rotary_pos_emb

from fastervlm_video.mini.training.dropout import VideoDropout
from fastervlm_video.mini.training.packing import PackedQuestions

__all__ = ["question_states"]

Rotary = tuple[Tensor, Tensor]


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
    layers = list(model.layers)
    for index, module in enumerate(layers):
        layer = cast("LlamaDecoderLayer", module)
        seen_front = dropout.front_mask(index) if dropout else None
        seen_back = dropout.question_mask(index, mask) if dropout else mask
        moved, back = _layer(layer, front, back, seen_front, seen_back, last=index == len(layers) - 1)
        hidden = torch.where(dropout.updated[..., None], moved.hidden, front.hidden) if dropout else moved.hidden
        front = _Stream(hidden, front.rotary)
    states: Tensor = model.norm(back.hidden)
    return states


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
