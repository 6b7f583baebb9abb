from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastervlm_video.mini import COLORS, SHAPES, random_scene, sample_scenes, scenes
from fastervlm_video.mini.render import frame_times
from fastervlm_video.mini.scenes import (
    CLOSE_UP,
    DIRECTIONS,
    FRAME_STEP,
    OUT_OF_DISTRIBUTION,
    STANDARD,
    Scenes,
    SceneStyle,
)
from tests.mini.kit import UNIT_VECTORS, draw, every, same

styles = pytest.mark.parametrize("style", [STANDARD, OUT_OF_DISTRIBUTION], ids=["standard", "out-of-distribution"])
any_seed = given(seed=st.integers(0, 2**32))
few = settings(max_examples=20, deadline=None)
MOMENTS = np.linspace(0, 1, 41, dtype=np.float32)


@styles
def test_scenes_follow_from_the_seed(style: SceneStyle) -> None:
    assert same(draw(3, 20, style), draw(3, 20, style))
    assert not same(draw(3, 20, style), draw(4, 20, style))
    assert same(random_scene(5, style), sample_scenes(np.random.default_rng(5), 1, style))
    assert len(random_scene(5, style)) == 1
    assert random_scene(5, style).style == style


@styles
@few
@any_seed
def test_objects_of_a_scene_differ_in_colour_and_in_shape(style: SceneStyle, seed: int) -> None:
    drawn = draw(seed, 10, style)
    for values, known in ((drawn.color, len(COLORS)), (drawn.shape, len(SHAPES))):
        assert values.shape == (10, style.max_objects)
        assert ((values >= 0) & (values < known)).all()
        assert all(len(set(row)) == len(row) for row in values.tolist())
    assert ((drawn.direction >= 0) & (drawn.direction < len(DIRECTIONS))).all()
    assert ((drawn.count >= style.min_objects) & (drawn.count <= style.max_objects)).all()
    assert ((drawn.radius >= style.radius[0]) & (drawn.radius <= style.radius[1])).all()


@styles
def test_everything_there_is_to_draw_is_drawn(style: SceneStyle) -> None:
    drawn = draw(0, 300, style)
    assert set(drawn.count.tolist()) == set(range(style.min_objects, style.max_objects + 1))
    for values, known in ((drawn.color, COLORS), (drawn.shape, SHAPES), (drawn.direction, DIRECTIONS)):
        for place in values.T:
            counts = np.bincount(place, minlength=len(known))
            assert counts.min() > 300 / len(known) / 2, counts
    assert len(set(drawn.seed.tolist())) == 300


@styles
@few
@any_seed
def test_objects_stay_in_the_square_at_all_times(style: SceneStyle, seed: int) -> None:
    drawn = draw(seed, 10, style)
    centres, radius = drawn.positions(every(drawn, MOMENTS)), drawn.radius[:, :, None, None]
    assert centres.shape == (10, style.max_objects, len(MOMENTS), 2)
    assert (centres - radius > 0).all()
    assert (centres + radius < 1).all()


@styles
@few
@any_seed
def test_objects_appear_one_by_one_each_in_a_frame_of_its_own_and_are_seen_twice(style: SceneStyle, seed: int) -> None:
    drawn = draw(seed, 10, style)
    for onsets in drawn.onset.tolist():
        gaps = np.diff(sorted(onsets))
        assert gaps.min() > 0.69 * FRAME_STEP  # no two at once, nor nearly
    shown = drawn.visible(every(drawn, frame_times(8)))
    for row, count in zip(shown, drawn.count, strict=True):
        first = [frames.argmax() for frames in row[:count]]
        assert len(set(first)) == count
        assert row[:count, -2:].all()


@styles
@few
@any_seed
def test_what_has_appeared_stays_and_what_does_not_exist_never_appears(style: SceneStyle, seed: int) -> None:
    drawn = draw(seed, 10, style)
    visible = drawn.visible(every(drawn, MOMENTS))
    assert visible.shape == (10, style.max_objects, len(MOMENTS))
    assert (visible[..., 1:] >= visible[..., :-1]).all()
    for b in range(10):
        for n in range(style.max_objects):
            expected = n < drawn.count[b]
            assert drawn.exists[b, n] == expected
            assert visible[b, n].tolist() == [expected and time >= drawn.onset[b, n] for time in MOMENTS]


def test_an_object_is_there_at_its_onset_and_not_just_before() -> None:
    drawn = draw(1, 50)
    for n in range(drawn.color.shape[1]):
        onset = drawn.onset[:, n]
        at, before = drawn.visible(onset[:, None])[:, n, 0], drawn.visible(onset[:, None] - 1e-6)[:, n, 0]
        assert (at == drawn.exists[:, n]).all()
        assert not before.any()


