from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest

from fastervlm_video.config import FrameResize
from fastervlm_video.errors import InvalidRequestError
from fastervlm_video.media import apply_resize
from fastervlm_video.mini import render_scene, render_scenes
from fastervlm_video.mini.render import frame_times, object_coverage, signed_distance
from fastervlm_video.mini.scenes import COLORS, OUT_OF_DISTRIBUTION, SHAPES, STANDARD, Scenes, SceneStyle
from tests.mini.kit import (
    QUIET,
    BoolArray,
    corners,
    draw,
    every,
    in_polygon,
    nearest_color,
    outline_distance,
    seen_objects,
)

SIDE = 112
TIMES = frame_times(8)
styles = pytest.mark.parametrize("style", [STANDARD, OUT_OF_DISTRIBUTION], ids=["standard", "out-of-distribution"])
QUIET_PATTERNS = replace(QUIET, backgrounds="patterned", min_objects=2, max_objects=4, onset_slots=(0, 1.5, 3, 4.5))


def grown(mask: BoolArray) -> BoolArray:
    """A mask [H, W] and the pixels next to it."""
    padded = np.pad(mask, 1)
    height, width = mask.shape
    near: BoolArray = np.any([padded[y : y + height, x : x + width] for y in range(3) for x in range(3)], axis=0)
    return near


def without_objects(scenes: Scenes) -> Scenes:
    return replace(scenes, count=np.zeros_like(scenes.count))


@styles
def test_a_scene_looks_the_same_whatever_others_are_drawn_with_it(style: SceneStyle) -> None:
    scenes = draw(0, 5, style)
    together = render_scenes(scenes, every(scenes, TIMES), height=SIDE, width=SIDE)
    assert together.shape == (5, 8, SIDE, SIDE, 3)
    assert together.dtype == np.uint8
    for index in range(5):
        alone = render_scenes(scenes[index : index + 1], TIMES[None], height=SIDE, width=SIDE)
        assert np.array_equal(alone[0], together[index])
    assert len({video.tobytes() for video in together}) == 5


@styles
def test_a_scene_looks_the_same_at_whatever_other_times_it_is_drawn(style: SceneStyle) -> None:
    scene = draw(1, 1, style)
    video = render_scenes(scene, TIMES[None], height=40, width=60)[0]
    some = render_scenes(scene, TIMES[None, [6, 1]], height=40, width=60)[0]
    assert np.array_equal(some, video[[6, 1]])


def test_frames_take_any_size() -> None:
    scene = draw(2)
    assert render_scenes(scene, TIMES[None, :2], height=30, width=44).shape == (1, 2, 30, 44, 3)
    assert render_scenes(scene, TIMES[None, :1]).shape == (1, 1, SIDE, SIDE, 3)
    assert render_scene(scene, num_frames=3, height=50, width=34).shape == (3, 50, 34, 3)


def test_a_video_shows_the_scene_from_beginning_to_end() -> None:
    assert frame_times(5).tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert frame_times(1).tolist() == [0.5]
    scene = draw(3)
    video = render_scene(scene, num_frames=5, height=30, width=30)
    assert np.array_equal(video[1], render_scenes(scene, np.array([[0.25]], np.float32), height=30, width=30)[0, 0])


@pytest.mark.parametrize("style", [QUIET, QUIET_PATTERNS], ids=["cloudy", "patterned"])
def test_an_objects_colour_is_found_where_it_is(style: SceneStyle) -> None:
    scenes = draw(4, 12, style)
    frames = render_scenes(scenes, every(scenes, TIMES), height=SIDE, width=SIDE).astype(np.float32)
    looked = 0
    for index in range(len(scenes)):
        seen = seen_objects(scenes, index, TIMES)
        for number, item in enumerate(seen):
            for frame, x, y in item.sightings:
                later = [(u, v) for other in seen[number + 1 :] for f, u, v in other.sightings if f == frame]
                if all(np.hypot(u - x, v - y) > 0.2 for u, v in later):
                    column, row = int(x * SIDE), int(y * SIDE)
                    patch = frames[index, frame, row - 1 : row + 2, column - 1 : column + 2]
                    assert nearest_color(patch.mean(axis=(0, 1))) == item.color
                    looked += 1
    assert looked > 80


def test_what_is_covered_is_painted_and_what_is_not_is_left_alone() -> None:
    """Pixel by pixel: the grid is as fine as the picture. Soft edges may reach into the next pixel."""
    scenes = draw(5, 4, QUIET)
    times = every(scenes, TIMES[[0, 4, 7]])
    drawn = render_scenes(scenes, times, height=SIDE, width=SIDE).astype(int)
    empty = render_scenes(without_objects(scenes), times, height=SIDE, width=SIDE).astype(int)
    coverage = object_coverage(scenes, times, (SIDE, SIDE)).reshape(4, 3, 3, SIDE, SIDE)
    for index, frame in np.ndindex(4, 3):
        changed = (drawn[index, frame] != empty[index, frame]).any(axis=-1)
        most = coverage[index, :, frame].max(axis=0)
        assert not changed[~grown(most > 0)].any()
        for item in range(scenes.count[index]):
            alone = coverage[index, item, frame] == 1
            others = np.delete(coverage[index, :, frame], item, axis=0).max(axis=0) > 0
            core = alone & ~grown(coverage[index, item, frame] < 1) & ~grown(others)
            if scenes.onset[index, item] > times[index, frame]:
                assert not alone.any()
                continue
            assert core.sum() > 40
            assert changed[core].all()
            name = list(COLORS)[scenes.color[index, item]]
            assert {nearest_color(pixel) for pixel in drawn[index, frame][core].astype(np.float32)} == {name}


