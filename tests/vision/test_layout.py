"""Counts and orders of tiled pictures; those of Hugging Face are the oracle in ``tests/models``."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastervlm_video.config import Tiling
from fastervlm_video.vision import PlainLayout, Region, TiledLayout, VisualTokens

GRID = (4, 4)
TILING = Tiling(32, ((32, 64), (64, 32), (64, 64), (96, 32), (32, 96)))
SIZES = st.tuples(st.integers(1, 400), st.integers(1, 400))


def tokens_of(layout: TiledLayout, size: tuple[int, int], k: int, pictures: int = 1) -> VisualTokens:
    """The first k patches of each region, features that say which patch of which view they are."""
    regions = layout.regions(size) * pictures
    kept = [region.patches(GRID[1])[:k] for region in regions]
    features = [
        torch.stack([torch.full((len(patches),), float(view)), patches.float()], 1) for view, patches in enumerate(kept)
    ]
    indices = torch.cat(kept).to(torch.int32)
    return VisualTokens(
        features=torch.cat(features),
        indices=indices,
        scores=torch.zeros(len(indices)),
        counts=tuple(map(len, kept)),
        grid=GRID,
        pts_seconds=tuple(float(at) for at in range(pictures) for _ in layout.regions(size)),
        method="cls_attention",
        nested=True,
        fingerprint="tower",
        picture_size=size,
        views_per_picture=len(regions) // pictures,
        capacities=tuple(region.size for region in regions),
    )


@given(size=SIZES, k=st.integers(1, 16), unpad=st.booleans(), pictures=st.integers(1, 3))
def test_the_count_follows_from_size_and_budget(size: tuple[int, int], k: int, *, unpad: bool, pictures: int) -> None:
    layout = TiledLayout(GRID, TILING, unpad=unpad)
    tokens = tokens_of(layout, size, k, pictures)
    sequence = layout.arrange(tokens)
    assert sequence.runs == (layout.count(size, k),) * pictures
    assert len(sequence.features) + len(sequence.separators) == len(sequence) == sum(sequence.runs)
    assert layout.fewest(k) <= layout.count(size, k)
    assert sorted(map(tuple, sequence.features.tolist())) == sorted(map(tuple, tokens.features.tolist()))
    assert unpad or not sequence.separators


def test_a_wide_picture_in_both_orders() -> None:
    """64 x 16 pixels: fitted into two tiles side by side, of whose 4 rows 2 are padding; one token of each row is kept.

    ::

        tile 0      tile 1
        . . . .     . . . .    padding
        a . . .     . b . .
        . . . .     . . c .
        . . . .     . . . .    padding
    """
    layout = TiledLayout(GRID, TILING)
    assert layout.regions((16, 64)) == (Region(0, 0, 4, 4), Region(1, 0, 2, 4), Region(1, 0, 2, 4))
    tokens = VisualTokens(
        features=torch.arange(5.0)[:, None],
        indices=torch.tensor([9, 2, 4, 10, 5], dtype=torch.int32),  # two of the base view, then a, c, b
        scores=torch.zeros(5),
        counts=(2, 1, 2),
        grid=GRID,
        pts_seconds=(0.0,) * 3,
        method="cls_attention",
        nested=True,
        fingerprint="tower",
        picture_size=(16, 64),
        views_per_picture=3,
        capacities=(16, 8, 8),
    )
    sequence = layout.arrange(tokens)
    assert sequence.features[:, 0].tolist() == [1, 0, 2, 4, 3]  # base in raster order, a and b of a row, then c
    assert sequence.separators == (4, 6)
    assert sequence.runs == (7,)
    reference = TiledLayout(GRID, TILING, unpad=False).arrange(tokens)
    assert reference.features[:, 0].tolist() == [1, 0, 2, 4, 3]
    assert (reference.separators, reference.runs) == ((), (5,))


@pytest.mark.parametrize("k", [1, 16])
def test_a_plain_picture_is_its_budget(k: int) -> None:
    layout = PlainLayout(GRID)
    assert layout.count((10, 1000), k) == layout.fewest(k) == k
    assert layout.regions((3, 7)) == (Region(0, 0, *GRID),)
