"""How many requests may be in progress at once. More are refused at once, instead of piling up."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from fastervlm_video.errors import OverloadedError

__all__ = ["Admission"]


class Admission:
    """Counts requests in progress in this process. For use from one event loop.

    Serve's own ``max_queued_requests`` is checked before the results that a call waits for are there, so
    it cannot tell a request that is being worked on from one that is waiting; this count can.

    Args:
        limit: most requests in progress.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._in_progress = 0

    @property
    def in_progress(self) -> int:
        """Requests in progress now."""
        return self._in_progress

    def enter(self) -> AbstractContextManager[None]:
        """A place for one request, held until the returned context is left.

        Raises:
            OverloadedError: all places are taken.
        """
        if self._in_progress >= self._limit:
            raise OverloadedError(
                f"{self._in_progress} requests are in progress, which is the limit; try again in "
                f"{OverloadedError.retry_after_seconds} s"
            )
        self._in_progress += 1
        return self._place()

    @contextmanager
    def _place(self) -> Iterator[None]:
        try:
            yield
        finally:
            self._in_progress -= 1
