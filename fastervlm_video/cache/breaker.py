"""A circuit breaker: after a few failures in a row, stop asking for a while, then ask once."""

import logging
import threading
import time
from collections.abc import Callable

from fastervlm_video.errors import InvalidRequestError

__all__ = ["CircuitBreaker"]

logger = logging.getLogger(__name__)


class CircuitBreaker:
    """Keeps a dead service from costing every request a time limit. Thread-safe.

    ::

        closed ──N failures──▶ open ──cool-down──▶ one probe ──success──▶ closed
                                 ▲                     │
                                 └──────failure────────┘

    Args:
        failures: how many in a row open it.
        cooldown_seconds: how long nothing is tried then, and between probes.
        clock: seconds that never run backwards.

    Raises:
        InvalidRequestError: ``failures`` is below 1, or the cool-down is negative.
    """

    def __init__(
        self, *, failures: int = 3, cooldown_seconds: float = 5.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        if failures < 1 or cooldown_seconds < 0:
            raise InvalidRequestError(f"failures={failures} must be 1 or more, {cooldown_seconds=} 0 or more")
        self._limit = failures
        self._cooldown_seconds = cooldown_seconds
        self._clock = clock
        self._lock = threading.Lock()
        self._failures = 0
        self._next_probe = 0.0

    @property
    def is_open(self) -> bool:
        """Whether calls are being skipped (but for the probes)."""
        with self._lock:
            return self._failures >= self._limit

    def allow(self) -> bool:
        """Whether to try. While open, True once per cool-down, to one caller."""
        with self._lock:
            if self._failures < self._limit:
                return True
            now = self._clock()
            if now < self._next_probe:
                return False
            # The probe's turn is over after a cool-down even if nobody reports how it went.
            self._next_probe = now + self._cooldown_seconds
            return True

    def record_success(self) -> None:
        """It worked: close."""
        with self._lock:
            was_open = self._failures >= self._limit
            self._failures = 0
        if was_open:
            logger.warning("circuit closed: the service answers again")

    def record_failure(self) -> None:
        """It did not work: one more failure in a row."""
        with self._lock:
            self._failures += 1
            opened = self._failures == self._limit
            if self._failures >= self._limit:
                self._next_probe = self._clock() + self._cooldown_seconds
        if opened:
            logger.warning("circuit open after %d failures: next try in %g s", self._limit, self._cooldown_seconds)
