"""Connections to a Redis that is not trusted to be quick, or honest.

redis-py's time limit is for one ``recv``: a server that sends a byte now and then holds its caller
for ever, and one that announces a huge value fills memory. Here the limit is for a whole exchange, and
so is one on the bytes of its answer.
"""

import socket
import time
from typing import Any
from urllib.parse import urlsplit

import redis
from redis.backoff import NoBackoff
from redis.connection import (
    BlockingConnectionPool,
    Connection,
    SSLConnection,
    UnixDomainSocketConnection,
    parse_url,
)
from redis.retry import Retry

from fastervlm_video.errors import InvalidRequestError

__all__ = ["ReplyTooLargeError", "connect_client", "public_url"]

READ_SIZE_BYTES = 256 * 1024


class ReplyTooLargeError(redis.RedisError):
    """An answer is longer than anything that was stored; the connection is given up."""


class _BoundedSocket:
    """A connected socket whose exchanges (one request, sent in parts, and its answer) end in time.

    Only what redis-py calls is here; it begins a new exchange with the first ``sendall`` after a ``recv``.
    """

    def __init__(self, sock: socket.socket, timeout_seconds: float, limit_bytes: int) -> None:
        self._sock = sock
        self._timeout_seconds = timeout_seconds
        self._limit_bytes = limit_bytes
        self._polling = False
        self._begin()

    def _begin(self) -> None:
        self._answering = False
        self._received_bytes = 0
        self._deadline = time.monotonic() + self._timeout_seconds

    def _arm(self) -> None:
        remaining = self._deadline - time.monotonic()
        if remaining <= 0:
            raise TimeoutError(f"no complete answer within {self._timeout_seconds} s")
        self._sock.settimeout(remaining)

    def sendall(self, data: bytes) -> None:
        if self._answering:
            self._begin()
        self._arm()
        self._sock.sendall(data)

    def recv(self, size: int) -> bytes:
        self._answering = True
        if not self._polling:
            self._arm()
        data = self._sock.recv(size)
        self._received_bytes += len(data)
        if self._received_bytes > self._limit_bytes:
            raise ReplyTooLargeError(f"an answer of more than {self._limit_bytes} bytes")
        return data

    def settimeout(self, seconds: float | None) -> None:
        """Zero polls, as redis-py does before it reuses a connection; otherwise the deadline rules."""
        self._polling = seconds == 0
        if self._polling:
            self._sock.settimeout(0)

    def shutdown(self, how: int) -> None:
        self._sock.shutdown(how)

    def close(self) -> None:
        self._sock.close()


def _bounded(base: type[Any], timeout_seconds: float, limit_bytes: int) -> type[Any]:
    class BoundedConnection(base):  # type: ignore[misc]
        def _connect(self) -> _BoundedSocket:
            return _BoundedSocket(super()._connect(), timeout_seconds, limit_bytes)

    return BoundedConnection


_CONNECTIONS: dict[str, type[Any]] = {
    "redis": Connection,
    "rediss": SSLConnection,
    "unix": UnixDomainSocketConnection,
}


def connect_client(
    url: str,
    *,
    connect_timeout_seconds: float,
    operation_timeout_seconds: float,
    max_reply_bytes: int,
    max_connections: int,
) -> redis.Redis:
    """A client that connects when first used, never tries anything twice, and returns bytes.

    Args:
        url: ``redis://``, ``rediss://`` or ``unix://``, with options as redis-py takes them; the
            arguments here win over those.
        connect_timeout_seconds: for reaching the server.
        operation_timeout_seconds: for sending a request and having all of its answer.
        max_reply_bytes: an answer beyond it is cut off.
        max_connections: beyond these, callers wait for one, for as long as an operation may take.

    Raises:
        InvalidRequestError: the URL cannot be used.
    """
    scheme = urlsplit(url).scheme
    if scheme not in _CONNECTIONS:
        raise InvalidRequestError(
            f"{public_url(url)!r} is not the address of a Redis; use redis://, rediss:// or unix://"
        )
    try:
        options: dict[str, Any] = dict(parse_url(url))  # type: ignore[no-untyped-call]
    except ValueError as error:
        raise InvalidRequestError(f"cannot use the Redis address {public_url(url)!r}: {error}") from error
    options.update(
        connection_class=_bounded(_CONNECTIONS[scheme], operation_timeout_seconds, max_reply_bytes),
        socket_connect_timeout=connect_timeout_seconds,
        socket_timeout=operation_timeout_seconds,
        socket_read_size=READ_SIZE_BYTES,
        timeout=operation_timeout_seconds,
        max_connections=max_connections,
        retry=Retry(NoBackoff(), 0),
        retry_on_timeout=False,
        protocol=2,  # no handshake, and every server and proxy speaks it
        decode_responses=False,
        driver_info=None,
    )
    return redis.Redis(connection_pool=BlockingConnectionPool(**options))  # type: ignore[no-untyped-call]


def public_url(url: str) -> str:
    """The URL without user, password and options: what may stand in logs and errors."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()
