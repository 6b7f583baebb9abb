"""Pruning of views, and of rectangles in them: methods see frames, and need not know that there is anything else."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from fastervlm_video.prune import PruneInputs, Selection
from fastervlm_video.vision.layout import Region

__all__ = ["select_in_regions"]


def select_in_regions(
    select: Callable[[PruneInputs], Selection], inputs: PruneInputs, regions: Sequence[Region], views: int = 1
) -> Selection:
    """Ask a pruning method about the regions of frames.

    Frames whose regions have one shape are shown to the method together, as a video of smaller frames. The budget of a
    region is that of a whole frame, or all of its patches if they are fewer; of an empty one nothing is kept. A method
    that compares frames must not see the views of one picture as frames that follow each other::

        3 pictures of 2 views    0 1 | 2 3 | 4 5    two videos of 3 frames    0 2 4    1 3 5

    Args:
        select: the method.
        inputs: of T whole frames.
        regions: one for each of them.
        views: how many neighbouring frames are views of one picture, each to be a video of its own.

    Returns:
        The choice, its indices those of whole frames.
    """
    groups: dict[tuple[tuple[int, int], int], list[int]] = defaultdict(list)
    for frame, region in enumerate(regions):
        if region.size:
            groups[(region.rows, region.columns), frame % views].append(frame)
    chosen: dict[int, Selection] = {}
    for (shape, _), frames in groups.items():
        patches = torch.stack([regions[frame].patches(inputs.grid[1]) for frame in frames]).to(inputs.device)
        selection = select(_of_regions(inputs, frames, patches, shape))
        for place, frame in enumerate(frames):
            part = selection.of_frames(place, place + 1)
            chosen[frame] = replace(part, indices=patches[place][part.indices])
    return _in_order([chosen.get(frame) for frame in range(len(regions))], inputs)


def _of_regions(inputs: PruneInputs, frames: list[int], patches: Tensor, shape: tuple[int, int]) -> PruneInputs:
    """What the method is told of some frames: their regions, int64 ``patches`` [G, n] of ``shape``."""
    at = torch.tensor(frames, device=inputs.device)
    attention, features, keys = inputs.cls_attention, inputs.features, inputs.keys
    return PruneInputs(
        tokens_per_frame=min(inputs.tokens_per_frame, shape[0] * shape[1]),
        grid=shape,
        pts_seconds=tuple(inputs.pts_seconds[frame] for frame in frames),
        device=inputs.device,
        seed=inputs.seed,
        cls_attention=None if attention is None else attention[at].gather(1, patches),
        features=None if features is None else features[at[:, None], patches],
        keys=None if keys is None else keys[at].take_along_dim(patches[:, None, :, None], dim=2),
    )


def _in_order(parts: Sequence[Selection | None], inputs: PruneInputs) -> Selection:
    """The choices of all frames, in the frames' order; None is an empty one."""
    there = [part for part in parts if part is not None]
    merged = [part.features for part in there if part.features is not None]
    nothing = torch.empty(0, device=inputs.device)
    return Selection(
        torch.cat([nothing.long(), *(part.indices for part in there)]),
        torch.cat([nothing, *(part.scores for part in there)]),
        tuple(0 if part is None else sum(part.counts) for part in parts),
        torch.cat(merged) if merged else None,
    )
