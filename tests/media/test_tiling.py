"""Hugging Face's LLaVA-NeXT processor is the oracle; nothing here knows how it chooses, fits or cuts."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers.image_processing_utils import get_patch_output_size, select_best_resolution
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

from fastervlm_video.config import FrameResize, Tiling
from fastervlm_video.errors import InvalidRequestError, MediaLimitError
from fastervlm_video.media import apply_resize, split_views, views_per_picture
from fastervlm_video.media.resize import MAX_RESIZED_PIXELS
from fastervlm_video.media.tiling import (
    best_resolution,
    check_views_match,
    fitted_size,
    tile_grid,
    view_size,
    write_views,
)

Picture = npt.NDArray[np.uint8]

PUBLISHED = Tiling(336, ((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008)))
"""The resolutions of the published LLaVA-NeXT checkpoints."""
SMALL = Tiling(32, ((32, 64), (64, 32), (64, 64), (96, 32), (32, 96)))
SHAPES = [(64, 64), (50, 200), (200, 50), (97, 61), (1, 1), (3, 500), (500, 3), (10, 10), (1, 3000), (3000, 1)]

sides = st.integers(1, 5000)
sizes = st.tuples(sides, sides)
resolutions = st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=8)


def noise(height: int, width: int) -> Picture:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def whole(tiling: Tiling) -> FrameResize:
    """Hugging Face squeezes the whole picture into a square."""
    return FrameResize(size=(tiling.tile_size, tiling.tile_size), resample=tiling.resample)


def hugging_face(picture: Picture, tiling: Tiling) -> Picture:
    processor: Any = LlavaNextImageProcessorPil(
        size={"shortest_edge": tiling.tile_size},
        crop_size={"height": tiling.tile_size, "width": tiling.tile_size},
        image_grid_pinpoints=[list(size) for size in tiling.resolutions],
        resample=Image.Resampling(tiling.resample),
        do_rescale=False,
        do_normalize=False,
    )
    views = np.asarray(processor.preprocess([picture], input_data_format="channels_last")["pixel_values"][0])
    assert views.dtype == np.uint8
    return views.transpose(0, 2, 3, 1)


@pytest.mark.parametrize("shape", [*SHAPES, (333, 1000), (1200, 640)])
@pytest.mark.parametrize("tiling", [PUBLISHED, SMALL], ids=["published", "small"])
def test_views_are_bit_equal_to_hugging_face(shape: tuple[int, int], tiling: Tiling) -> None:
    picture = noise(*shape)
    ours = split_views(picture, whole(tiling), tiling)
    assert ours.flags.c_contiguous
    assert len(ours) == views_per_picture(shape, tiling) > 1
    assert np.array_equal(ours, hugging_face(picture, tiling))


def test_the_default_resolutions_are_those_of_the_processor() -> None:
    assert [list(size) for size in PUBLISHED.resolutions] == LlavaNextImageProcessorPil.image_grid_pinpoints


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    grids=st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), min_size=1, max_size=5),
    side=st.sampled_from([1, 7, 16]),
    resample=st.sampled_from([0, 1, 2, 3]),
)
def test_any_tiling_is_bit_equal_to_hugging_face(
    shape: tuple[int, int], grids: list[tuple[int, int]], side: int, resample: int
) -> None:
    tiling = Tiling(side, tuple((rows * side, columns * side) for rows, columns in grids), resample)
    picture = noise(*shape)
    assert np.array_equal(split_views(picture, whole(tiling), tiling), hugging_face(picture, tiling))


@settings(max_examples=500, deadline=None)
@given(
    size=sizes | st.tuples(st.integers(1, 40), st.integers(1, 40)), choice=resolutions, scale=st.sampled_from([1, 336])
)
def test_the_choice_of_resolution_is_hugging_faces(
    size: tuple[int, int], choice: list[tuple[int, int]], scale: int
) -> None:
    scaled = [(height * scale, width * scale) for height, width in choice]
    assert best_resolution(size, tuple(scaled)) == select_best_resolution(size, scaled)


def test_ties_go_to_the_first() -> None:
    """A square fits two lying and standing resolutions equally well."""
    for pair in (((32, 64), (64, 32)), ((64, 32), (32, 64))):
        assert best_resolution((100, 100), pair) == pair[0] == select_best_resolution((100, 100), list(pair))


@settings(max_examples=500, deadline=None)
@given(size=sizes, target=st.tuples(st.integers(1, 2500), st.integers(1, 2500)))
def test_the_fitted_size_is_hugging_faces(size: tuple[int, int], target: tuple[int, int]) -> None:
    picture = np.broadcast_to(np.uint8(0), (*size, 3))
    assert fitted_size(size, target) == get_patch_output_size(picture, target, input_data_format="channels_last")


@given(size=sizes)
def test_counts_follow_from_the_size(size: tuple[int, int]) -> None:
    rows, columns = tile_grid(size, PUBLISHED)
    assert (rows * 336, columns * 336) in PUBLISHED.resolutions
    assert views_per_picture(size, PUBLISHED) == 1 + rows * columns
    assert views_per_picture(size, None) == 1


def test_tiles_are_in_rows() -> None:
    """Four quarters, each of one grey, none of them resampled."""
    picture = np.zeros((64, 64, 3), np.uint8)
    for index in range(4):
        picture[index // 2 * 32 :, index % 2 * 32 :] = 50 * (index + 1)
    views = split_views(picture, whole(SMALL), SMALL)
    assert [np.unique(view).tolist() for view in views[1:]] == [[50], [100], [150], [200]]


def test_the_odd_black_row_comes_after() -> None:
    picture = np.full((27, 96, 3), 255, np.uint8)
    tiling = Tiling(32, ((32, 96),))
    column = split_views(picture, whole(tiling), tiling)[1, :, 0, 0]
    assert column.tolist() == [0] * 2 + [255] * 27 + [0] * 3


@pytest.mark.parametrize("resize", [None, FrameResize(shortest_edge=20), FrameResize(shortest_edge=20, crop=(20, 20))])
def test_without_a_tiling_there_is_the_frame_as_ever(resize: FrameResize | None) -> None:
    picture = noise(40, 50)
    expected = picture if resize is None else apply_resize(picture, resize)
    views = split_views(picture, resize, None)
    assert np.array_equal(views, expected[None])
    assert views.shape[1:3] == view_size((40, 50), resize, None)


def test_views_are_written_in_place() -> None:
    picture = noise(40, 50)
    room = np.full((3 + 1 + views_per_picture((40, 50), SMALL), 32, 32, 3), 7, np.uint8)
    write_views(picture, whole(SMALL), SMALL, room[3:-1])
    assert np.array_equal(room[3:-1], split_views(picture, whole(SMALL), SMALL))
    assert (room[:3] == 7).all()
    assert (room[-1] == 7).all()


@pytest.mark.parametrize(
    ("resize", "what"),
    [
        (None, "50x40"),
        (FrameResize(size=(32, 31)), "31x32"),
        (FrameResize(shortest_edge=32), "40x32"),
        (FrameResize(shortest_edge=32, crop=(30, 30)), "30x30"),
    ],
)
def test_views_of_two_sizes_are_refused(resize: FrameResize | None, what: str) -> None:
    with pytest.raises(InvalidRequestError, match=f"tiles of 32x32.*{what}"):
        split_views(noise(40, 50), resize, SMALL)
    with pytest.raises(InvalidRequestError, match="tiles of 32x32"):
        check_views_match(resize, SMALL)


@pytest.mark.parametrize("resize", [whole(SMALL), FrameResize(shortest_edge=40, crop=(32, 32))])
def test_views_of_one_size_are_not_refused(resize: FrameResize) -> None:
    check_views_match(resize, SMALL)
    check_views_match(None, None)
    assert split_views(noise(40, 50), resize, SMALL).shape[1:] == (32, 32, 3)


def test_a_picture_of_a_tiles_size_needs_no_resize() -> None:
    picture = noise(32, 32)
    assert np.array_equal(split_views(picture, None, SMALL)[0], picture)


@pytest.mark.parametrize(
    "picture", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 3), np.float32)]
)
def test_other_arrays_are_refused(picture: Any) -> None:
    with pytest.raises(InvalidRequestError, match=r"uint8 \[H, W, 3\]"):
        split_views(picture, None, None)


@pytest.mark.parametrize("size", [(0, 5), (5, 0), (-1, 5)])
def test_no_pixels_no_views(size: tuple[int, int]) -> None:
    for ask in (lambda: views_per_picture(size, SMALL), lambda: fitted_size(size, (2, 2))):
        with pytest.raises(InvalidRequestError, match=f"at least one pixel, got {size[1]}x{size[0]}"):
            ask()


def test_no_resolution_to_choose_from() -> None:
    with pytest.raises(InvalidRequestError, match="no resolution"):
        best_resolution((5, 5), ())


def test_an_unknown_filter_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="resample=77"):
        split_views(noise(40, 50), FrameResize(size=(32, 32)), Tiling(32, ((32, 64),), resample=77))


def test_a_canvas_that_would_fill_the_memory_is_refused() -> None:
    tiling = Tiling(1, ((1, 2), (MAX_RESIZED_PIXELS, 2)))
    assert split_views(noise(1, 2), FrameResize(size=(1, 1)), tiling).shape == (3, 1, 1, 3)
    with pytest.raises(MediaLimitError, match=f"2x{MAX_RESIZED_PIXELS} for tiles"):
        write_views(noise(3000, 1), FrameResize(size=(1, 1)), tiling, np.empty((1, 1, 1, 3), np.uint8))
