from bisect import bisect_right
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastervlm_video.errors import InvalidRequestError
from fastervlm_video.media.sampling import instants, rounding_tolerance


def test_worked_example_of_the_module() -> None:
    begins = [0, 4, 8, 20, 22, 28]
    moments = instants(0, 28, 5)
    assert list(map(int, moments)) == [0, 7, 14, 21, 28]
    assert [bisect_right(begins, moment) - 1 for moment in moments] == [0, 1, 2, 3, 5]


def test_one_moment_is_the_middle() -> None:
    assert instants(10, 21, 1) == (Fraction(31, 2),)


@given(frames=st.integers(1, 100_000), count=st.integers(2, 64), ticks=st.integers(1, 3003), first=st.integers(-9, 9))
def test_constant_rate_is_linspace_over_frame_numbers(frames: int, count: int, ticks: int, first: int) -> None:
    moments = instants(first, first + (frames - 1) * ticks, count)
    shown = [int((moment - first) // ticks) for moment in moments]
    assert shown == [(frames - 1) * i // (count - 1) for i in range(count)]
    # numpy's linspace, rounded down, differs only where floating point misses a whole number.
    theirs = np.linspace(0, frames - 1, count)
    assert np.all(np.abs(np.array(shown) - np.floor(theirs + 1e-6)) == 0)


@given(first=st.integers(-(10**12), 10**12), length=st.integers(0, 10**12), count=st.integers(2, 64))
def test_moments_start_and_end_with_the_video_and_never_go_back(first: int, length: int, count: int) -> None:
    moments = instants(first, first + length, count)
    assert len(moments) == count
    assert moments[0] == first
    assert moments[-1] == first + length
    assert list(moments) == sorted(moments)


@pytest.mark.parametrize(("first", "last", "count"), [(0, 10, 0), (0, 10, -1), (5, 4, 2)])
def test_nonsense_is_refused_with_the_value(first: int, last: int, count: int) -> None:
    with pytest.raises(InvalidRequestError, match=str(count) if count < 1 else "4"):
        instants(first, last, count)


@pytest.mark.parametrize(
    ("ticks_per_frame", "tolerance"), [(None, 0), (Fraction(1), 0), (Fraction(100, 3), 1), (Fraction(3003), 1)]
)
def test_a_tick_is_forgiven_only_where_it_is_small_beside_a_frame(
    ticks_per_frame: Fraction | None, tolerance: int
) -> None:
    assert rounding_tolerance(ticks_per_frame) == tolerance
