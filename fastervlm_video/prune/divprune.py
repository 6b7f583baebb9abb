"""DivPrune: keep the patches that differ most from each other, whatever they show."""

import torch

from fastervlm_video.prune.base import Need, PruneInputs, PruneMethod, Selection
from fastervlm_video.prune.similarity import cosine_similarities

__all__ = ["DIVPRUNE"]

_LARGEST_DISTANCE = 2.0  # cosine distance of opposite directions
_FIRST_SCORE = _LARGEST_DISTANCE + 1  # the first patch is near to none that was kept before
_TAKEN = -1.0


def _select(inputs: PruneInputs) -> Selection:
    """Greedy max-min diversity: each patch is the one farthest from its nearest among those kept so far.

    The first is the patch whose nearest neighbour is farthest. A patch's score is that distance. It can only
    shrink from one choice to the next, and among equals the lowest index is taken first.
    """
    assert inputs.features is not None  # declared below, provided by the encoder
    distances = (1 - cosine_similarities(inputs.features)).clamp(0, _LARGEST_DISTANCE)
    itself = torch.eye(inputs.patches_per_frame, dtype=torch.bool, device=distances.device)
    chosen = distances.masked_fill(itself, torch.inf).amin(dim=-1).argmax(dim=-1, keepdim=True)  # [T, 1]
    indices, scores = [chosen], [torch.full_like(chosen, _FIRST_SCORE, dtype=torch.float32)]
    gaps = distances.new_full(distances.shape[:2], torch.inf)  # [T, N], to the nearest that is kept
    for _ in range(1, inputs.tokens_per_frame):
        to_chosen = torch.take_along_dim(distances, chosen[..., None], dim=1)[:, 0]
        gaps = torch.minimum(gaps, to_chosen).scatter(1, chosen, _TAKEN)
        chosen = gaps.argmax(dim=-1, keepdim=True)
        indices.append(chosen)
        scores.append(gaps.gather(1, chosen))
    return Selection.equal_counts(torch.cat(indices, dim=1), torch.cat(scores, dim=1))


DIVPRUNE = PruneMethod(
    name="divprune",
    source="DivPrune, arXiv 2503.02175",
    select=_select,
    needs=frozenset({Need.FEATURES}),
    nested=True,
    fixed_count=True,
    fixed_total=True,
    seeded=False,
    framewise=True,
)
"""Max-min diversity by cosine distance. Greedy, so a smaller budget is where it would have stopped.

The authors compare tokens behind the projector; here, as in all methods, it is the tower's features.
"""
