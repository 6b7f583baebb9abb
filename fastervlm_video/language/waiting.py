"""Requests that have not begun: pushed from any thread, taken by the engine's."""

import threading
from collections import deque
from collections.abc import Callable

from fastervlm_video.errors import OverloadedError, UnavailableError
from fastervlm_video.language.job import Job

__all__ = ["WaitingLine"]


class WaitingLine:
    """A line with an end: it is closed for good, and says why.

    Args:
        capacity: most requests in the engine, waiting and running.
        running: how many run.
    """

    def __init__(self, capacity: int, running: Callable[[], int]) -> None:
        self._capacity, self._running = capacity, running
        self._lock = threading.Lock()
        self._jobs: deque[Job] = deque()
        self._closed = ""

    def __len__(self) -> int:
        return len(self._jobs)

    @property
    def closed(self) -> bool:
        """Whether it takes nobody any more."""
        return bool(self._closed)

    def push(self, job: Job) -> None:
        """Stand in line.

        Raises:
            UnavailableError: the line is closed.
            OverloadedError: the engine is full.
        """
        with self._lock:
            if self._closed:
                raise UnavailableError(self._closed)
            running = self._running()
            if len(self._jobs) + running >= self._capacity:
                raise OverloadedError(
                    f"the language engine is full: {running} requests running, {len(self._jobs)} waiting; "
                    "try again later"
                )
            self._jobs.append(job)

    def snapshot(self) -> list[Job]:
        """Who waits, first come first."""
        with self._lock:
            return list(self._jobs)

    def remove(self, job: Job) -> bool:
        """Leave the line; False if it is not there (any more)."""
        with self._lock:
            try:
                self._jobs.remove(job)
            except ValueError:
                return False
            return True

    def close(self, reason: str) -> str:
        """Take nobody any more; gives the reason, which is the first one given."""
        with self._lock:
            self._closed = self._closed or reason
            return self._closed

    def empty(self) -> list[Job]:
        """Everybody who waits; nobody does after."""
        with self._lock:
            jobs = list(self._jobs)
            self._jobs.clear()
            return jobs
