"""What a batch of frames says of itself, and what it refuses to be."""

import numpy as np
import pytest

from fastervlm_video.errors import InvalidRequestError
from fastervlm_video.media import FrameBatch, VideoInfo

INFO = VideoInfo(2.0, 64, 48, "mov", "h264")


def batch(rows: int, views: int = 1) -> FrameBatch:
    times = tuple(float(index // views) for index in range(rows))
    return FrameBatch(np.zeros((rows, 4, 4, 3), np.uint8), times, INFO, views)


def test_a_frame_is_one_view_unless_said_otherwise() -> None:
    plain = FrameBatch(np.zeros((3, 4, 4, 3), np.uint8), (0.0, 1.0, 1.0), INFO)
    assert (plain.views_per_frame, plain.num_frames, plain.num_pictures) == (1, 3, 3)
    assert repr(plain) == f"FrameBatch(3x4x4x3 uint8, 0.000..1.000 s, {INFO})"


def test_rows_and_pictures_are_counted_apart() -> None:
    views = batch(6, views=3)
    assert (views.num_frames, views.num_pictures, views.size_bytes) == (6, 2, 6 * 48)
    assert repr(views) == f"FrameBatch(6x4x4x3 uint8 (2 x 3 views), 0.000..1.000 s, {INFO})"


@pytest.mark.parametrize("views", [4, 7, 0, -3])
def test_views_that_do_not_come_out_even_are_refused(views: int) -> None:
    with pytest.raises(InvalidRequestError, match=f"6 rows are not pictures of {views} views"):
        FrameBatch(np.zeros((6, 4, 4, 3), np.uint8), (0.0,) * 6, INFO, views)


@pytest.mark.parametrize("times", [(0.0,), (0.0, 2.0, 1.0), ()])
def test_times_that_do_not_fit_are_refused(times: tuple[float, ...]) -> None:
    with pytest.raises(InvalidRequestError, match="timestamps"):
        FrameBatch(np.zeros((3, 4, 4, 3), np.uint8), times, INFO)
