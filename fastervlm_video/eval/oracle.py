"""The tokens that somebody who knows the objects would keep: what any method could at best hope for."""

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch

from fastervlm_video.errors import InvalidRequestError
from fastervlm_video.vision import VisualTokens

__all__ = ["select_by_coverage"]


def select_by_coverage(
    full: VisualTokens, coverage: npt.NDArray[np.float32], tokens_per_frame: int, *, seed: int = 0
) -> VisualTokens:
    """In each frame, the patches that the objects cover most.

    Args:
        full: a video with all its tokens.
        coverage: float32 [T, N], share of each patch covered by objects.
        tokens_per_frame: how many to keep, in [1, N].
        seed: of the lots that decide between patches of equal coverage, the empty ones above all.

    Returns:
        The same tokens, fewer, scored by coverage; not nested, as nobody should cut them further.

    Raises:
        InvalidRequestError: shapes do not fit, tokens are missing already, or the budget is out of range.
    """
    frames, patches = full.num_frames, full.patches_per_frame
    if full.counts != (patches,) * frames:
        raise InvalidRequestError(f"the oracle needs all {patches} tokens of each frame, got {list(full.counts)}")
    if coverage.shape != (frames, patches):
        raise InvalidRequestError(f"coverage must be [{frames}, {patches}], got {list(coverage.shape)}")
    if not 1 <= tokens_per_frame <= patches:
        raise InvalidRequestError(f"cannot keep {tokens_per_frame} tokens of a frame of {patches} patches")
    lots = np.random.default_rng(seed).random(coverage.shape)
    chosen = np.lexsort((lots, -coverage), axis=-1)[:, :tokens_per_frame]
    # Where raster index i of frame t stands among the tokens, which are ordered by score.
    row_of = np.empty((frames, patches), np.int64)
    stored = full.indices.cpu().numpy().reshape(frames, patches)
    np.put_along_axis(row_of, stored, np.arange(frames * patches).reshape(frames, patches), axis=1)
    rows = torch.from_numpy(np.take_along_axis(row_of, chosen, axis=1).flatten())
    return replace(
        full,
        features=full.features[rows],
        indices=full.indices[rows],
        scores=torch.from_numpy(np.take_along_axis(coverage, chosen, axis=1).astype(np.float32).flatten()),
        counts=(tokens_per_frame,) * frames,
        method="oracle",
        nested=False,
    )
