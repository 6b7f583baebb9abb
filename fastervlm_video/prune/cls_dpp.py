"""[CLS] attention without its repetitions: a determinantal point process in every frame.

Top-k by [CLS] attention may spend a frame's budget on several patches of one object, which say the same. Here a
set of patches is worth the determinant of its kernel ::

    L[i, j] = a_i^b * (1 + cos(x_i, x_j)) / 2 * a_j^b

where a is [CLS] attention and x the features. A patch is worth more the more [CLS] attends to it; of two that are
alike, the second adds next to nothing. The exponent b weighs the two against each other: 0 is diversity alone. It
was chosen on the mini model's validation scenes, which are none of those that quality is reported on.

Patches are taken greedily, each the one that multiplies the determinant most (fast greedy MAP, Chen et al., arXiv
1709.05135), so that a smaller budget keeps the beginning of a larger one's choice. CDPruner (arXiv 2506.10967) weighs
such a process by relevance to the question; this one looks at no question.

Frames are treated alike and apart. One budget for the whole video, which frames that show more would draw on,
finds more objects, but gave worse answers: a model tells frames apart by where their tokens stand.
"""

import torch
from torch import Tensor

from fastervlm_video.prune.base import Need, PruneInputs, PruneMethod, Selection
from fastervlm_video.prune.similarity import cosine_similarities

__all__ = ["CLS_DPP"]

_EXPONENT = 0.05
_NO_GAIN = 1e-12
_TAKEN = -1.0


def _greedy(kernel: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """The greedy order of each frame's patches, and what each adds.

    ``gains`` holds for each patch the variance that is left of it, given those taken so far: its diagonal
    element after as many steps of a Cholesky decomposition, whose rows are ``factors``.

    Args:
        kernel: float32 [T, N, N], positive semi-definite.
        steps: how many patches to take, in [1, N].

    Returns:
        Indices, int64 [T, steps], and gains, float32 [T, steps], non-increasing.
    """
    frames, patches = kernel.shape[:2]
    gains = kernel.diagonal(dim1=1, dim2=2).clone()
    factors = kernel.new_zeros(frames, steps, patches)
    order, added = [], []
    for step in range(steps):
        gain, taken = gains.max(dim=1)  # the first among equals
        order.append(taken)
        added.append(gain)
        at = taken[:, None]
        row = torch.take_along_dim(kernel, at[..., None], dim=1)[:, 0]
        known = torch.take_along_dim(factors[:, :step], at[..., None], dim=2)[..., 0]
        row = row - (known[:, None] @ factors[:, :step])[:, 0]
        row = torch.where(gain[:, None] > _NO_GAIN, row * gain.clamp(min=_NO_GAIN).rsqrt()[:, None], 0.0)
        factors[:, step] = row
        gains = torch.where(gains < 0, gains, (gains - row.square()).clamp(min=0)).scatter(1, at, _TAKEN)
    return torch.stack(order, dim=1), torch.stack(added, dim=1)


def _select(inputs: PruneInputs) -> Selection:
    attention, features = inputs.cls_attention, inputs.features
    assert attention is not None  # declared below, provided by the encoder
    assert features is not None
    quality = (attention / attention.max().clamp(min=_NO_GAIN)).clamp(min=_NO_GAIN) ** _EXPONENT
    kernel = quality[:, :, None] * (1 + cosine_similarities(features)) / 2 * quality[:, None]
    return Selection.equal_counts(*_greedy(kernel, inputs.tokens_per_frame))


CLS_DPP = PruneMethod(
    name="cls_dpp",
    source="this project: determinantal point process weighted by [CLS] attention",
    select=_select,
    needs=frozenset({Need.CLS_ATTENTION, Need.FEATURES}),
    nested=True,
    fixed_count=True,
    fixed_total=True,
    seeded=False,
)
"""Patches that [CLS] attends to and that differ from each other."""
