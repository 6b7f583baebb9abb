from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

from fastervlm_video.config import Medium
from fastervlm_video.errors import InvalidRequestError
from fastervlm_video.media import FrameBatch
from fastervlm_video.picture import draw_kept_patches
from fastervlm_video.vision import VisualTokens
from tests.checkpoints import frame_batch

GRID = (4, 8)
CELL, GAP, HEADER, CAPTION = 272, 14, 58, 26
KEPT = [[0, 7, 31], [9, 10, 18], [], list(range(32)), [5]]  # corners, neighbours, none, all, one


def tokens_keeping(kept: list[list[int]], grid: tuple[int, int] = GRID) -> VisualTokens:
    """A token set of these patches, best first being the last one."""
    indices = [index for frame in kept for index in reversed(frame)]
    return VisualTokens(
        features=torch.zeros(len(indices), 3),
        indices=torch.tensor(indices, dtype=torch.int32),
        scores=torch.zeros(len(indices)),
        counts=tuple(map(len, kept)),
        grid=grid,
        pts_seconds=tuple(float(i) for i in range(len(kept))),
        method="cls_attention",
        nested=True,
        fingerprint="x",
    )


def orange_frames(count: int, side: int = 56) -> FrameBatch:
    """One colour all over, so that brightness is due to the drawing alone."""
    return frame_batch(np.full((count, side, side, 3), (220, 140, 60), np.uint8))


def cells(picture: Image.Image, count: int) -> list[npt.NDArray[np.float32]]:
    """The area of each frame in a picture, as float32 [CELL, CELL, 3]."""
    pixels = np.asarray(picture, np.float32)
    areas = []
    for index in range(count):
        left, top = GAP + index % 4 * (CELL + GAP), HEADER + index // 4 * (CELL + CAPTION + GAP)
        areas.append(pixels[top : top + CELL, left : left + CELL])
    return areas


def patch_middles(area: npt.NDArray[np.float32], grid: tuple[int, int]) -> npt.NDArray[np.float32]:
    """float32 [rows * columns, 3]: colour in the middle of each patch, away from outlines."""
    rows, columns = grid
    height, width = CELL / rows, CELL / columns

    def middle(row: int, column: int) -> npt.NDArray[np.float32]:
        vertical = slice(int(height * (row + 0.25)), int(height * (row + 0.75)))
        horizontal = slice(int(width * (column + 0.25)), int(width * (column + 0.75)))
        colour: npt.NDArray[np.float32] = area[vertical, horizontal].mean(axis=(0, 1))
        return colour

    return np.stack([middle(row, column) for row in range(rows) for column in range(columns)])


def test_kept_patches_are_lit_and_the_others_dimmed_each_in_its_place() -> None:
    picture = draw_kept_patches(orange_frames(len(KEPT)), tokens_keeping(KEPT))
    for kept, area in zip(KEPT, cells(picture, len(KEPT)), strict=True):
        colours = patch_middles(area, GRID)
        lit = colours.sum(axis=1) > 300
        assert np.flatnonzero(lit).tolist() == kept
        assert np.allclose(colours[lit], (220, 140, 60), atol=1)
        saturation = np.ptp(colours, axis=1) / colours.max(axis=1)
        assert (saturation[~lit] < 0.5).all()  # an orange patch has 0.73


@pytest.mark.parametrize("grid", [(3, 3), (16, 16), (24, 24), (5, 7)])
def test_grids_that_do_not_divide_the_picture(grid: tuple[int, int]) -> None:
    kept = [[0, grid[1] + 1, grid[0] * grid[1] - 1]]
    picture = draw_kept_patches(orange_frames(1), tokens_keeping(kept, grid))
    lit = patch_middles(cells(picture, 1)[0], grid).sum(axis=1) > 300
    assert np.flatnonzero(lit).tolist() == kept[0]


def test_kept_regions_are_outlined_once_around() -> None:
    """Patches 9, 10 and 18 touch: lines run around them, not between them."""
    picture = draw_kept_patches(orange_frames(1), tokens_keeping([KEPT[1]]))
    area = cells(picture, 1)[0]
    outline = (area == (255, 196, 61)).all(axis=2)
    top, bottom, left, middle, right = CELL // 4, CELL // 4 * 3, CELL // 8, CELL // 8 * 2, CELL // 8 * 3
    assert outline[top, left:right].all()
    assert outline[top : top * 2, left].all()
    assert outline[bottom - 1, middle:right].all()
    assert not outline[top + 5 : top * 2 - 5, middle - 3 : middle + 3].any()
    assert not outline[bottom + 1 :].any()


