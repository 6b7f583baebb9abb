"""Calls to a Redis that may fail: time limits, one more try, a circuit breaker, and a server that can be brought back.

::

    breaker open? ──yes──▶ skipped
        │ no
        ▼
    the exchange ──dropped connection, budget left──▶ once more ──cannot connect, own server──▶ started, once more
        │                                              │                                         │
        └──────────────── answer, or one UnavailableError that says what happened ───────────────┘
"""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol, TypeVar

import redis

from fastervlm_video.cache.base import StoreEvents
from fastervlm_video.cache.breaker import CircuitBreaker
from fastervlm_video.cache.redis_connection import connect_client, public_url
from fastervlm_video.cache.replies import DroppedConnectionError
from fastervlm_video.cache.retry_budget import RetryBudget
from fastervlm_video.errors import UnavailableError

__all__ = ["RedisCalls", "RedisServer"]

logger = logging.getLogger(__name__)

REVIVAL_PAUSE_SECONDS = 1.0

T = TypeVar("T")


class RedisServer(Protocol):
    """The server behind a store, if it is one that can be brought back."""

    def ensure_running(self) -> None:
        """Use the live server, or start one.

        Raises:
            UnavailableError: neither was possible.
        """

    def close(self) -> None:
        """Stop it, if this process started it."""


class RedisCalls:
    """A Redis to which calls are made, each of which ends in time. Thread-safe.

    An exchange ends within ``operation_timeout_seconds``; before it, a connection may have to be waited for that long,
    if all are in use, and be made. Who has waited for an answer in vain is not made to wait again: only
    a connection that was *dropped* is made anew and the call repeated, once, and only if less than
    ``operation_timeout_seconds`` have passed. So a call of one exchange takes at most twice the time of all these, and
    against a server that hangs no more than one exchange. (Starting an embedded server comes on top.)

    Args:
        url: ``redis://``, ``rediss://`` or ``unix://``.
        connect_timeout_seconds: for reaching the server.
        operation_timeout_seconds: for one exchange with it.
        max_reply_bytes: an answer beyond it is cut off.
        max_connections: most connections at once.
        breaker: decides when not to try at all.
        retries: decides when to try again.
        server: is asked to come back when it is gone; closed with this.

    Raises:
        InvalidRequestError: the URL cannot be used.
    """

    def __init__(
        self,
        url: str,
        *,
        connect_timeout_seconds: float,
        operation_timeout_seconds: float,
        max_reply_bytes: int,
        max_connections: int,
        breaker: CircuitBreaker | None = None,
        retries: RetryBudget | None = None,
        server: RedisServer | None = None,
    ) -> None:
        self._client = connect_client(
            url,
            connect_timeout_seconds=connect_timeout_seconds,
            operation_timeout_seconds=operation_timeout_seconds,
            max_reply_bytes=max_reply_bytes,
            max_connections=max_connections,
        )
        self._address = public_url(url)
        self._patience_seconds = operation_timeout_seconds
        self._breaker = breaker or CircuitBreaker()
        self._retries = retries or RetryBudget()
        self._server = server
        self._revival = threading.Lock()
        self._next_revival = 0.0
        self._counting = threading.Lock()
        self._events = StoreEvents()

    @property
    def events(self) -> StoreEvents:
        """What has happened to calls so far."""
        with self._counting:
            return self._events

    def call(self, what: str, operation: Callable[[redis.Redis], T], *, must_try: bool = False) -> T:
        """Make a call, which may be repeated: doing it twice must be as good as once.

        Args:
            what: for logs and errors.
            operation: the exchange, or a few.
            must_try: even while the breaker is open.

        Raises:
            UnavailableError: whatever went wrong.
        """
        if not self._breaker.allow() and not must_try:
            self._count(skipped=1)
            raise UnavailableError(f"{what} skipped: the Redis at {self._address} failed just now")
        try:
            result = self._try(what, operation)
        except redis.ResponseError as error:
            self._breaker.record_success()  # it answers, if only to refuse
            logger.warning("the Redis at %s refused to %s: %s", self._address, what, error)
            raise UnavailableError(f"the Redis at {self._address} refused to {what}: {error}") from error
        # All else: no answer, or one out of which redis-py or this package could make no sense.
        except Exception as error:
            self._breaker.record_failure()
            logger.warning("the Redis at %s failed to %s: %s: %s", self._address, what, type(error).__name__, error)
            raise UnavailableError(f"the Redis at {self._address} failed to {what}: {error}") from error
        self._breaker.record_success()
        return result

    def close(self) -> None:
        """Close all connections, and the server if it is this process's own."""
        self._client.connection_pool.disconnect()
        if self._server is not None:
            self._server.close()

    def _try(self, what: str, operation: Callable[[redis.Redis], T]) -> T:
        began = time.monotonic()
        self._retries.record_call()
        try:
            try:
                return operation(self._client)
            except DroppedConnectionError as error:
                if time.monotonic() - began >= self._patience_seconds or not self._retries.allow():
                    raise
                self._count(retries=1)
                logger.warning("the Redis at %s failed to %s, which is tried again: %s", self._address, what, error)
                return operation(self._client)
        except redis.ConnectionError:
            if not self._revive():
                raise
            return operation(self._client)

    def _revive(self) -> bool:
        """Have the server started again; by one thread, and not all the time. True if it is back."""
        if self._server is None or not self._revival.acquire(blocking=False):
            return False
        try:
            if time.monotonic() < self._next_revival:
                return False
            self._next_revival = time.monotonic() + REVIVAL_PAUSE_SECONDS
            self._server.ensure_running()
        except UnavailableError as error:
            logger.warning("the Redis at %s cannot be brought back: %s", self._address, error)
            return False
        else:
            logger.warning("the Redis at %s is back", self._address)
            return True
        finally:
            self._revival.release()

    def _count(self, *, retries: int = 0, skipped: int = 0) -> None:
        with self._counting:
            seen = self._events
            self._events = replace(seen, retries=seen.retries + retries, skipped=seen.skipped + skipped)
