"""The vision tower, run to the layer that is needed and no further.

The modules are Hugging Face's own, unedited; only the loop over them is ours. Attention is SDPA throughout.
In the needed layer, whose output is used, the one row of attention that scores the patches is computed
besides, from the same keys::

    pixels ─▶ embeddings ─▶ layer 0 ─▶ … ─▶ layer n-2 ─▶ needed layer ┬─ keys, [CLS] query ─▶ cls_attention
                                                                      └─ SDPA, MLP ─────────▶ features

The two branches are two calls, :meth:`VisionTower.score` and :meth:`VisionTower.finish`: after scoring, the
second may be asked for some rows only, and does queries, output projection and MLP for no others.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from transformers import CLIPVisionModel
from transformers.models.clip.modeling_clip import CLIPEncoderLayer

from fastervlm_video.errors import CheckpointError
from fastervlm_video.prune import cls_attention_scores

__all__ = ["ScoredFrames", "TowerOutput", "VisionTower", "tower_depth"]


def tower_depth(feature_layer: int | list[int] | tuple[int, ...], num_layers: int) -> int:
    """How many layers must run so that their last output is ``hidden_states[feature_layer]``.

    Hugging Face counts hidden states from 0, the input of the first layer, to ``num_layers``, the output of
    the last; negative numbers count from the end::

        24 layers:  -2 ─▶ 23 run, the last is layer 22      -1 or 24 ─▶ 24 run      1 ─▶ 1 runs

    Raises:
        CheckpointError: several layers are asked for, or one that does not exist, or hidden state 0, which
            no attention produces.
    """
    if not isinstance(feature_layer, int):
        raise CheckpointError(
            f"vision_feature_layer={list(feature_layer)}: features joined from several layers are not supported"
        )
    depth = feature_layer if feature_layer >= 0 else num_layers + 1 + feature_layer
    if not 1 <= depth <= num_layers:
        raise CheckpointError(
            f"vision_feature_layer={feature_layer} is not the output of one of the tower's {num_layers} layers"
        )
    return depth


@dataclass(frozen=True, slots=True, eq=False)
class TowerOutput:
    """What the tower makes of T frames of N patches.

    Attributes:
        features: floating [T, 1+N, C], the needed layer's output, [CLS] first.
        cls_attention: float32 [T, N].
        keys: floating [T, heads, 1+N, D], the needed layer's keys.
    """

    features: Tensor
    cls_attention: Tensor
    keys: Tensor

    @classmethod
    def join(cls, pieces: Sequence["TowerOutput"]) -> "TowerOutput":
        """Frames after frames."""
        if len(pieces) == 1:
            return pieces[0]
        return cls(
            torch.cat([piece.features for piece in pieces]),
            torch.cat([piece.cls_attention for piece in pieces]),
            torch.cat([piece.keys for piece in pieces]),
        )

    def of_frames(self, start: int, stop: int) -> "TowerOutput":
        """Frames ``start`` to ``stop`` (exclusive); views."""
        return TowerOutput(self.features[start:stop], self.cls_attention[start:stop], self.keys[start:stop])


@dataclass(frozen=True, slots=True, eq=False)
class ScoredFrames:
    """T frames before the needed layer's output is computed.

    Attributes:
        hidden: floating [T, 1+N, C], input of the needed layer.
        normed: floating [T, 1+N, C], the same after its first layer norm.
        keys: floating [T, heads, 1+N, D], its keys.
        cls_attention: float32 [T, N].
    """

    hidden: Tensor
    normed: Tensor
    keys: Tensor
    cls_attention: Tensor

    def of_frames(self, start: int, stop: int) -> "ScoredFrames":
        """Frames ``start`` to ``stop`` (exclusive); views."""
        frames = slice(start, stop)
        return ScoredFrames(self.hidden[frames], self.normed[frames], self.keys[frames], self.cls_attention[frames])


class VisionTower(nn.Module):
    """The part of a CLIP-like vision model that produces the used hidden state.

    Holds the embeddings and the first ``depth`` layers of ``model``, by their names there; the other layers,
    the post layer norm and the pooler are let go.

    Args:
        model: the Hugging Face model, with SDPA attention.
        depth: how many layers to run, see :func:`tower_depth`.

    Raises:
        CheckpointError: the model has fewer layers or another attention implementation.
    """

    def __init__(self, model: CLIPVisionModel, depth: int) -> None:
        super().__init__()
        config = model.config
        if config._attn_implementation != "sdpa":
            raise CheckpointError(f"the tower must use SDPA attention, got {config._attn_implementation!r}")
        if not 1 <= depth <= len(model.encoder.layers):
            raise CheckpointError(f"the tower has {len(model.encoder.layers)} layers, {depth} are needed")
        self.embeddings = model.embeddings
        self.pre_layrnorm = model.pre_layrnorm
        self.encoder = nn.Module()  # so that tensors keep the names they have in the model
        self.encoder.layers = model.encoder.layers[:depth]
        size, patch = config.image_size, config.patch_size
        assert isinstance(size, int)  # CLIP's embeddings cannot be built with anything else
        assert isinstance(patch, int)
        self.image_size = size
        self.grid = (size // patch, size // patch)
        self.width: int = config.hidden_size
        self._mlp_width: int = config.intermediate_size
        self.requires_grad_(False).eval()

    @property
    def depth(self) -> int:
        """Layers held and run."""
        return len(self._layers)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.embeddings.class_embedding.device

    @property
    def dtype(self) -> torch.dtype:
        """Floating-point type of weights and features."""
        return self.embeddings.class_embedding.dtype

    @property
    def activation_bytes_per_frame(self) -> int:
        """Size of the largest tensor that a layer makes of one frame: what is between the two halves of its MLP."""
        rows, columns = self.grid
        return (1 + rows * columns) * self._mlp_width * self.dtype.itemsize

    @property
    def _layers(self) -> list[CLIPEncoderLayer]:
        return list(cast("nn.ModuleList", self.encoder.layers))  # type: ignore[arg-type]

    @torch.no_grad()
    def forward(self, pixel_values: Tensor) -> TowerOutput:
        """Features of every patch and of [CLS], and the scores of the patches.

        Args:
            pixel_values: floating [T, 3, H, W], normalised, of the tower's image size.
        """
        scored = self.score(pixel_values)
        return TowerOutput(self.finish(scored), scored.cls_attention, scored.keys)

    @torch.no_grad()
    def score(self, pixel_values: Tensor) -> ScoredFrames:
        """Run up to the needed layer's keys, and score the patches with them."""
        hidden = self.pre_layrnorm(self.embeddings(pixel_values.to(self.dtype)))
        *earlier, needed = self._layers
        for layer in earlier:
            hidden = layer(hidden, None)
        attention = needed.self_attn
        normed = needed.layer_norm1(hidden)
        keys = _split_heads(attention.k_proj(normed), attention.num_heads)
        query_cls = _split_heads(attention.q_proj(normed[:, :1]), attention.num_heads)
        scores = cls_attention_scores(query_cls[:, :, 0], keys, attention.scale)
        return ScoredFrames(hidden, normed, keys, scores)

    @torch.no_grad()
    def finish(self, scored: ScoredFrames, rows: Tensor | None = None) -> Tensor:
        """The needed layer's output.

        Args:
            scored: what :meth:`score` returned.
            rows: int64 [T, R], the rows of each frame that are wanted (0 is [CLS], 1 + i is patch i); by
                default all.

        Returns:
            floating [T, R, C]: up to rounding, those rows of the full output.
        """
        layer = self._layers[-1]
        attention = layer.self_attn
        values = _split_heads(attention.v_proj(scored.normed), attention.num_heads)
        hidden, normed = _take_rows(scored.hidden, rows), _take_rows(scored.normed, rows)
        queries = _split_heads(attention.q_proj(normed), attention.num_heads)
        mixed = nn.functional.scaled_dot_product_attention(queries, scored.keys, values, scale=attention.scale)
        hidden = hidden + attention.out_proj(mixed.transpose(1, 2).flatten(2))
        finished: Tensor = hidden + layer.mlp(layer.layer_norm2(hidden))
        return finished


def _split_heads(projected: Tensor, heads: int) -> Tensor:
    """[T, S, C] -> [T, heads, S, C / heads]."""
    return projected.view(*projected.shape[:-1], heads, -1).transpose(1, 2)


def _take_rows(sequence: Tensor, rows: Tensor | None) -> Tensor:
    """[T, S, C] -> [T, R, C], row ``rows[t, r]`` of frame t."""
    if rows is None:
        return sequence
    taken: Tensor = torch.take_along_dim(sequence, rows[..., None], dim=1)
    return taken
