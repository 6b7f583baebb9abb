"""Intervals and tests for accuracies over questions that come in groups.

Questions about one video are not independent: a video that is hard to see is hard for all of its questions. Videos,
not questions, are therefore what is drawn again in the bootstrap and what changes sides in the permutation test.

Everything starts from two arrays over V videos: ``sums``, the points scored on each video's questions, and ``counts``,
how many questions those are; the accuracy is ``sums.sum() / counts.sum()``. All arms are seen on the same draws, so
that what they are compared by (differences, ratios) has the narrow interval of a paired comparison::

    draws = Draws(V, 2000, seed)
    a, b = draws.accuracy(sums_a, counts_a), draws.accuracy(sums_b, counts_b)
    a.estimate, a.minus(b).estimate, a.over(b).estimate
"""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from fastervlm_video.errors import InvalidRequestError

__all__ = ["Draws", "Estimate", "Floats", "Sampled", "sign_flip_p_value"]

Floats = npt.NDArray[np.float64]

_LEVEL = 0.95
_CELLS_AT_ONCE = 4_000_000  # random signs in memory


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number with its 95 % confidence interval.

    Attributes:
        value: from all videos; NaN if it is not defined.
        low: 2.5th percentile over the draws; NaN if the number is not defined in all of them.
        high: 97.5th percentile.
    """

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True, slots=True, eq=False)
class Sampled:
    """A number, and what it is in each of B bootstrap draws.

    Attributes:
        value: from all videos.
        drawn: float64 [B].
    """

    value: float
    drawn: Floats

    @property
    def estimate(self) -> Estimate:
        """With its percentile interval."""
        if not np.isfinite(self.drawn).all():
            return Estimate(self.value, math.nan, math.nan)
        tail = (1 - _LEVEL) / 2
        low, high = np.quantile(self.drawn, [tail, 1 - tail])
        return Estimate(self.value, float(low), float(high))

    def minus(self, other: "Sampled") -> "Sampled":
        """The difference, draw by draw."""
        return Sampled(self.value - other.value, self.drawn - other.drawn)

    def over(self, other: "Sampled") -> "Sampled":
        """The ratio, draw by draw; NaN where the other is not positive."""
        return Sampled(_ratio(self.value, other.value), _ratios(self.drawn, other.drawn))

    def gap_closed(self, floor: "Sampled", ceiling: "Sampled") -> "Sampled":
        """``(self - floor) / (ceiling - floor)``; NaN where the ceiling is not above the floor."""
        return self.minus(floor).over(ceiling.minus(floor))


class Draws:
    """Bootstrap samples of V videos, the same for every arm.

    Args:
        num_videos: V.
        num_draws: B.
        seed: of the draws.

    Raises:
        InvalidRequestError: V or B is less than 1.
    """

    def __init__(self, num_videos: int, num_draws: int, seed: int) -> None:
        if num_videos < 1 or num_draws < 1:
            raise InvalidRequestError(
                f"videos and bootstrap draws must be at least 1 each, got {num_videos} and {num_draws}"
            )
        self._num_videos, self._num_draws, self._seed = num_videos, num_draws, seed

    @cached_property
    def _times(self) -> Floats:
        """How often each video is in each draw, [B, V]."""
        even = np.full(self._num_videos, 1 / self._num_videos)
        drawn = np.random.default_rng(self._seed).multinomial(self._num_videos, even, size=self._num_draws)
        return drawn.astype(np.float64)

    def accuracy(self, sums: Floats, counts: Floats) -> Sampled:
        """Points per question.

        Args:
            sums: float64 [V], points.
            counts: float64 [V], questions; a video may have none.
        """
        if sums.shape != (self._num_videos,) or counts.shape != sums.shape:
            raise InvalidRequestError(f"the draws are of {self._num_videos} videos, the numbers of {len(sums)}")
        return Sampled(
            _ratio(float(sums.sum()), float(counts.sum())), _ratios(self._times @ sums, self._times @ counts)
        )


def _ratio(above: float, below: float) -> float:
    return above / below if below > 0 else math.nan


def _ratios(above: Floats, below: Floats) -> Floats:
    return np.divide(above, below, out=np.full_like(above, np.nan), where=below > 0)


def sign_flip_p_value(differences: Floats, *, num_permutations: int, seed: int) -> float:
    """Two-sided p-value of "neither of two arms is better": their names are swapped, video by video, at random.

    Args:
        differences: float64 [V], points of one minus points of the other.
        num_permutations: how many swaps are drawn; the value is never below ``1 / (num_permutations + 1)``.
        seed: of the swaps.

    Raises:
        InvalidRequestError: there is nothing to permute, or no permutation is asked for.
    """
    if num_permutations < 1 or len(differences) < 1:
        raise InvalidRequestError(
            f"videos and permutations must be at least 1 each, got {len(differences)} and {num_permutations}"
        )
    generator = np.random.default_rng(seed)
    observed = abs(differences.sum()) - 1e-9  # sums that are equal may differ in the last bit
    extreme = 0
    step = max(1, _CELLS_AT_ONCE // len(differences))
    for start in range(0, num_permutations, step):
        shape = (min(step, num_permutations - start), len(differences))
        signs = generator.integers(0, 2, shape, dtype=np.int8) * 2 - 1
        extreme += int((np.abs(signs @ differences) >= observed).sum())
    return (1 + extreme) / (1 + num_permutations)
