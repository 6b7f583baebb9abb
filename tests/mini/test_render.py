import hashlib
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest

from fastervlm_video.config import FrameResize
from fastervlm_video.errors import InvalidRequestError
from fastervlm_video.media import apply_resize
from fastervlm_video.mini import render_scene, render_scenes
from fastervlm_video.mini.render import frame_times, object_coverage, signed_distance
from fastervlm_video.mini.scenes import CLOSE_UP, COLORS, OUT_OF_DISTRIBUTION, SHAPES, STANDARD, Scenes, SceneStyle
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

# Of frames and of coverage, before there was a camera that shakes.
STYLE_HASHES = {
    STANDARD: (
        "a77112582091aa95daa4284cf2a90d1b9be755995f6e627dae53c742985cad93",
        "b18e37401b85e0a0aa730c4c24daab572b65a3a87ca87ac66ec7408d1d1810e9",
    ),
    CLOSE_UP: (
        "5b4f471a3ce0a353a2154f372075d929dbcd9c4a436e4400f6e7367dc30740fa",
        "9d02e4a452d25189c2923eb043fb2847a7d00792c4b914b3215e268cc41e1d3b",
    ),
}


def grown(mask: BoolArray) -> BoolArray:
    """A mask [H, W] and the pixels next to it."""
    padded = np.pad(mask, 1)
    height, width = mask.shape
    near: BoolArray = np.any([padded[y : y + height, x : x + width] for y in range(3) for x in range(3)], axis=0)
    return near


SHAKY = replace(QUIET_PATTERNS, camera_shake=0.03)


def at_rest(scenes: Scenes) -> Scenes:
    return replace(scenes, style=replace(scenes.style, camera_shake=0.0))


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
    assert render_scenes(scene, TIMES[None, :0]).shape == (1, 0, SIDE, SIDE, 3)


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


@pytest.mark.parametrize("camera_shake", [0.0, 0.03], ids=["camera-at-rest", "camera-shakes"])
def test_what_is_covered_is_painted_and_what_is_not_is_left_alone(camera_shake: float) -> None:
    """Pixel by pixel: the grid is as fine as the picture. Soft edges may reach into the next pixel."""
    scenes = draw(5, 4, replace(QUIET, camera_shake=camera_shake))
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


def best_shift(still: npt.NDArray[np.int64], moved: npt.NDArray[np.int64], most: int = 13) -> tuple[int, int]:
    """By how many whole pixels (x, y) one picture must be moved to be most like the other."""
    inner = slice(most, -most)
    shifts = [(x, y) for x in range(-most, most + 1) for y in range(-most, most + 1)]
    return min(
        shifts, key=lambda shift: ((np.roll(still, shift[::-1], (0, 1)) - moved)[inner, inner].astype(float) ** 2).sum()
    )


def test_the_background_moves_with_the_camera() -> None:
    scenes = without_objects(draw(10, 3, replace(SHAKY, backgrounds="cloudy", max_distractors=3)))
    times = every(scenes, TIMES[[0, 3, 7]])
    frames = render_scenes(scenes, times, height=SIDE, width=SIDE).astype(np.int64)
    moved_px = scenes.camera(times) * SIDE
    for video, at in zip(frames, moved_px, strict=True):
        for frame in (1, 2):
            between = at[frame] - at[0]
            assert np.abs(between).max() < 13
            assert best_shift(video[0], video[frame]) == pytest.approx(between, abs=0.75)
    assert np.abs(np.diff(moved_px, axis=1)).max() > 3


@pytest.mark.parametrize(("height", "width"), [(112, 112), (120, 200)])
def test_objects_move_with_the_camera(height: int, width: int) -> None:
    """The light that shows on them aside, what they change has its centre of mass where they are in the picture."""
    scenes = draw(11, 6, replace(SHAKY, min_objects=1, max_objects=1, radius=(0.08, 0.09), displacement=(0.3, 0.5)))
    scenes = replace(scenes, shape=np.full_like(scenes.shape, SHAPES.index("circle")), onset=0 * scenes.onset)
    times = every(scenes, TIMES)
    with_it, without = (
        render_scenes(shown, times, height=height, width=width).astype(int)
        for shown in (scenes, without_objects(scenes))
    )
    side = min(height, width)
    offset = np.array([width - side, height - side]) / 2
    centres = (scenes.positions(times)[:, 0] + scenes.camera(times)) * side + offset
    changed = (np.abs(with_it - without).max(axis=-1) > 6).astype(float)
    rows, columns = np.mgrid[0:height, 0:width] + 0.5
    looked = 0
    for at, weights in zip(centres.reshape(-1, 2), changed.reshape(-1, height, width), strict=True):
        if ((at > offset + 0.1 * side) & (at < offset + 0.9 * side)).all():  # wholly in the picture
            mass = [(weights * line).sum() / weights.sum() for line in (columns, rows)]
            assert mass == pytest.approx(at, abs=0.35)
            looked += 1
    assert looked > 24


