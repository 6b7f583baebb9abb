"""Phase 1: train the tower so that [CLS] must summarise the objects, and must do so in the layer that is used.

The pruning score is [CLS]'s attention in the layer whose output is used, the last but one. Left alone, a tower
this small lets [CLS] gather what it needs in the first layers, where patches are still raw, and that score
says nothing. Two things, in training only, move the gathering to where published towers have it:

* drop-path on [CLS]'s own attention update: in all layers but the used one it is left out most of the time;
* a dense loss on the patches of the used layer, so that there is something to gather: each must tell the
  colour and shape of what covers it, and where it is itself.

[CLS], after the last layer, must tell which colours are there and, for each, the shape, row and column.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPVisionConfig, CLIPVisionModel
from transformers.models.clip.modeling_clip import CLIPEncoderLayer

from fastervlm_video.mini.render import object_coverage
from fastervlm_video.mini.scenes import COLORS, SHAPES, Scenes

__all__ = ["FrameLabels", "TowerObjective", "add_position_waves", "drop_cls_updates", "label_frames"]

_BINS = 3  # rows and columns that [CLS] tells apart
_SIZES = (1, len(SHAPES), _BINS, _BINS)  # per colour: present, shape, row, column
_COVERED, _CLEAR, _CORE = 0.12, 0.01, 0.2  # shares of a patch: is an object's, is background, shows a shape
_BACKGROUND_WEIGHT = 0.15
_WAVE_HEIGHT = 0.3
_DROP_BEFORE, _DROP_AFTER = 0.8, 0.5


@dataclass(frozen=True, slots=True, eq=False)
class FrameLabels:
    """What B frames show; object i of N is there if ``visible``.

    Attributes:
        visible: bool [B, N].
        color: int64 [B, N].
        shape: int64 [B, N].
        row: int64 [B, N], which third from the top.
        column: int64 [B, N], which third from the left.
        coverage: float32 [B, N, patches], share of each patch that each object covers.
    """

    visible: Tensor
    color: Tensor
    shape: Tensor
    row: Tensor
    column: Tensor
    coverage: Tensor


def label_frames(scenes: Scenes, times: npt.NDArray[np.float32], grid: tuple[int, int]) -> FrameLabels:
    """Labels of one frame of each scene, at ``times`` [B]."""
    at = times[:, None]
    centres = scenes.positions(at)[:, :, 0]
    bins = np.minimum((centres * _BINS).astype(np.int64), _BINS - 1)
    return FrameLabels(
        visible=torch.from_numpy(scenes.visible(at)[:, :, 0]),
        color=torch.from_numpy(scenes.color),
        shape=torch.from_numpy(scenes.shape),
        row=torch.from_numpy(bins[..., 1]),
        column=torch.from_numpy(bins[..., 0]),
        coverage=torch.from_numpy(object_coverage(scenes, at, grid)[:, :, 0]),
    )


class TowerObjective(nn.Module):
    """The heads, thrown away after training, and their losses."""

    def __init__(self, config: CLIPVisionConfig, grid: tuple[int, int]) -> None:
        super().__init__()
        width = config.hidden_size
        self.grid = grid
        self.summary = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, len(COLORS) * sum(_SIZES))
        )
        self._patch_sizes = (len(COLORS) + 1, len(SHAPES), *grid)
        self.patch = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, sum(self._patch_sizes)))

    def forward(self, pooled: Tensor, used: Tensor, labels: FrameLabels) -> tuple[Tensor, dict[str, float]]:
        """The loss, and shares of right answers by name.

        Args:
            pooled: [B, C], [CLS] after the last layer.
            used: [B, 1+N, C], output of the used layer.
            labels: of the frames.
        """
        summary, told = self._summary_loss(pooled, labels)
        dense, told_dense = self._patch_loss(used[:, 1:], labels)
        return summary + dense, told | told_dense

    def _summary_loss(self, pooled: Tensor, labels: FrameLabels) -> tuple[Tensor, dict[str, float]]:
        logits = self.summary(pooled).unflatten(1, (len(COLORS), sum(_SIZES))).split(_SIZES, dim=-1)
        present = torch.zeros(len(pooled), len(COLORS))
        present.scatter_reduce_(1, labels.color, labels.visible.float(), "amax")
        loss = 3 * functional.binary_cross_entropy_with_logits(logits[0][..., 0], present)
        told = {"present": _share((logits[0][..., 0] > 0).float() == present)}
        frame, item = labels.visible.nonzero(as_tuple=True)
        color = labels.color[frame, item]
        for name, part in zip(("shape", "row", "column"), logits[1:], strict=True):
            answer, right = part[frame, color], getattr(labels, name)[frame, item]
            loss = loss + functional.cross_entropy(answer, right)
            told[name] = _share(answer.argmax(-1) == right)
        return loss, told

    def _patch_loss(self, used: Tensor, labels: FrameLabels) -> tuple[Tensor, dict[str, float]]:
        color, shape, row, column = self.patch(used).split(self._patch_sizes, dim=-1)
        most, item = labels.coverage.max(dim=1)
        right = torch.where(most > _COVERED, labels.color.gather(1, item) + 1, 0)
        right = right.masked_fill((most > _CLEAR) & (most <= _COVERED), -100)
        weight = torch.tensor([_BACKGROUND_WEIGHT] + [1.0] * len(COLORS))
        loss = functional.cross_entropy(color.flatten(0, 1), right.flatten(), weight=weight)
        core, right_shape = most > _CORE, labels.shape.gather(1, item)
        loss = loss + functional.cross_entropy(shape[core], right_shape[core])
        index = torch.arange(used.shape[1]).expand(len(used), -1)
        for part, place in ((row, index // self.grid[1]), (column, index % self.grid[1])):
            loss = loss + 0.25 * functional.cross_entropy(part.flatten(0, 1), place.flatten())
        return loss, {"patch_shape": _share(shape[core].argmax(-1) == right_shape[core])}


def _share(right: Tensor) -> float:
    return float(right.float().mean())


def add_position_waves(model: CLIPVisionModel, grid: tuple[int, int]) -> None:
    """Start the patches' position embeddings from 2-D sine waves instead of noise alone."""
    weight = model.embeddings.position_embedding.weight
    width = weight.shape[1]
    frequencies = torch.exp(torch.linspace(np.log(0.18), np.log(3.0), width // 4))
    rows, columns = (torch.arange(float(side))[:, None] * frequencies for side in grid)
    waves_y, waves_x = (torch.cat([angle.sin(), angle.cos()], dim=1) for angle in (rows, columns))
    waves = torch.cat([waves_y[:, None].expand(*grid, -1), waves_x[None].expand(*grid, -1)], dim=-1)
    with torch.no_grad():
        weight[1:] += waves.flatten(0, 1)[:, torch.randperm(width)] * _WAVE_HEIGHT


def drop_cls_updates(model: CLIPVisionModel, used_layer: int) -> None:
    """Hooks that leave [CLS]'s attention update out, at random and in training only, except in the used layer."""

    def hook(probability: float) -> Callable[..., tuple[Tensor, ...]]:
        def drop(module: nn.Module, _: object, output: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            if not module.training:
                return output
            update = output[0]
            kept = torch.ones(*update.shape[:2], 1)
            kept[:, 0, 0] = (torch.rand(len(update)) >= probability).float()
            return (update * kept, *output[1:])

        return drop

    for index, layer in enumerate(model.encoder.layers):
        if index != used_layer:
            assert isinstance(layer, CLIPEncoderLayer)
            layer.self_attn.register_forward_hook(hook(_DROP_BEFORE if index < used_layer else _DROP_AFTER))
