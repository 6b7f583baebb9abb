"""Work that several requests wait for, done once.

A flight belongs to none of its waiters: whoever asked first may leave, and the others still get the
result. When the last waiter leaves before the result is there, the work is cancelled.
"""

import contextvars
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

__all__ = ["Flight", "Flights"]

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


@dataclass(slots=True, eq=False)
class Flight(Generic[V]):
    """One piece of shared work.

    Attributes:
        work: whatever ``start`` returned.
        waiters: requests that wait for it.
        landed: whether its result has been seen by any waiter; such a flight is not cancelled.
    """

    work: V
    waiters: int = 0
    landed: bool = False


class Flights(Generic[K, V]):
    """Flights by key. For use from one event loop.

    Args:
        cancel: stops a piece of work whose last waiter has left.
    """

    def __init__(self, cancel: Callable[[V], None]) -> None:
        self._cancel = cancel
        self._by_key: dict[K, Flight[V]] = {}

    def __len__(self) -> int:
        return len(self._by_key)

    @contextmanager
    def join(self, key: K, start: Callable[[], V]) -> Iterator[Flight[V]]:
        """Wait for the flight with this key, starting it if there is none.

        ``start`` runs in an empty context: Serve cancels the calls that were made in the context of a
        request when that request is cancelled, which must not happen to work that others wait for.

        A flight left through an exception other than a cancellation takes no further passengers: the next
        request starts anew.
        """
        flight = self._by_key.get(key)
        if flight is None:
            flight = self._by_key[key] = Flight(contextvars.Context().run(start))
        flight.waiters += 1
        try:
            yield flight
        except Exception:
            self._close(key, flight)
            raise
        finally:
            flight.waiters -= 1
            if not flight.waiters:
                self._close(key, flight)
                if not flight.landed:
                    self._cancel(flight.work)

    def _close(self, key: K, flight: Flight[V]) -> None:
        if self._by_key.get(key) is flight:
            del self._by_key[key]
