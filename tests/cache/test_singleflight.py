import asyncio
import contextvars
import gc
import logging
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

from fastervlm_video.cache import SingleFlight
from fastervlm_video.errors import UnavailableError


class Work:
    """Work that can be held, counted, and seen to be cancelled."""

    def __init__(self, result: str = "done", error: Exception | None = None) -> None:
        self.started = 0
        self.finished = 0
        self.cancelled = 0
        self.go = asyncio.Event()
        self.may_unwind = asyncio.Event()
        self.may_unwind.set()
        self.result = result
        self.error = error

    async def __call__(self) -> str:
        self.started += 1
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            await self.may_unwind.wait()
            raise
        self.finished += 1
        if self.error is not None:
            raise self.error
        return self.result


@pytest.fixture(autouse=True)
def _nothing_is_reported_to_the_loop() -> Iterator[None]:
    """No "exception was never retrieved" and no "task was destroyed": asyncio logs them as errors."""
    records: list[logging.LogRecord] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = records.append  # type: ignore[method-assign,assignment]
    logging.getLogger("asyncio").addHandler(handler)
    yield
    gc.collect()
    logging.getLogger("asyncio").removeHandler(handler)
    assert [record.getMessage() for record in records] == []


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


def start(flights: SingleFlight[str, str], work: Callable[[], Awaitable[str]], key: str = "k") -> asyncio.Task[str]:
    return asyncio.create_task(flights.run(key, work))


async def test_concurrent_callers_share_one_run() -> None:
    flights, work = SingleFlight[str, str](), Work()
    callers = [start(flights, work) for _ in range(20)]
    await settle()
    assert len(flights) == 1
    work.go.set()
    assert await asyncio.gather(*callers) == ["done"] * 20
    assert (work.started, len(flights)) == (1, 0)
    assert await flights.run("k", work) == "done"
    assert work.started == 2  # not a cache


async def test_keys_do_not_wait_for_each_other() -> None:
    flights, slow, fast = SingleFlight[str, str](), Work(), Work("fast")
    fast.go.set()
    waiting = start(flights, slow, "slow")
    assert await flights.run("fast", fast) == "fast"
    slow.go.set()
    assert await waiting == "done"


async def test_a_leader_that_leaves_never_fails_its_followers() -> None:
    flights, work = SingleFlight[str, str](), Work()
    leader = start(flights, work)
    await settle()
    followers = [start(flights, work) for _ in range(3)]
    await settle()
    leader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leader
    assert work.cancelled == 0
    work.go.set()
    assert await asyncio.gather(*followers) == ["done"] * 3
    assert work.started == 1


async def test_followers_that_leave_disturb_nobody() -> None:
    flights, work = SingleFlight[str, str](), Work()
    leader = start(flights, work)
    followers = [start(flights, work) for _ in range(3)]
    await settle()
    for follower in followers:
        follower.cancel()
    await asyncio.wait(followers)
    assert all(follower.cancelled() for follower in followers)
    work.go.set()
    assert await leader == "done"
    assert work.cancelled == 0


async def test_work_ends_when_its_last_waiter_leaves() -> None:
    flights, work = SingleFlight[str, str](), Work()
    callers = [start(flights, work) for _ in range(3)]
    await settle()
    for caller in callers[:2]:
        caller.cancel()
    await settle()
    assert work.cancelled == 0
    callers[2].cancel()
    await asyncio.wait(callers)
    assert all(caller.cancelled() for caller in callers)
    assert (work.cancelled, work.finished, len(flights)) == (1, 0, 0)


async def test_leaving_waits_for_the_work_to_unwind() -> None:
    flights, work = SingleFlight[str, str](), Work()
    work.may_unwind.clear()
    caller = start(flights, work)
    await settle()
    caller.cancel()
    await settle()
    assert (work.cancelled, caller.done()) == (1, False)
    work.may_unwind.set()
    with pytest.raises(asyncio.CancelledError):
        await caller


async def test_a_call_during_the_unwinding_starts_anew() -> None:
    flights, first, second = SingleFlight[str, str](), Work("first"), Work("second")
    first.may_unwind.clear()
    gone = start(flights, first)
    await settle()
    gone.cancel()
    await settle()
    assert first.cancelled == 1
    again = start(flights, second)
    joined = start(flights, first)  # joins the second run, not the dying one
    await settle()
    assert (second.started, len(flights)) == (1, 1)
    first.may_unwind.set()
    with pytest.raises(asyncio.CancelledError):
        await gone
    assert len(flights) == 1  # the end of the first did not take the second along
    second.go.set()
    assert [await again, await joined] == ["second", "second"]
    assert first.started == 1


