import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastervlm_video.cache import RetryBudget
from fastervlm_video.errors import InvalidRequestError


def test_the_reserve_and_then_the_share() -> None:
    budget = RetryBudget(share=0.25, reserve=3)
    assert [budget.allow() for _ in range(5)] == [True, True, True, False, False]
    granted = []
    for _ in range(12):
        budget.record_call()
        granted.append(budget.allow())
    assert granted == [False, False, False, True] * 3
    for _ in range(1000):
        budget.record_call()  # what is not used is not saved up beyond the reserve
    assert [budget.allow() for _ in range(4)] == [True, True, True, False]


def test_without_share_or_reserve() -> None:
    never = RetryBudget(share=0, reserve=0)
    for _ in range(100):
        never.record_call()
    assert not never.allow()
    once = RetryBudget(share=0, reserve=1)
    assert [once.allow(), once.allow()] == [True, False]


@given(
    share=st.sampled_from([0.0, 0.125, 0.25, 0.5, 1.0]),
    reserve=st.integers(0, 5),
    calls=st.lists(st.booleans(), max_size=200),
)
def test_retries_never_exceed_reserve_and_share(*, share: float, reserve: int, calls: list[bool]) -> None:
    """At any time, whatever the order of calls that work and calls that want to be tried again."""
    budget = RetryBudget(share=share, reserve=reserve)
    granted = 0
    for number, fails in enumerate(calls, start=1):
        budget.record_call()
        granted += fails and budget.allow()
        assert granted <= reserve + share * number


def test_many_threads_get_no_more_than_one() -> None:
    budget = RetryBudget(share=0.5, reserve=7)
    granted: list[int] = []

    def work() -> None:
        mine = 0
        for _ in range(500):
            budget.record_call()
            mine += budget.allow()
        granted.append(mine)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 8 * 500 * 0.5 - 7 <= sum(granted) <= 7 + 8 * 500 * 0.5


@pytest.mark.parametrize("wrong", [{"share": -0.1}, {"share": 1.1}, {"reserve": -1}])
def test_arguments_are_checked(wrong: dict[str, float]) -> None:
    with pytest.raises(InvalidRequestError, match=next(iter(wrong))):
        RetryBudget(**wrong)  # type: ignore[arg-type]
