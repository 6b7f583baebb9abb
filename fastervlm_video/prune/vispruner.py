"""VisPruner: half of the budget by [CLS] attention, half by weeding duplicates out of the rest.

::

    by attention   [ 9 4 | 7 2 0 5 8 1 3 6 ]      budget 4: 2 important, 2 of the residual are kept
                           even ranks 7 0 8 3     each is compared with all odd ranks; those that resemble
                           odd ranks  2 5 1 6     one most are dropped, up to 8 a round, until 2 are left
"""

import torch
from torch import Tensor

from fastervlm_video.prune.base import Need, PruneInputs, PruneMethod, Selection
from fastervlm_video.prune.scores import top_k_stable
from fastervlm_video.prune.similarity import cosine_similarities

__all__ = ["VISPRUNER"]

_IMPORTANT_RATIO = 0.5  # the authors' default
_MOST_DROPPED_PER_ROUND = 8


def _weed_out(ranked: Tensor, similarity: Tensor, count: int) -> Tensor:
    """Drop duplicates until ``count`` patches are left in every frame.

    The authors' loop fails where an odd number is left, or fewer than twice of what a round is to drop. Here
    the odd one out counts as an even rank, and no round drops more than there are of those.

    Args:
        ranked: int64 [T, R], patches by attention, best first.
        similarity: float32 [T, N, N].
        count: in [1, R].

    Returns:
        int64 [T, count], in no particular order.
    """
    frames = torch.arange(len(ranked), device=ranked.device)[:, None, None]
    while ranked.shape[1] > count:
        even, odd = ranked[:, ::2], ranked[:, 1::2]
        dropped = min(_MOST_DROPPED_PER_ROUND, ranked.shape[1] - count)
        likeness = similarity[frames, even[:, :, None], odd[:, None, :]].amax(dim=-1)
        distinct = torch.sort(likeness, dim=-1, descending=True, stable=True).indices[:, dropped:]
        ranked = torch.cat([even.gather(1, distinct), odd], dim=1)
    return ranked


def _select(inputs: PruneInputs) -> Selection:
    attention, features = inputs.cls_attention, inputs.features
    assert attention is not None  # declared below, provided by the encoder
    assert features is not None
    budget = inputs.tokens_per_frame
    num_important = int(budget * _IMPORTANT_RATIO)
    ranked = top_k_stable(attention, inputs.patches_per_frame)
    diverse = _weed_out(ranked[:, num_important:], cosine_similarities(features), budget - num_important)
    kept = torch.cat([ranked[:, :num_important], diverse], dim=1)
    scores = torch.full_like(attention, -torch.inf).scatter(1, kept, attention.gather(1, kept))
    indices = top_k_stable(scores, budget)
    return Selection.equal_counts(indices, scores.gather(1, indices))


VISPRUNER = PruneMethod(
    name="vispruner",
    source="VisPruner, arXiv 2412.01818v2",
    select=_select,
    needs=frozenset({Need.CLS_ATTENTION, Need.FEATURES}),
    nested=False,
    fixed_count=True,
    fixed_total=True,
    seeded=False,
    framewise=True,
)
"""Important and diverse patches in equal parts; ordered by [CLS] attention, which is their score."""