def test_coverage_is_the_share_of_each_patch_that_lies_in_the_shape() -> None:
    grid, fine = (8, 8), 24
    scenes = draw(6, 8)
    times = every(scenes, [0.0, 0.61, 1.0])
    coverage = object_coverage(scenes, times, grid)
    assert coverage.shape == (8, 3, 3, 64)
    assert coverage.dtype == np.float32
    y, x = (np.mgrid[0 : 8 * fine, 0 : 8 * fine] + 0.5) / (8 * fine)
    for index in range(8):
        shown = {SHAPES[scenes.shape[index, n]]: n for n in range(3)}
        expected = np.zeros((3, 3, 64))
        for item in seen_objects(scenes, index, times[index]):
            n = shown[item.shape]
            outline = corners(item.shape, float(scenes.radius[index, n]))
            for frame, u, v in item.sightings:
                inside = in_polygon(outline, x - u, y - v)
                expected[n, frame] = inside.reshape(8, fine, 8, fine).mean(axis=(1, 3)).ravel()
        assert coverage[index] == pytest.approx(expected, abs=0.04)


@pytest.mark.parametrize("shape", SHAPES)
def test_signed_distances_agree_with_the_outline(shape: str) -> None:
    radius = 10.0
    rng = np.random.default_rng(0)
    x, y = rng.uniform(-14, 14, (2, 4000)).astype(np.float32)
    distance = signed_distance(SHAPES.index(shape), x, y, np.full(4000, radius, np.float32))
    assert distance.dtype == np.float32
    outline = corners(shape, radius)
    inside, to_outline = in_polygon(outline, x, y), outline_distance(outline, x, y)
    clear = to_outline > 0.01
    assert np.array_equal(distance[clear] < 0, inside[clear])
    assert (np.abs(distance) <= to_outline + 0.01).all()  # never more: soft edges are nowhere sharper than meant
    if shape != "cross":  # convex: inside, the nearest edge decides
        assert distance[inside] == pytest.approx(-to_outline[inside], abs=0.01)


@pytest.mark.parametrize(("height", "width"), [(112, 200), (200, 112), (168, 300), (224, 170)])
def test_the_square_is_the_middle_of_a_frame_that_is_not_square(height: int, width: int) -> None:
    """So that resizing and cropping, as the model's preprocessor does, gives the square that coverage speaks of."""
    scenes = draw(7, 3, QUIET)
    times = every(scenes, [1.0])
    resize = FrameResize(shortest_edge=SIDE, crop=(SIDE, SIDE))

    def cropped(shown: Scenes) -> npt.NDArray[np.int64]:
        frames = render_scenes(shown, times, height=height, width=width)[:, 0]
        return np.stack([apply_resize(frame, resize) for frame in frames]).astype(np.int64)

    changed = np.abs(cropped(scenes) - cropped(without_objects(scenes))).max(axis=-1) > 12
    covered = object_coverage(scenes, times, (SIDE, SIDE)).max(axis=1).reshape(3, SIDE, SIDE) > 0.5
    overlap = (changed & covered).sum() / (changed | covered).sum()
    assert overlap > 0.87


def test_a_post_stands_in_front_of_everything() -> None:
    style = replace(QUIET, occluder_share=1.0)
    scenes = draw(8, 3, style)
    for video in render_scenes(scenes, every(scenes, TIMES), height=SIDE, width=SIDE):
        grey = (video == 95).all(axis=(0, 1, 3))  # columns that are grey from top to bottom, in every frame
        assert grey.sum() == round(0.045 * SIDE)


def test_light_shake_and_grain_change_the_picture_from_frame_to_frame() -> None:
    scenes = draw(9, 1, replace(QUIET, min_objects=1, max_objects=3))
    scene = replace(scenes, direction=np.full_like(scenes.direction, 4), end=scenes.start, onset=0 * scenes.onset)

    def frames(style: SceneStyle) -> npt.NDArray[np.int64]:
        drawn = render_scenes(replace(scene, style=style), TIMES[None], height=48, width=48)
        shown: npt.NDArray[np.int64] = drawn[0].astype(np.int64)
        return shown

    still = frames(QUIET)
    assert (still == still[0]).all()
    for style in (replace(QUIET, noise=8.0), replace(QUIET, shake=0.05)):
        unsteady = frames(style)
        assert all((unsteady[index] != unsteady[0]).any() for index in range(1, 8))
    drift = frames(replace(QUIET, light_drift=0.5)).mean(axis=(1, 2, 3))
    steps = np.diff(drift)
    assert (steps > 0).all() or (steps < 0).all()


def test_what_cannot_be_drawn_is_refused() -> None:
    scenes = draw(0, 2)
    with pytest.raises(InvalidRequestError, match=r"times must be \[scenes, frames\] for 2 scenes, got \(8,\)"):
        render_scenes(scenes, TIMES)
    with pytest.raises(InvalidRequestError, match=r"for 2 scenes, got \(1, 8\)"):
        render_scenes(scenes, TIMES[None])
    with pytest.raises(InvalidRequestError, match="draws one scene, got 2"):
        render_scene(scenes)
