"""Methods that look at nothing, to measure the others against.

At high reduction ratios attention-based pruning is sometimes worse than these, so they are always at hand.
"""

import numpy as np
import torch

from fastervlm_video.prune.base import PruneInputs, PruneMethod, Selection
from fastervlm_video.prune.scores import top_k_stable

__all__ = ["RANDOM", "UNIFORM_GRID", "even_grid"]

_LOT_BITS = 24  # what a float32 holds exactly


def _draw_lots(seed: int, frame: int, count: int) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    """float32 [count] in [0, 1), a function of (seed, frame) alone.

    Raw bits of a seeded bit generator, because NumPy keeps that stream the same between releases, which it
    does not promise for the distributions drawn from it.
    """
    raw = np.random.PCG64(np.random.SeedSequence((seed, frame))).random_raw(count)
    return ((raw >> np.uint64(64 - _LOT_BITS)) / np.float64(1 << _LOT_BITS)).astype(np.float32)


def _select_random(inputs: PruneInputs) -> Selection:
    lots = torch.from_numpy(
        np.stack([_draw_lots(inputs.seed, frame, inputs.patches_per_frame) for frame in range(inputs.num_frames)])
    )
    indices = top_k_stable(lots, inputs.tokens_per_frame)
    return Selection.equal_counts(indices.to(inputs.device), lots.gather(1, indices).to(inputs.device))


def even_grid(count: int, rows: int, columns: int) -> list[int]:
    """Raster indices, ascending, of ``count`` distinct cells spread evenly over a grid.

    The cells stand in evenly spaced rows, as many as keep the spacing in both directions alike, and evenly
    within each row; rows differ by one cell at most::

        count 5 of 4 x 4: 2 rows      . . . .
        with 2 and 3 cells            . x . x
                                      . . . .
                                      x . x x   (columns (j + 1/2) * 4 / 3 = 0, 2, 3)
    """
    fewest_rows = -(-count // columns)
    used_rows = max(fewest_rows, min(rows, count, round((count * rows / columns) ** 0.5)))
    cells = []
    for i in range(used_rows):
        row = (2 * i + 1) * rows // (2 * used_rows)
        in_row = (i + 1) * count // used_rows - i * count // used_rows
        cells += [row * columns + (2 * j + 1) * columns // (2 * in_row) for j in range(in_row)]
    return cells


def _select_uniform_grid(inputs: PruneInputs) -> Selection:
    cells = torch.tensor(even_grid(inputs.tokens_per_frame, *inputs.grid), device=inputs.device)
    indices = cells.expand(inputs.num_frames, -1)
    return Selection.equal_counts(indices, torch.ones(indices.shape, device=inputs.device))


RANDOM = PruneMethod(
    name="random",
    source="baseline: lots drawn per frame",
    select=_select_random,
    needs=frozenset(),
    nested=True,
    fixed_count=True,
    fixed_total=True,
    seeded=True,
)
"""Every patch draws a lot from (seed, frame index) alone; the highest are kept."""

UNIFORM_GRID = PruneMethod(
    name="uniform_grid",
    source="baseline: points spread evenly over the frame",
    select=_select_uniform_grid,
    needs=frozenset(),
    nested=False,
    fixed_count=True,
    fixed_total=True,
    seeded=False,
    framewise=True,
)
"""The same evenly spread patches in every frame, all with score 1, in raster order."""
