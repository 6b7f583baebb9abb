"""Against loops that do what the descriptions say, and against cases whose answer is known."""

import itertools
import math

import numpy as np
import pytest

from fastervlm_video.errors import InvalidRequestError
from fastervlm_video.eval import Draws, Sampled, sign_flip_p_value
from fastervlm_video.eval.stats import Floats

VIDEOS, BOOTSTRAP = 23, 400


def clustered(seed: int, videos: int = VIDEOS, ease: float = 0.6) -> tuple[Floats, Floats]:
    """Points and questions per video; a video is easy or hard for all of its questions."""
    generator = np.random.default_rng(seed)
    counts = generator.integers(1, 9, videos).astype(np.float64)
    return generator.binomial(counts.astype(int), generator.beta(ease, 1 - ease, videos)).astype(np.float64), counts


def test_each_draw_is_a_sample_of_whole_videos_with_replacement() -> None:
    draws = Draws(VIDEOS, BOOTSTRAP, seed=3)
    one = np.ones(VIDEOS)
    for video in range(VIDEOS):
        marked = np.zeros(VIDEOS)
        marked[video] = 1
        times = draws.accuracy(marked, one).drawn * VIDEOS
        assert np.allclose(times, np.rint(times))
        assert 0.7 < times.mean() < 1.3
        assert 0.6 < times.var() < 1.4  # of a binomial with V trials: 1 - 1/V
    assert np.allclose(draws.accuracy(one, one).drawn, 1)


def test_accuracy_and_interval_equal_a_naive_bootstrap() -> None:
    sums, counts = clustered(0)
    estimate = Draws(VIDEOS, 4000, seed=0).accuracy(sums, counts).estimate
    assert estimate.value == sums.sum() / counts.sum()
    generator = np.random.default_rng(99)
    naive = []
    for _ in range(4000):
        chosen = [int(generator.integers(VIDEOS)) for _ in range(VIDEOS)]
        naive.append(sum(sums[v] for v in chosen) / sum(counts[v] for v in chosen))
    low, high = np.percentile(naive, [2.5, 97.5])
    assert abs(estimate.low - low) < 0.015
    assert abs(estimate.high - high) < 0.015


def test_the_interval_is_wider_than_if_questions_were_independent() -> None:
    sums, counts = clustered(1, videos=100, ease=0.5)
    share, total = sums.sum() / counts.sum(), counts.sum()
    estimate = Draws(100, 2000, seed=0).accuracy(sums, counts).estimate
    assert estimate.high - estimate.low > 1.2 * 2 * 1.96 * math.sqrt(share * (1 - share) / total)


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    covered = 0
    for seed in range(200):
        sums, counts = clustered(1000 + seed, videos=60, ease=0.6)
        estimate = Draws(60, 300, seed=seed).accuracy(sums, counts).estimate
        covered += estimate.low <= 0.6 <= estimate.high
    assert 0.88 <= covered / 200 <= 0.99


def test_comparisons_are_paired() -> None:
    sums, counts = clustered(2)
    worse = np.maximum(sums - 1, 0)
    draws = Draws(VIDEOS, BOOTSTRAP, seed=0)
    a, b = draws.accuracy(sums, counts), draws.accuracy(worse, counts)
    assert np.array_equal(a.minus(b).drawn, a.drawn - b.drawn)
    assert a.minus(a).estimate.high == 0
    assert (a.over(a).estimate.low, a.over(a).estimate.high) == (1, 1)
    assert a.minus(b).estimate.low > 0  # although the two intervals overlap
    assert b.estimate.high > a.estimate.low


def test_gap_closed_draw_by_draw() -> None:
    floor, method, ceiling = (
        Sampled(v, np.array(d)) for v, d in ((0.2, [0.1, 0.3]), (0.5, [0.4, 0.6]), (0.8, [0.7, 0.9]))
    )
    closed = method.gap_closed(floor, ceiling)
    assert closed.value == pytest.approx(0.5)
    assert closed.drawn == pytest.approx([0.5, 0.5])
    assert floor.gap_closed(floor, ceiling).value == 0
    assert ceiling.gap_closed(floor, ceiling).value == 1


def test_what_is_not_defined_has_no_interval() -> None:
    draws = Draws(4, 200, seed=0)
    some = draws.accuracy(np.array([1.0, 0, 0, 0]), np.ones(4))
    nothing = draws.accuracy(np.zeros(4), np.ones(4))
    for undefined in (some.over(nothing), some.over(some)):  # draws without the first video have 0 / 0
        assert math.isnan(undefined.estimate.low)
        assert math.isnan(undefined.estimate.high)
    assert math.isnan(some.over(nothing).value)
    assert some.over(some).value == 1
    assert math.isnan(draws.accuracy(np.zeros(4), np.zeros(4)).value)


def test_draws_follow_from_the_seed() -> None:
    sums, counts = clustered(4)
    first, again, other = (Draws(VIDEOS, 50, seed=seed).accuracy(sums, counts).drawn for seed in (7, 7, 8))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def exact_sign_flip(differences: Floats) -> float:
    observed = abs(differences.sum())
    sums = [abs(np.dot(signs, differences)) for signs in itertools.product((-1, 1), repeat=len(differences))]
    return float(np.mean([value >= observed - 1e-9 for value in sums]))


@pytest.mark.parametrize("seed", range(8))
def test_permutations_approach_all_of_them(seed: int) -> None:
    differences = np.random.default_rng(seed).integers(-2, 4, 9).astype(np.float64)
    drawn = sign_flip_p_value(differences, num_permutations=20_000, seed=seed)
    assert drawn == pytest.approx(exact_sign_flip(differences), abs=0.015)


def test_p_values_of_extreme_cases() -> None:
    assert sign_flip_p_value(np.zeros(5), num_permutations=100, seed=0) == 1
    assert sign_flip_p_value(np.ones(60), num_permutations=999, seed=0) == 1 / 1000
    assert sign_flip_p_value(np.full(60, 0.1), num_permutations=999, seed=0) == 1 / 1000


def test_p_values_are_uniform_where_nothing_differs() -> None:
    generator = np.random.default_rng(0)
    values = [sign_flip_p_value(generator.normal(size=30), num_permutations=200, seed=trial) for trial in range(300)]
    assert 0.02 <= np.mean([value <= 0.05 for value in values]) <= 0.09
    assert 0.4 < np.mean(values) < 0.6


def test_large_problems_are_cut_into_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastervlm_video.eval.stats._CELLS_AT_ONCE", 70)
    differences = np.array([1.0, 1, 1, 0, 1, 2, 1])
    assert sign_flip_p_value(differences, num_permutations=5003, seed=1) == pytest.approx(
        exact_sign_flip(differences), abs=0.02
    )


def test_bad_arguments() -> None:
    with pytest.raises(InvalidRequestError, match="got 0 and 10"):
        Draws(0, 10, 0)
    with pytest.raises(InvalidRequestError, match="got 3 and 0"):
        Draws(3, 0, 0)
    with pytest.raises(InvalidRequestError, match="3 videos, the numbers of 4"):
        Draws(3, 10, 0).accuracy(np.ones(4), np.ones(4))
    with pytest.raises(InvalidRequestError, match="got 0 and 10"):
        sign_flip_p_value(np.ones(0), num_permutations=10, seed=0)
