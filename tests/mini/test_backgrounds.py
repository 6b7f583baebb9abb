from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from fastervlm_video.mini.backgrounds import backdrop
from fastervlm_video.mini.scenes import OUT_OF_DISTRIBUTION, SceneStyle
from tests.mini.kit import FloatArray

SHAKY_PATTERNS = OUT_OF_DISTRIBUTION
SHAKY_CLOUDS = replace(OUT_OF_DISTRIBUTION, backgrounds="cloudy")
families = pytest.mark.parametrize("style", [SHAKY_PATTERNS, SHAKY_CLOUDS], ids=["patterned", "cloudy"])
SIZES = [(112, 112), (180, 320), (256, 192), (336, 336), (30, 44)]


def views(
    style: SceneStyle, moved_px: Sequence[tuple[float, float]], size: tuple[int, int], seed: int = 0
) -> FloatArray:
    return backdrop(np.random.default_rng(seed), style, np.array(moved_px, np.float32), size)


@families
@pytest.mark.parametrize("size", SIZES)
def test_a_view_moved_by_whole_pixels_shows_the_same_pixels_elsewhere(style: SceneStyle, size: tuple[int, int]) -> None:
    """Up to the edges, and as far as the camera goes: the filter reads no end of what is drawn."""
    height, width = size
    far = int(style.camera_reach * min(size))
    moves = [(0, 0), (far, far), (-far, -far), (far, -1)]
    frames = views(style, moves, size)
    assert frames.shape == (4, height, width, 3)
    assert frames.dtype == np.float32
    for frame, (x, y) in zip(frames, moves, strict=True):
        here = frame[max(0, y) : height + min(0, y), max(0, x) : width + min(0, x)]
        there = frames[0, max(0, -y) : height + min(0, -y), max(0, -x) : width + min(0, -x)]
        assert np.abs(here - there).max() < 0.01
        assert frame.std() > 5


@families
@pytest.mark.parametrize("size", [(144, 144), (180, 320)])
def test_a_view_moves_by_fractions_of_a_pixel(style: SceneStyle, size: tuple[int, int]) -> None:
    """Centres of pixels that have moved by a third are centres of pixels in a frame that is three times as large."""
    third = 1 / 3
    fine = views(style, [(0, 0)], (3 * size[0], 3 * size[1]))[0]
    moves = [(0.0, 0.0), (third, 0.0), (0.0, -third), (-third, third)]
    for frame, (x, y) in zip(views(style, moves, size), moves, strict=True):
        column, row = (1 - round(3 * moved) for moved in (x, y))
        assert np.abs(frame - fine[row::3, column::3]).max() < 0.01


def test_without_a_shake_there_is_one_view_and_no_margin() -> None:
    steady = replace(SHAKY_PATTERNS, camera_shake=0.0)
    frames = views(steady, [(0, 0)] * 3, (90, 120))
    assert (frames == frames[0]).all()
    shaken = views(SHAKY_PATTERNS, [(0, 0)], (90, 120))
    inner = (slice(4, -4), slice(4, -4))  # at the edges the filter finds margin in one, and an end in the other
    assert np.abs(frames[0][inner] - shaken[0][inner]).max() < 0.01
