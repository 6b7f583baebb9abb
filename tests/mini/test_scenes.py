import numpy as np
import pytest

from fastervlm_video.errors import InvalidRequestError
from fastervlm_video.mini import COLORS, SHAPES, MovingShape, Scene, random_scene, render_scene

HEIGHT, WIDTH = 60, 80


def render(
    *objects: MovingShape, num_frames: int = 3, seed: int = 0
) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return render_scene(Scene(objects, seed), num_frames=num_frames, height=HEIGHT, width=WIDTH)


def is_color(pixel: np.ndarray[tuple[int, ...], np.dtype[np.uint8]], color: str) -> bool:
    return bool((pixel == COLORS[color]).all())


def test_scenes_follow_from_the_seed() -> None:
    for seed in range(5):
        assert random_scene(seed) == random_scene(seed)
        frames = [render_scene(random_scene(seed), num_frames=2, height=HEIGHT, width=WIDTH) for _ in range(2)]
        assert (frames[0] == frames[1]).all()
    assert len({random_scene(seed) for seed in range(20)}) == 20


def test_random_scenes_are_made_of_known_and_different_things() -> None:
    scenes = [random_scene(seed) for seed in range(50)]
    assert {len(scene.objects) for scene in scenes} == {1, 2, 3}
    for scene in scenes:
        for values, known in (([o.shape for o in scene.objects], SHAPES), ([o.color for o in scene.objects], COLORS)):
            assert len(set(values)) == len(values)
            assert set(values) <= set(known)
        for item in scene.objects:
            assert all(0 < share < 1 for share in (*item.start, *item.end))
            assert 0 < item.radius < 0.5


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("color", COLORS)
def test_a_shape_is_where_it_should_be_and_has_its_colour(shape: str, color: str) -> None:
    frames = render(MovingShape(shape, color, 0.2, (0.25, 0.5), (0.75, 0.5)))
    assert frames.shape == (3, HEIGHT, WIDTH, 3)
    assert frames.dtype == np.uint8
    for frame, x in zip(frames, (0.25, 0.5, 0.75), strict=True):
        matches = (frame == COLORS[color]).all(axis=2)
        rows, columns = np.nonzero(matches)
        assert matches[HEIGHT // 2, int(x * WIDTH)]
        assert abs(columns.mean() - x * WIDTH) < 1
        assert np.ptp(columns) <= 2 * 0.2 * HEIGHT
        assert rows.min() > HEIGHT * 0.25
        assert rows.max() < HEIGHT * 0.75


def test_shapes_differ_in_the_area_they_cover() -> None:
    areas = {}
    for shape in SHAPES:
        scene = Scene((MovingShape(shape, "white", 0.4, (0.5, 0.5), (0.5, 0.5)),), seed=0)
        frame = render_scene(scene, num_frames=1, height=400, width=400)[0]
        areas[shape] = (frame == COLORS["white"]).all(axis=2).sum() / (0.4 * 400) ** 2
    assert areas["circle"] == pytest.approx(np.pi, rel=0.03)
    assert areas["square"] == pytest.approx((2 * 0.85) ** 2, rel=0.03)
    assert areas["triangle"] == pytest.approx(0.75 * np.sqrt(3), rel=0.03)


def test_later_objects_cover_earlier_ones() -> None:
    here = (0.5, 0.5)
    frame = render(MovingShape("circle", "red", 0.3, here, here), MovingShape("square", "blue", 0.1, here, here))[0]
    assert is_color(frame[HEIGHT // 2, WIDTH // 2], "blue")
    assert is_color(frame[HEIGHT // 2, WIDTH // 2 + int(0.2 * HEIGHT)], "red")


def test_an_empty_scene_is_a_background_that_flickers_a_little() -> None:
    frames = render(num_frames=2).astype(int)
    assert (frames[0] != frames[1]).any()
    assert np.abs(frames[0] - frames[1]).mean() < 15
    assert (frames != render(num_frames=2, seed=1)).any()


def test_one_frame_shows_the_start() -> None:
    frame = render(MovingShape("circle", "green", 0.2, (0.25, 0.25), (0.9, 0.9)), num_frames=1)[0]
    assert is_color(frame[HEIGHT // 4, WIDTH // 4], "green")


def test_an_unknown_shape_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="'hexagon'; one of circle, square, triangle"):
        render(MovingShape("hexagon", "red", 0.1, (0.5, 0.5), (0.5, 0.5)))
