"""One piece of work for all who want its result at the same time."""

import asyncio
import contextvars
import logging
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

from fastervlm_video.errors import UnavailableError

__all__ = ["SingleFlight"]

logger = logging.getLogger(__name__)

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


@dataclass(slots=True, eq=False)
class _Flight(Generic[V]):
    task: asyncio.Task[V]
    waiters: int = 0


class SingleFlight(Generic[K, V]):
    """Joins concurrent calls with one key into one run of the work. For one event loop.

    The work belongs to none of its callers: it runs in a task and a context of its own (a context that
    carried the first caller's request would let that request's end reach into the others' work). A
    caller who is cancelled just leaves; when the last one leaves, the work is cancelled.
    """

    def __init__(self) -> None:
        self._flights: dict[K, _Flight[V]] = {}
        self._tasks: set[asyncio.Task[V]] = set()  # the loop itself refers to tasks only weakly

    def __len__(self) -> int:
        """How many pieces of work are wanted and not done."""
        return sum(not flight.task.done() for flight in self._flights.values())

    async def run(self, key: K, factory: Callable[[], Awaitable[V]]) -> V:
        """The result of ``factory()``, or of a run for the same key that is under way.

        A call after the work has ended, however it ended, starts it anew; so does a call that comes
        while abandoned work is still unwinding.

        Raises:
            UnavailableError: the work was cancelled from within, though this caller was not.
            Exception: whatever ``factory`` raised; every caller gets it.
        """
        flight = self._flights.get(key)
        if flight is None or flight.task.done():
            flight = self._start(key, factory)
        flight.waiters += 1
        try:
            # Not shield(): newer Pythons report an error of shielded work as unhandled once a waiter left.
            await asyncio.wait([flight.task])
        finally:
            flight.waiters -= 1
            if flight.waiters == 0:
                await self._land(key, flight)
        if flight.task.cancelled():
            raise UnavailableError("the work that this request shared with others was cancelled; try again")
        return flight.task.result()

    def _start(self, key: K, factory: Callable[[], Awaitable[V]]) -> _Flight[V]:
        async def work() -> V:
            return await factory()

        task = asyncio.get_running_loop().create_task(work(), context=contextvars.Context())
        flight = self._flights[key] = _Flight(task)
        self._tasks.add(task)
        task.add_done_callback(lambda done: self._ended(flight, done))
        return flight

    def _ended(self, flight: _Flight[V], task: asyncio.Task[V]) -> None:
        self._tasks.discard(task)
        # Look at the error even if nobody is left to be told, or asyncio reports it as never retrieved.
        if not task.cancelled() and (error := task.exception()) is not None and flight.waiters == 0:
            logger.warning("abandoned work failed while it was being cancelled: %r", error)

    async def _land(self, key: K, flight: _Flight[V]) -> None:
        """The last caller leaves: forget the work and, if it still runs, end it."""
        if self._flights.get(key) is flight:
            del self._flights[key]
        if not flight.task.done():
            flight.task.cancel()
            await asyncio.wait([flight.task])
