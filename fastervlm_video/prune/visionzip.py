"""VisionZip: dominant patches by [CLS] attention, and the others merged into a few contextual ones.

::

    by attention    dominant   ─────────────────────────────────────────────▶ kept as they are
    in raster order the others ─ every (R // contextual)-th is a target ────▶ kept, averaged with all
                               └ each other one joins the target whose keys      that joined them
                                 are most like its own
"""

import torch
from torch import Tensor

from fastervlm_video.prune.base import Need, PruneInputs, PruneMethod, Selection
from fastervlm_video.prune.scores import top_k_stable
from fastervlm_video.prune.similarity import unit_vectors

__all__ = ["VISIONZIP"]

_CONTEXTUAL_SHARE = 10 / 64  # the paper's 54 + 10 of 64, 108 + 20 of 128, 162 + 30 of 192


def _merge(features: Tensor, keys: Tensor, others: Tensor, targets: Tensor) -> Tensor:
    """Average each target with the patches that are most like it.

    The target counts as one of them. The authors' code adds the average of the others to it instead, and does
    not divide the sum, which makes vectors twice as long as any that the projector was trained on.

    Args:
        features: float32 [T, N, C].
        keys: float32 [T, N, D], of length 1.
        others: int64 [T, M], the patches to merge.
        targets: int64 [T, contextual], the patches to merge them into.

    Returns:
        float32 [T, contextual, C].
    """
    frames = torch.arange(len(features), device=features.device)[:, None]
    likeness = keys[frames, others] @ keys[frames, targets].mT  # [T, M, contextual]
    joins = torch.zeros_like(likeness).scatter(2, likeness.argmax(dim=-1, keepdim=True), 1)
    summed = features[frames, targets] + joins.mT @ features[frames, others]
    return summed / (1 + joins.sum(dim=1))[..., None]


def _select(inputs: PruneInputs) -> Selection:
    attention, features, keys = inputs.cls_attention, inputs.features, inputs.keys
    assert attention is not None  # declared below, provided by the encoder
    assert features is not None
    assert keys is not None
    budget, features = inputs.tokens_per_frame, features.float()
    contextual = round(budget * _CONTEXTUAL_SHARE)
    dominant = top_k_stable(attention, budget - contextual)
    kept = torch.zeros_like(attention, dtype=torch.bool).scatter(1, dominant, value=True)
    if contextual:
        rest = torch.sort(kept.byte(), dim=1, stable=True).indices[:, : kept.shape[1] - dominant.shape[1]]
        is_target = torch.zeros(rest.shape[1], dtype=torch.bool, device=rest.device)
        is_target[: contextual * (rest.shape[1] // contextual) : rest.shape[1] // contextual] = True
        targets = rest[:, is_target]
        merged = _merge(features, unit_vectors(keys.float().mean(dim=1)), rest[:, ~is_target], targets)
        features = features.scatter(1, targets[..., None].expand_as(merged), merged)
        kept = kept.scatter(1, targets, value=True)
    indices = top_k_stable(attention.masked_fill(~kept, -torch.inf), budget)
    return Selection.equal_counts(
        indices, attention.gather(1, indices), torch.take_along_dim(features, indices[..., None], dim=1)
    )


VISIONZIP = PruneMethod(
    name="visionzip",
    source="VisionZip, arXiv 2412.04467",
    select=_select,
    needs=frozenset({Need.CLS_ATTENTION, Need.FEATURES, Need.KEYS}),
    nested=False,
    fixed_count=True,
    fixed_total=True,
    seeded=False,
    framewise=True,
)
"""Dominant and contextual patches, in raster order and not one kind after the other; their score is [CLS] attention.

The authors count [CLS] among the dominant ones; here it is the request's choice, and beyond the budget. Budgets
of 3 and less have no contextual patch.
"""