async def test_a_caller_who_comes_before_the_last_one_has_left_saves_the_work() -> None:
    flights, work = SingleFlight[str, str](), Work()
    leader = start(flights, work)
    await settle()
    leader.cancel()  # asked to leave, and not yet gone
    follower_result = flights.run("k", work)
    work.go.set()
    follower = asyncio.create_task(follower_result)
    await asyncio.wait([leader, follower])
    assert follower.result() == "done"


async def test_an_impatient_leaver_does_not_wait() -> None:
    """Cancelled a second time while the work unwinds, the caller goes; the work still ends."""
    flights, work = SingleFlight[str, str](), Work()
    work.may_unwind.clear()
    caller = start(flights, work)
    await settle()
    caller.cancel()
    await settle()
    caller.cancel()
    await asyncio.wait([caller])
    assert caller.cancelled()
    gc.collect()
    work.may_unwind.set()
    await settle()
    assert len(flights) == 0


async def test_an_error_reaches_every_caller_and_the_next_call_starts_anew() -> None:
    flights, work = SingleFlight[str, str](), Work(error=ValueError("no"))
    callers = [start(flights, work) for _ in range(5)]
    await settle()
    work.go.set()
    results = await asyncio.gather(*callers, return_exceptions=True)
    assert [repr(result) for result in results] == ["ValueError('no')"] * 5
    work.error = None
    assert await flights.run("k", work) == "done"
    assert work.started == 2


async def test_an_error_before_the_first_await_reaches_the_caller() -> None:
    def factory() -> Awaitable[str]:
        raise ValueError("no awaitable")

    flights = SingleFlight[str, str]()
    with pytest.raises(ValueError, match="no awaitable"):
        await flights.run("k", factory)
    assert len(flights) == 0


async def test_an_error_that_nobody_is_left_to_see_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def stubborn() -> str:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise ValueError("while unwinding") from None
        return ""

    flights = SingleFlight[str, str]()
    caller = start(flights, stubborn)
    await settle()
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert "while unwinding" in caplog.text


async def test_a_caller_cancelled_at_the_moment_of_failure() -> None:
    flights, work = SingleFlight[str, str](), Work(error=ValueError("no"))
    caller = start(flights, work)
    await settle()
    work.go.set()
    await asyncio.sleep(0)  # the work fails in this round, the caller has not seen it yet
    caller.cancel()
    await asyncio.wait([caller])
    assert len(flights) == 0


async def test_work_that_was_cancelled_from_within_is_not_the_callers_cancellation() -> None:
    async def work() -> str:
        raise asyncio.CancelledError

    flights = SingleFlight[str, str]()
    results = await asyncio.gather(*(flights.run("k", work) for _ in range(3)), return_exceptions=True)
    assert all(isinstance(result, UnavailableError) for result in results)


async def test_a_call_right_after_the_end_does_not_join_finished_work() -> None:
    flights, runs = SingleFlight[str, str](), []

    async def work() -> str:
        runs.append(1)
        return f"run {len(runs)}"

    async def twice() -> tuple[str, str]:
        return await flights.run("k", work), await flights.run("k", work)

    assert list(await asyncio.gather(twice(), twice())) == [("run 1", "run 2")] * 2


async def test_the_work_does_not_see_the_first_callers_context() -> None:
    request: contextvars.ContextVar[str] = contextvars.ContextVar("request", default="nobody's")
    seen: list[str] = []

    async def work() -> str:
        seen.append(request.get())
        return ""

    request.set("the first caller's")
    await SingleFlight[str, str]().run("k", work)
    assert seen == ["nobody's"]


async def test_random_comings_and_goings() -> None:
    """Whoever is not cancelled gets a result; nothing is left over; there are never two live runs of one key."""
    import random

    chance = random.Random(7)
    flights: SingleFlight[str, str] = SingleFlight()
    live: dict[str, int] = {}

    def work(key: str) -> Callable[[], Awaitable[str]]:
        async def run() -> str:
            live[key] = live.get(key, 0) + 1
            assert live[key] == 1
            try:
                for _ in range(chance.randrange(6)):
                    await asyncio.sleep(0)
            finally:
                live[key] -= 1
            return key

        return run

    async def caller(key: str) -> Any:
        return await flights.run(key, work(key))

    tasks: list[tuple[str, asyncio.Task[Any]]] = []
    for _ in range(2000):
        key = chance.choice("abc")
        tasks.append((key, asyncio.create_task(caller(key))))
        if chance.random() < 0.5:
            chance.choice(tasks[-20:])[1].cancel()
        if chance.random() < 0.5:
            await asyncio.sleep(0)
    await asyncio.wait([task for _, task in tasks])
    await settle()
    for key, task in tasks:
        assert task.cancelled() or task.result() == key
    assert sum(not task.cancelled() for _, task in tasks) > 500
    assert len(flights) == 0
    assert set(live.values()) == {0}
