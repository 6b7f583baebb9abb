"""A budget for trying again: what helps after one dropped connection must not double the load of a sick server."""

import threading

from fastervlm_video.errors import InvalidRequestError

__all__ = ["RetryBudget"]


class RetryBudget:
    """Allows a share of all calls to be tried again. Thread-safe.

    ::

        every call ──+share──▶ [ balance, at most reserve ] ──-1──▶ a retry

    Of n calls, at most ``reserve + share * n`` are ever tried again, and of those that follow a long failure
    (which has used up the reserve) only the share. The reserve is for a server that has little traffic and is
    restarted: all its connections break at once.

    Args:
        share: retries per call in the long run, in [0, 1]; 0 with a reserve of 0 allows none.
        reserve: retries that may come in a row.

    Raises:
        InvalidRequestError: ``share`` or ``reserve`` is out of range.
    """

    def __init__(self, *, share: float = 0.1, reserve: int = 10) -> None:
        if not 0 <= share <= 1 or reserve < 0:
            raise InvalidRequestError(f"{share=} must be in [0, 1], and {reserve=} 0 or more")
        self._share = share
        self._reserve = float(reserve)
        self._lock = threading.Lock()
        self._balance = self._reserve

    def record_call(self) -> None:
        """A call was begun, not counting retries."""
        with self._lock:
            self._balance = min(self._balance + self._share, self._reserve)

    def allow(self) -> bool:
        """Whether to try again; if so, it is paid for."""
        with self._lock:
            if self._balance < 1:
                return False
            self._balance -= 1
            return True