@styles
@few
@any_seed
def test_objects_go_where_their_direction_says(style: SceneStyle, seed: int) -> None:
    drawn = draw(seed, 10, style)
    least, most = style.displacement
    for b in range(10):
        for n in range(style.max_objects):
            name = list(DIRECTIONS)[drawn.direction[b, n]]
            move = drawn.end[b, n] - drawn.start[b, n]
            if name == "still":
                assert (move == 0).all()
            else:
                distance = float(move @ UNIT_VECTORS[name])
                assert least - 1e-6 <= distance <= most + 1e-6
                assert move == pytest.approx(UNIT_VECTORS[name] * distance, abs=1e-6)


def test_objects_move_evenly_from_their_onset_to_the_end() -> None:
    drawn = draw(2, 30)
    onset = drawn.onset[:, :1]
    times = np.concatenate([0 * onset, onset, onset + (1 - onset) / 4, onset / 2 + 0.5, 0 * onset + 1], axis=1)
    first = drawn.positions(times)[:, 0]
    start, end = drawn.start[:, 0], drawn.end[:, 0]
    for place, share in zip(first.transpose(1, 0, 2), (0, 0, 0.25, 0.5, 1), strict=True):
        assert place == pytest.approx(start + share * (end - start), abs=1e-5)


def test_a_part_of_the_scenes_is_scenes() -> None:
    drawn = draw(3, 6, OUT_OF_DISTRIBUTION)
    part, chosen = drawn[1:3], drawn[np.array([4, 1])]
    assert len(part) == len(chosen) == 2
    assert part.style == chosen.style == OUT_OF_DISTRIBUTION
    assert same(part[1:], drawn[2:3])
    assert same(chosen[1:], part[:1])
    assert chosen.seed.tolist() == [drawn.seed[4], drawn.seed[1]]
    times = every(drawn, MOMENTS)
    assert np.array_equal(chosen.positions(times[:2]), drawn.positions(times)[[4, 1]])


SHAKY = SceneStyle(camera_shake=0.02)


def test_a_camera_that_shakes_draws_the_same_scenes_and_one_at_rest_stays_where_it_is() -> None:
    shaky, steady = draw(5, 8, SHAKY), draw(5, 8)
    assert same(replace(shaky, style=STANDARD), steady)
    assert STANDARD.camera_shake == CLOSE_UP.camera_shake == 0
    moved = steady.camera(every(steady, MOMENTS))
    assert moved.shape == (8, len(MOMENTS), 2)
    assert moved.dtype == np.float32
    assert not moved.any()


def test_the_camera_follows_from_a_scenes_seed_whenever_and_with_whatever_others_it_is_asked_for() -> None:
    drawn = draw(6, 5, SHAKY)
    moved = drawn.camera(every(drawn, MOMENTS))
    assert moved.dtype == np.float32
    assert np.array_equal(drawn[3:4].camera(MOMENTS[None]), moved[3:4])
    some = [30, 2, 17]
    assert np.array_equal(drawn.camera(every(drawn, MOMENTS[some])), moved[:, some])
    assert len({path.tobytes() for path in moved}) == 5
    others = replace(drawn, color=drawn.color[::-1], start=drawn.start[::-1])  # how objects look or move is no matter
    assert np.array_equal(others.camera(every(drawn, MOMENTS)), moved)


def test_the_camera_wanders_smoothly_around_the_middle_and_never_too_far() -> None:
    drawn = draw(7, 400, SHAKY)
    at_knots = drawn.camera(every(drawn, np.linspace(0, 1, 9, dtype=np.float32)))
    assert at_knots.std() == pytest.approx(0.02, rel=0.05)
    assert abs(at_knots.mean()) < 0.001
    assert abs(np.corrcoef(at_knots[..., 0].ravel(), at_knots[..., 1].ravel())[0, 1]) < 0.05
    fine = drawn.camera(every(drawn, np.linspace(0, 1, 401, dtype=np.float32)))
    assert SHAKY.camera_reach == pytest.approx(0.06)
    assert np.abs(fine).max() == pytest.approx(SHAKY.camera_reach)  # some would have gone further
    assert np.abs(np.diff(fine, axis=1)).max() < 0.004  # 50 steps from knot to knot
    assert (np.abs(np.diff(fine, axis=1)).max(axis=(1, 2)) > 0).all()


def smallest_gap(drawn: Scenes, index: int) -> float:
    """Between the centres of two objects that are to be seen in the same of eight frames."""
    times = every(drawn, frame_times(8))
    visible, centres = drawn.visible(times)[index], drawn.positions(times)[index].astype(np.float64)
    gaps = [
        float(np.hypot(*(centres[i, f] - centres[j, f])))
        for i in range(len(visible))
        for j in range(i)
        for f in range(8)
        if visible[i, f] and visible[j, f]
    ]
    return min(gaps, default=np.inf)


def test_of_several_placements_the_one_with_the_widest_gaps_is_taken() -> None:
    drawn = draw(4, 12)
    move = drawn.end - drawn.start
    starts = np.random.default_rng(0).random((3, *drawn.start.shape), np.float32)
    chosen = scenes._clearest(drawn, starts, move)
    for b in range(12):
        gaps = [smallest_gap(replace(drawn, start=start, end=start + move), b) for start in starts]
        assert gaps[chosen[b]] == pytest.approx(max(gaps), abs=1e-6)
