"""Methods asked about regions of views choose as if the regions were all there is."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from fastervlm_video.prune import Need, PruneInputs, Selection, get_method, method_names
from fastervlm_video.vision import Region
from fastervlm_video.vision.regions import select_in_regions

torch.set_num_threads(1)

GRID, WIDTH, HEADS = (4, 5), 6, 2
REGIONS = (Region(0, 0, 4, 5), Region(2, 0, 2, 5), Region(0, 0, 2, 5), Region(0, 0, 0, 0), Region(0, 1, 4, 2))
SHAPES = ((0,), (1, 2), (4,))  # frames whose regions have one shape; the fourth keeps nothing


def inputs(k: int, needs: frozenset[Need]) -> PruneInputs:
    generator = torch.Generator().manual_seed(k)
    frames, patches = len(REGIONS), GRID[0] * GRID[1]

    def draw(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    return PruneInputs(
        tokens_per_frame=k,
        grid=GRID,
        pts_seconds=tuple(float(frame) for frame in range(frames)),
        seed=3,
        cls_attention=draw(frames, patches) if Need.CLS_ATTENTION in needs else None,
        features=draw(frames, patches, WIDTH) if Need.FEATURES in needs else None,
        keys=draw(frames, HEADS, patches, WIDTH) if Need.KEYS in needs else None,
    )


def cut(tensor: Tensor | None, frame: int, *, heads: bool = False) -> Tensor | None:
    """The region of one frame, cut out as a picture would be."""
    if tensor is None:
        return None
    region, one = REGIONS[frame], tensor[frame]
    rows = slice(region.top, region.top + region.rows)
    columns = slice(region.left, region.left + region.columns)
    if heads:
        return one.view(HEADS, *GRID, -1)[:, rows, columns].reshape(HEADS, region.size, -1)
    return one.view(*GRID, -1)[rows, columns].reshape(region.size, *one.shape[1:])


def expected(method: str, whole: PruneInputs) -> dict[int, Selection]:
    """By frame, indices counted in the region."""
    found: dict[int, Selection] = {}
    for frames in SHAPES:
        region = REGIONS[frames[0]]

        def stacked(tensor: Tensor | None, *, frames: tuple[int, ...] = frames, heads: bool = False) -> Tensor | None:
            parts = [part for frame in frames if (part := cut(tensor, frame, heads=heads)) is not None]
            return torch.stack(parts) if parts else None

        selection = get_method(method).select(
            replace(
                whole,
                tokens_per_frame=min(whole.tokens_per_frame, region.size),
                grid=(region.rows, region.columns),
                pts_seconds=tuple(whole.pts_seconds[frame] for frame in frames),
                cls_attention=stacked(whole.cls_attention),
                features=stacked(whole.features),
                keys=stacked(whole.keys, heads=True),
            )
        )
        found |= {frame: selection.of_frames(at, at + 1) for at, frame in enumerate(frames)}
    return found


@pytest.mark.parametrize("k", [1, 3, 9, 20])
@pytest.mark.parametrize("method", method_names())
def test_every_method_chooses_inside_the_regions(method: str, k: int) -> None:
    whole = inputs(k, get_method(method).needs)
    chosen, wanted = select_in_regions(get_method(method).select, whole, REGIONS), expected(method, whole)
    for frame, region in enumerate(REGIONS):
        part = chosen.of_frames(frame, frame + 1)
        if frame not in wanted:
            assert part.counts == (0,)
            continue
        assert part.counts == wanted[frame].counts
        rows, columns = part.indices // GRID[1] - region.top, part.indices % GRID[1] - region.left
        assert bool(((rows >= 0) & (rows < region.rows) & (columns >= 0) & (columns < region.columns)).all())
        assert torch.equal(rows * region.columns + columns, wanted[frame].indices)
        assert torch.equal(part.scores, wanted[frame].scores)
        merged = wanted[frame].features
        if merged is not None:
            assert part.features is not None
            assert torch.equal(part.features, merged)


def test_views_are_videos_of_their_own() -> None:
    """A whole and a half view of each of three pictures: shapes are told apart, and views of one shape, too."""
    whole, upper = Region(0, 0, 4, 5), Region(0, 0, 2, 5)
    times, seen = (0.0,) * 3 + (1.0,) * 3 + (2.0,) * 3, []

    def select(asked: PruneInputs) -> Selection:
        seen.append((asked.grid, asked.pts_seconds))
        return get_method("uniform_grid").select(asked)

    nine = PruneInputs(tokens_per_frame=2, grid=GRID, pts_seconds=times)
    chosen = select_in_regions(select, nine, (whole, upper, upper) * 3, views=3)
    assert seen == [((4, 5), (0.0, 1.0, 2.0)), ((2, 5), (0.0, 1.0, 2.0)), ((2, 5), (0.0, 1.0, 2.0))]
    assert chosen.counts == (2,) * 9


def test_nothing_may_be_kept_of_empty_regions() -> None:
    whole = inputs(2, get_method("cls_attention").needs)
    chosen = select_in_regions(get_method("cls_attention").select, whole, (Region(0, 0, 0, 0),) * len(REGIONS))
    assert chosen.counts == (0,) * len(REGIONS)
    assert len(chosen.indices) == len(chosen.scores) == 0