@pytest.mark.parametrize(("height", "width"), [(112, 112), (120, 200)])
def test_the_post_moves_with_the_camera_and_by_fractions_of_a_pixel(height: int, width: int) -> None:
    scenes = without_objects(draw(8, 12, replace(SHAKY, occluder_share=1.0)))
    times, side = every(scenes, TIMES), min(height, width)
    bare, steady, shaken = (
        render_scenes(shown, times, height=height, width=width).astype(float)
        for shown in (replace(scenes, style=SHAKY), at_rest(scenes), scenes)
    )
    steady_left = (steady == 95).all(axis=(1, 2, 4)).argmax(axis=1)  # [B]
    contrast = 95 - bare
    clear = np.abs(contrast) > 25
    shares = np.divide(shaken - bare, contrast, where=clear, out=np.zeros_like(bare))
    shares = shares.sum(axis=(2, 4)) / np.maximum(clear.sum(axis=(2, 4)), 1)  # [B, F, W], of each column
    seen_through = clear.sum(axis=(2, 4)).min(axis=(1, 2)) > 30  # a background as grey as the post hides it
    assert seen_through.sum() >= 4
    columns = np.arange(width) + 0.5
    post = max(1, round(0.045 * side))
    centres = (shares * columns).sum(axis=2) / shares.sum(axis=2)
    expected = steady_left[:, None] + post / 2 + scenes.camera(times)[..., 0] * side
    assert shares.sum(axis=2)[seen_through] == pytest.approx(post, abs=0.1)
    assert centres[seen_through] == pytest.approx(expected[seen_through], abs=0.1)


def test_the_grain_is_the_sensors_and_stays() -> None:
    scenes = draw(14, 4, replace(SHAKY, noise=9.0))
    times = every(scenes, TIMES)

    def grain(shown: Scenes) -> npt.NDArray[np.int64]:
        smooth = replace(shown, style=replace(shown.style, noise=0.0))
        noisy, clean = (render_scenes(each, times, height=48, width=48).astype(np.int64) for each in (shown, smooth))
        return np.where((noisy > 0) & (noisy < 255) & (clean > 0) & (clean < 255), noisy - clean, 0)

    still, shaken = grain(at_rest(scenes)), grain(scenes)
    both = (still != 0) & (shaken != 0)
    assert np.abs(still - shaken)[both].max() <= 2  # four roundings
    assert both.mean() > 0.8
    assert still.std() > 5


@pytest.mark.parametrize("style", STYLE_HASHES, ids=["standard", "close-up"])
def test_what_the_shipped_weights_were_trained_on_is_drawn_to_the_byte(style: SceneStyle) -> None:
    """Whatever is added to scenes or to how they are drawn; the held-out benchmark depends on it, too."""
    scenes = draw(11, 12, style)
    digest = hashlib.sha256(render_scenes(scenes, every(scenes, TIMES), height=SIDE, width=SIDE).tobytes())
    wide = scenes[:4]
    digest.update(render_scenes(wide, every(wide, TIMES), height=90, width=160).tobytes())
    coverage = hashlib.sha256(object_coverage(scenes, every(scenes, TIMES), (8, 8)).tobytes())
    assert (digest.hexdigest(), coverage.hexdigest()) == STYLE_HASHES[style]


def test_light_shake_and_grain_change_the_picture_from_frame_to_frame() -> None:
    scenes = draw(9, 1, replace(QUIET, min_objects=1, max_objects=3))
    scene = replace(scenes, direction=np.full_like(scenes.direction, 4), end=scenes.start, onset=0 * scenes.onset)

    def frames(style: SceneStyle) -> npt.NDArray[np.int64]:
        drawn = render_scenes(replace(scene, style=style), TIMES[None], height=48, width=48)
        shown: npt.NDArray[np.int64] = drawn[0].astype(np.int64)
        return shown

    still = frames(QUIET)
    assert (still == still[0]).all()
    for style in (replace(QUIET, noise=8.0), replace(QUIET, jitter=0.05), replace(QUIET, camera_shake=0.05)):
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
