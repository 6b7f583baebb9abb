"""Redis's answers (RESP2) as redis-py wants them, with long values read where they will stay.

redis-py's own reader copies a value three times on its way from the socket. Here a long one is received into
a bytearray of its size, which whoever gets it may keep and write to; that alone makes reading an entry faster than
redis-py's ``GET`` of the same bytes.
"""

from typing import Any, Protocol

import redis
from redis._parsers import BaseParser

__all__ = ["DroppedConnectionError", "ReplyParser", "ReplyTooLargeError"]

READ_SIZE_BYTES = 16 * 1024
LONG_VALUE_BYTES = 64 * 1024
FIRST_BUFFER_BYTES = 8 * 1024**2
MAX_LINE_BYTES = 64 * 1024
MAX_DEPTH = 4  # EXEC answers with a list of answers, of which some are lists


class ReplyTooLargeError(redis.RedisError):
    """An answer is longer than anything that was stored; the connection is given up."""


class DroppedConnectionError(redis.ConnectionError):
    """A connection that had been made was closed by the other side, or on the way."""


class ReplySocket(Protocol):
    """What is read from; raises TimeoutError, or DroppedConnectionError at its end."""

    limit_bytes: int

    def recv(self, size: int) -> bytes:
        """Up to ``size`` bytes, at least one."""

    def recv_into(self, buffer: memoryview) -> int:
        """Fill a part of the buffer; how much, at least one byte."""

    def poll(self) -> bool:
        """Whether something has arrived, without waiting."""


class ReplyParser(BaseParser):
    """One connection's parser, which redis-py makes and calls. Values of 64 KiB and more are bytearrays."""

    def __init__(self, socket_read_size: int) -> None:
        del socket_read_size  # redis-py's, for its own readers
        self._sock: ReplySocket | None = None
        self._data = b""
        self._at = 0

    def on_connect(self, connection: Any) -> None:
        """Begin with a fresh socket."""
        self._sock, self._data, self._at = connection._sock, b"", 0

    def on_disconnect(self) -> None:
        """Forget it."""
        self._sock, self._data, self._at = None, b"", 0

    def can_read(self, timeout: float = 0) -> bool:  # noqa: ARG002 - redis-py only ever polls
        """Whether an idle connection has anything to say: it should not.

        Raises:
            DroppedConnectionError: it has been closed.
        """
        return self._sock is not None and (self._at < len(self._data) or self._sock.poll())

    def read_response(self, disable_decoding: bool = False, timeout: object = None) -> Any:  # noqa: ARG002 - as redis-py calls it
        """One answer: bytes or a bytearray, an int, None, a list of answers, or an error, not raised.

        Raises:
            InvalidResponse: it is not RESP2.
            ReplyTooLargeError: it is, or is announced to be, longer than the limit.
            DroppedConnectionError: the connection ended before it was complete.
            TimeoutError: it is not complete in time.
        """
        return self._read(depth=0)

    def _read(self, depth: int) -> Any:
        line = self._line()
        kind, rest = line[:1], line[1:]
        if kind == b"-":
            return self._error(rest.decode(errors="replace"))
        if kind == b"+":
            return rest
        if kind == b":":
            return _number(line)
        if kind == b"$":
            return self._value(_number(line))
        if kind == b"*" and depth < MAX_DEPTH:
            return self._list(_number(line), depth)
        raise redis.InvalidResponse(f"not an answer of a Redis: {line[:80]!r}")

    def _list(self, count: int, depth: int) -> list[Any] | None:
        if count < -1:
            raise redis.InvalidResponse(f"not an answer of a Redis: a list of {count}")
        return None if count == -1 else [self._read(depth + 1) for _ in range(count)]

    def _error(self, text: str) -> redis.RedisError:
        error: redis.RedisError = self.parse_error(text)  # type: ignore[no-untyped-call]
        if isinstance(error, redis.ConnectionError):  # loading, or not authenticated: about more than one command
            raise error
        return error

    def _line(self) -> bytes:
        while (end := self._data.find(b"\r\n", self._at)) < 0:
            if len(self._data) - self._at > MAX_LINE_BYTES:
                raise redis.InvalidResponse(f"not an answer of a Redis: a line of more than {MAX_LINE_BYTES} bytes")
            self._data = self._data[self._at :] + self._socket().recv(READ_SIZE_BYTES)
            self._at = 0
        line, self._at = self._data[self._at : end], end + 2
        return line

    def _value(self, length: int) -> bytes | bytearray | None:
        if length == -1:
            return None
        limit = self._socket().limit_bytes
        if length > limit:
            raise ReplyTooLargeError(f"a value of {length} bytes, which is more than {limit}")
        if length < 0:
            raise redis.InvalidResponse(f"not an answer of a Redis: a value of {length} bytes")
        value = self._received(length + 2)
        if not value.endswith(b"\r\n"):
            raise redis.InvalidResponse(f"not an answer of a Redis: a value does not end after {length} bytes")
        del value[-2:]  # does not move the others
        return value if length >= LONG_VALUE_BYTES else bytes(value)

    def _received(self, size: int) -> bytearray:
        """The next bytes, in a buffer that grows no faster than they arrive."""
        sock = self._socket()
        buffered = self._data[self._at : self._at + size]
        self._at += len(buffered)
        buffer, filled = bytearray(min(size, FIRST_BUFFER_BYTES)), len(buffered)
        buffer[:filled] = buffered
        while filled < size:
            if filled == len(buffer):
                buffer.extend(bytes(min(size - filled, len(buffer))))
            filled += sock.recv_into(memoryview(buffer)[filled:])
        return buffer

    def _socket(self) -> ReplySocket:
        if self._sock is None:
            raise DroppedConnectionError("not connected")
        return self._sock


def _number(line: bytes) -> int:
    digits = line[1:]
    if not digits.removeprefix(b"-").isdigit() or len(digits) > 20:
        raise redis.InvalidResponse(f"not an answer of a Redis: {line[:80]!r}")
    return int(digits)
