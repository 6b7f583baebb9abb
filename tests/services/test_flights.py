import asyncio
import contextvars
from collections.abc import Callable

import pytest

from services.flights import Flight, Flights

Start = Callable[[], str]


class Desk:
    """Flights of strings; remembers what was started and cancelled."""

    def __init__(self) -> None:
        self.started: list[str] = []
        self.cancelled: list[str] = []
        self.flights: Flights[str, str] = Flights(self.cancelled.append)

    def start(self) -> str:
        self.started.append(f"work {len(self.started) + 1}")
        return self.started[-1]

    async def passenger(self, until: asyncio.Event, *, key: str = "k", land: bool = False) -> str:
        with self.flights.join(key, self.start) as flight:
            await until.wait()
            flight.landed = flight.landed or land
        return flight.work


@pytest.fixture
def desk() -> Desk:
    return Desk()


async def begin(*passengers: asyncio.Task[str]) -> None:
    """Let tasks run until all of them wait."""
    await asyncio.sleep(0)
    assert not any(task.done() for task in passengers)


async def cancel(task: asyncio.Task[str]) -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_one_start_for_all_and_the_last_one_out_closes_the_flight(desk: Desk) -> None:
    land = asyncio.Event()
    crowd = [asyncio.create_task(desk.passenger(land, land=True)) for _ in range(5)]
    await begin(*crowd)
    assert len(desk.flights) == 1
    land.set()
    assert await asyncio.gather(*crowd) == ["work 1"] * 5
    assert (desk.started, desk.cancelled, len(desk.flights)) == (["work 1"], [], 0)


async def test_the_leader_may_leave(desk: Desk) -> None:
    land = asyncio.Event()
    leader, other = (asyncio.create_task(desk.passenger(land, land=True)) for _ in range(2))
    await begin(leader, other)
    await cancel(leader)
    assert (desk.cancelled, len(desk.flights)) == ([], 1)
    land.set()
    assert await other == "work 1"
    assert desk.cancelled == []


async def test_the_work_is_cancelled_once_when_all_have_left(desk: Desk) -> None:
    crowd = [asyncio.create_task(desk.passenger(asyncio.Event())) for _ in range(3)]
    await begin(*crowd)
    for left, task in enumerate(crowd):
        assert desk.cancelled == []
        assert len(desk.flights) == 1, left
        await cancel(task)
    assert (desk.cancelled, len(desk.flights)) == (["work 1"], 0)


async def test_a_landed_flight_is_not_cancelled(desk: Desk) -> None:
    """The others may leave before they have seen the result: it is in somebody's hands already."""
    landing, never = asyncio.Event(), asyncio.Event()
    first = asyncio.create_task(desk.passenger(landing, land=True))
    others = [asyncio.create_task(desk.passenger(never)) for _ in range(2)]
    await begin(first, *others)
    landing.set()
    assert await first == "work 1"
    for task in others:
        await cancel(task)
    assert (desk.cancelled, len(desk.flights)) == ([], 0)


async def test_after_the_last_one_has_left_the_work_starts_anew(desk: Desk) -> None:
    now = asyncio.Event()
    now.set()
    assert await desk.passenger(now, land=True) == "work 1"
    assert await desk.passenger(now) == "work 2"
    assert desk.cancelled == ["work 2"]


async def test_keys_do_not_meet(desk: Desk) -> None:
    land = asyncio.Event()
    tasks = [asyncio.create_task(desk.passenger(land, key=key, land=True)) for key in "aba"]
    await begin(*tasks)
    assert len(desk.flights) == 2
    land.set()
    assert await asyncio.gather(*tasks) == ["work 1", "work 2", "work 1"]


def fail_on_board(desk: Desk) -> Flight[str]:
    """Join, and leave through an error."""
    try:
        with desk.flights.join("k", desk.start) as flight:
            raise ZeroDivisionError
    except ZeroDivisionError:
        return flight


def test_an_error_closes_the_flight_for_newcomers_but_not_for_those_inside(desk: Desk) -> None:
    flights = desk.flights
    with flights.join("k", desk.start) as inside:
        assert fail_on_board(desk) is inside
        assert (len(flights), desk.cancelled) == (0, [])
        with flights.join("k", desk.start) as newcomer:
            assert newcomer.work == "work 2"
            newcomer.landed = True
        assert (inside.work, inside.waiters, desk.cancelled) == ("work 1", 1, [])
        inside.landed = True
    assert desk.cancelled == []


def test_leaving_a_closed_flight_does_not_close_its_successor(desk: Desk) -> None:
    flights = desk.flights
    old = flights.join("k", desk.start)
    old.__enter__()
    fail_on_board(desk)
    with flights.join("k", desk.start) as successor:
        old.__exit__(None, None, None)
        assert (len(flights), desk.cancelled) == (1, ["work 1"])
        with flights.join("k", desk.start) as joined:
            assert joined is successor
        successor.landed = True
    assert desk.cancelled == ["work 1"]


def test_the_work_starts_in_an_empty_context(desk: Desk) -> None:
    request: contextvars.ContextVar[str] = contextvars.ContextVar("request", default="none")
    request.set("the leader's")
    with desk.flights.join("k", request.get) as flight:
        assert flight.work == "none"
    assert request.get() == "the leader's"


def test_a_start_that_fails_leaves_nothing_behind(desk: Desk) -> None:
    def fail() -> str:
        raise OSError("no")

    with pytest.raises(OSError, match="no"), desk.flights.join("k", fail):
        pytest.fail("nobody boards")
    assert (len(desk.flights), desk.cancelled) == (0, [])
    with desk.flights.join("k", desk.start) as flight:
        assert flight.work == "work 1"