@pytest.mark.parametrize(
    ("count", "columns", "rows"), [(1, 1, 1), (3, 3, 1), (4, 4, 1), (5, 4, 2), (8, 4, 2), (9, 4, 3)]
)
def test_sizes(count: int, columns: int, rows: int) -> None:
    picture = draw_kept_patches(orange_frames(count, side=8), tokens_keeping([[0]] * count))
    assert picture.mode == "RGB"
    assert picture.size == (columns * (CELL + GAP) + GAP, HEADER + rows * (CELL + CAPTION + GAP) + GAP)


def test_the_frames_are_recognisable_where_all_is_kept() -> None:
    frames = frame_batch(
        np.random.default_rng(0).integers(0, 256, (1, 17, 17, 3), np.uint8).repeat(16, 1).repeat(16, 2)
    )
    area = cells(draw_kept_patches(frames, tokens_keeping([list(range(32))])), 1)[0]
    inner = area[8:-8:16, 8:-8:16]
    assert np.abs(inner - frames.frames_thwc_u8[0, 8:-8:16, 8:-8:16]).max() <= 2


def test_a_title_is_written_as_it_is() -> None:
    frames, tokens = orange_frames(1), tokens_keeping([[0]])
    plain, titled = draw_kept_patches(frames, tokens), draw_kept_patches(frames, tokens, title="été [bold].mp4")
    header = (0, 0, plain.width, HEADER)
    assert plain.crop(header).tobytes() != titled.crop(header).tobytes()
    below = (0, HEADER, plain.width, plain.height)
    assert plain.crop(below).tobytes() == titled.crop(below).tobytes()


def tiled(kept: list[list[int]], views: int, capacities: tuple[int, ...] | None = None) -> VisualTokens:
    """Pictures of so many views each."""
    tokens = tokens_keeping(kept)
    return replace(tokens, views_per_picture=views, picture_size=(56, 112), capacities=capacities, medium=Medium.IMAGE)


@pytest.mark.parametrize(
    ("pictures", "views", "columns", "rows"), [(1, 3, 3, 1), (1, 5, 5, 1), (3, 5, 5, 3), (2, 6, 6, 2), (2, 7, 6, 4)]
)
def test_a_picture_of_several_views_has_rows_of_its_own(pictures: int, views: int, columns: int, rows: int) -> None:
    kept = [[index % 32] for index in range(pictures * views)]
    picture = draw_kept_patches(orange_frames(len(kept), side=8), tiled(kept, views))
    assert picture.size == (columns * (CELL + GAP) + GAP, HEADER + rows * (CELL + CAPTION + GAP) + GAP)
    pixels, per_picture = np.asarray(picture, np.float32), rows // pictures
    for index, patches in enumerate(kept):
        row = index // views * per_picture + index % views // columns
        left, top = GAP + index % views % columns * (CELL + GAP), HEADER + row * (CELL + CAPTION + GAP)
        lit = patch_middles(pixels[top : top + CELL, left : left + CELL], GRID).sum(axis=1) > 300
        assert np.flatnonzero(lit).tolist() == patches


def test_captions_fit_under_their_views_and_count_what_may_be_kept() -> None:
    """The longest caption there is, of a video's last tile, at a large grid, ends before the next view begins."""
    kept, grid = [list(range(576))] * 2, (24, 24)
    whole = replace(tokens_keeping(kept, grid), views_per_picture=2, picture_size=(56, 112), pts_seconds=(3599.99,) * 2)
    frames = replace(orange_frames(2), pts_seconds=(3599.99,) * 2)
    drawn = np.asarray(draw_kept_patches(frames, whole), np.int64)
    captions = drawn[HEADER + CELL : HEADER + CELL + CAPTION]
    written = (captions != captions[-1, 0]).any(axis=(0, 2)).nonzero()[0]
    assert written.min() >= GAP
    assert not ((written > GAP + CELL) & (written < 2 * GAP + CELL)).any()
    assert written.max() < 2 * GAP + 2 * CELL
    fewer = replace(tokens_keeping([[0], [1]], grid), views_per_picture=2, picture_size=(56, 112))
    limited = draw_kept_patches(orange_frames(2), replace(fewer, capacities=(576, 300)))
    unlimited = draw_kept_patches(orange_frames(2), fewer)
    second = (2 * GAP + CELL, HEADER + CELL, limited.width, HEADER + CELL + CAPTION)
    assert limited.crop(second).tobytes() != unlimited.crop(second).tobytes()
    first = (0, HEADER, GAP + CELL, limited.height)
    assert limited.crop(first).tobytes() == unlimited.crop(first).tobytes()


def test_frames_and_tokens_must_belong_together() -> None:
    with pytest.raises(InvalidRequestError, match="3 frames cannot show the tokens of 2"):
        draw_kept_patches(orange_frames(3), tokens_keeping([[0]] * 2))
