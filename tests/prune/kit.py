"""Inputs for pruning methods, pleasant and unpleasant."""

import math

import pytest
import torch
from torch import Tensor

from fastervlm_video.prune import PruneInputs, Selection, get_method, method_names

METHODS = [get_method(name) for name in method_names()]
GRIDS = ((1, 1), (4, 4), (3, 7), (7, 3), (1, 9))
KINDS = ("random", "ties", "constant", "zero", "duplicated")
HEADS, KEY_WIDTH, WIDTH = 2, 4, 6

each_method = pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
each_grid = pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: f"{grid[0]}x{grid[1]}")
each_kind = pytest.mark.parametrize("kind", KINDS)


def _tensors(kind: str, frames: int, patches: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    attention = torch.rand(frames, patches, generator=generator) / patches
    features = torch.randn(frames, patches, WIDTH, generator=generator)
    keys = torch.randn(frames, HEADS, patches, KEY_WIDTH, generator=generator)
    match kind:
        case "ties":
            return (attention * patches * 3).round() / (3 * patches), features.sign(), keys.sign()
        case "constant":
            return torch.full_like(attention, 0.5), torch.ones_like(features), torch.ones_like(keys)
        case "zero":
            return torch.zeros_like(attention), torch.zeros_like(features), torch.zeros_like(keys)
        case "duplicated":
            half = torch.arange(patches) // 2
            return attention[:, half], features[:, half], keys[:, :, half]
    return attention, features, keys


def make_inputs(
    k: int,
    grid: tuple[int, int] = (4, 4),
    frames: int = 3,
    *,
    kind: str = "random",
    seed: int = 0,
    lots: int = 0,
    dtype: torch.dtype = torch.float32,
) -> PruneInputs:
    """Everything a method may need; ``seed`` makes the tensors, ``lots`` is the request's seed."""
    attention, features, keys = _tensors(kind, frames, grid[0] * grid[1], seed)
    return PruneInputs(
        tokens_per_frame=k,
        grid=grid,
        pts_seconds=tuple(float(i) for i in range(frames)),
        seed=lots,
        cls_attention=attention,
        features=features.to(dtype),
        keys=keys.to(dtype),
    )


def lists(inputs: PruneInputs) -> tuple[list[list[float]], list[list[list[float]]], list[list[list[list[float]]]]]:
    """Attention, features and keys as plain numbers, for oracles."""
    assert inputs.cls_attention is not None
    assert inputs.features is not None
    assert inputs.keys is not None
    return inputs.cls_attention.tolist(), inputs.features.tolist(), inputs.keys.tolist()


def by_frame(selection: Selection) -> list[list[int]]:
    return [run.tolist() for run in selection.indices.split(list(selection.counts))]


def cosine(a: list[float], b: list[float]) -> float:
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return dot / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))
