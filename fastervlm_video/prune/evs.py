"""Efficient Video Sampling: drop what has not changed since the frame before."""

import torch

from fastervlm_video.prune.base import Need, PruneInputs, PruneMethod, Selection
from fastervlm_video.prune.baselines import even_grid
from fastervlm_video.prune.similarity import unit_vectors

__all__ = ["EVS"]

_LARGEST_CHANGE = 2.0  # cosine distance of opposite directions
_ALL_NEW = _LARGEST_CHANGE + 1  # before the first frame there was nothing


def _select(inputs: PruneInputs) -> Selection:
    """The T x budget most changed patches of the whole video; ties in order of time, then of raster index.

    A patch's change is the cosine distance of its features from those at the same place in the frame before;
    all of the first frame is new. So all of that frame is kept, and nothing else if the budget ends there;
    if it ends earlier, which the authors do not allow, evenly spread patches of the first frame.
    """
    assert inputs.features is not None  # declared below, provided by the encoder
    directions = unit_vectors(inputs.features)
    change = directions.new_full(directions.shape[:2], _ALL_NEW)  # [T, N]
    change[1:] = (1 - (directions[1:] * directions[:-1]).sum(dim=-1)).clamp(0, _LARGEST_CHANGE)
    budget = inputs.num_frames * inputs.tokens_per_frame
    if budget < inputs.patches_per_frame:
        most_changed = torch.tensor(even_grid(budget, *inputs.grid), device=change.device)
    else:
        most_changed = torch.sort(change.flatten(), descending=True, stable=True).indices[:budget]
    kept = torch.zeros(change.numel(), dtype=torch.bool, device=change.device)
    kept[most_changed] = True
    kept = kept.view_as(change)
    # Kept patches of each frame first, most changed first; then the ragged rows, one after the other.
    order = torch.sort(change.masked_fill(~kept, -torch.inf), dim=1, descending=True, stable=True).indices
    is_kept = kept.gather(1, order)
    return Selection(order[is_kept], change.gather(1, order)[is_kept], tuple(kept.sum(dim=1).tolist()))


EVS = PruneMethod(
    name="evs",
    source="Efficient Video Sampling, arXiv 2510.14624; by features, as in vLLM",
    select=_select,
    needs=frozenset({Need.FEATURES}),
    nested=False,
    fixed_count=False,
    fixed_total=True,
    seeded=False,
)
"""The first frame, and what changed from each frame to the next.

Compared with the frame before, as published, and not with the last patch kept at that place: a slow drift is
never noticed. The paper compares pixels, vLLM the tokens behind the projector; here it is the tower's features.
A frame in which little changes may keep nothing. Meant for budgets of more than one frame in all (``keep_ratio``
above 1 / T); below, it is :data:`~fastervlm_video.prune.baselines.UNIFORM_GRID` on the first frame.
"""
