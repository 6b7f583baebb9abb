"""Connections to a Redis that is not trusted to be quick, or honest.

redis-py's time limit is for one ``recv``: a server that sends a byte now and then holds its caller
for ever, and one that announces a huge value fills memory. Here the limit is for a whole exchange, and
so is one on the bytes of its answer. An exchange of many bytes has more time, by what a slow network needs for them.
"""

import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager
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

from fastervlm_video.cache.replies import DroppedConnectionError, ReplyParser, ReplyTooLargeError
from fastervlm_video.errors import InvalidRequestError

__all__ = ["BoundedSocket", "connect_client", "public_url"]


_LEAST_BYTES_PER_SECOND = 16 * 1024**2


class BoundedSocket:
    """A connected socket whose exchanges (one request, sent in parts, and its answer) end in time.

    Only what redis-py and :class:`~fastervlm_video.cache.replies.ReplyParser` call is here. A new exchange begins with
    the first ``sendall`` after something was received.

    Args:
        sock: connected.
        timeout_seconds: for an exchange, and a second more for every 16 MiB that it has moved.
        limit_bytes: for its answer.
    """

    def __init__(self, sock: socket.socket, timeout_seconds: float, limit_bytes: int) -> None:
        self._sock = sock
        self._timeout_seconds = timeout_seconds
        self.limit_bytes = limit_bytes
        self._begin()

    def _begin(self) -> None:
        self._answering = False
        self._received_bytes = 0
        self._deadline = time.monotonic() + self._timeout_seconds

    def _allow_for(self, count: int) -> None:
        self._deadline += count / _LEAST_BYTES_PER_SECOND

    def _arm(self) -> None:
        remaining = self._deadline - time.monotonic()
        if remaining <= 0:
            raise TimeoutError(f"no complete answer within {self._timeout_seconds} s")
        self._sock.settimeout(remaining)

    def sendall(self, data: bytes) -> None:
        """Send all of it, as a part of an exchange."""
        if self._answering:
            self._begin()
        self._allow_for(len(data))
        self._arm()
        with _drops_noticed():
            self._sock.sendall(data)

    def recv(self, size: int) -> bytes:
        """Receive up to ``size`` bytes of an answer, at least one."""
        self._answering = True
        self._arm()
        with _drops_noticed():
            data = self._sock.recv(size)
        self._received(len(data))
        return data

    def recv_into(self, buffer: memoryview) -> int:
        """Receive a part of an answer to where it will stay; how many bytes, at least one."""
        self._answering = True
        self._arm()
        with _drops_noticed():
            count = self._sock.recv_into(buffer)
        self._received(count)
        return count

    def poll(self) -> bool:
        """Whether something has arrived that was not asked for: the connection is then of no use any more."""
        self._sock.settimeout(0)
        try:
            with _drops_noticed():
                data = self._sock.recv(1)
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return False
        self._received(len(data))
        return True

    def _received(self, count: int) -> None:
        if count == 0:
            raise DroppedConnectionError("the connection was closed by the other side")
        self._allow_for(count)
        self._received_bytes += count
        if self._received_bytes > self.limit_bytes:
            raise ReplyTooLargeError(f"an answer of more than {self.limit_bytes} bytes")

    def shutdown(self, how: int) -> None:
        """As a socket does."""
        self._sock.shutdown(how)

    def close(self) -> None:
        """As a socket does."""
        self._sock.close()


@contextmanager
def _drops_noticed() -> Iterator[None]:
    """What the system says of a connection that has gone, as one error that is no OSError."""
    try:
        yield
    except (TimeoutError, BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
        raise
    except OSError as error:
        raise DroppedConnectionError(f"the connection was lost: {error}") from error


def _bounded(base: type[Any], timeout_seconds: float, limit_bytes: int) -> type[Any]:
    class BoundedConnection(base):  # type: ignore[misc]
        def _connect(self) -> BoundedSocket:
            return BoundedSocket(super()._connect(), timeout_seconds, limit_bytes)

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
        parser_class=ReplyParser,
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
