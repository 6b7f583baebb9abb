"""The parser of Redis's answers, given what it may be given, in pieces of any size."""

import itertools
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from typing import Any

import pytest
import redis
from hypothesis import given, settings
from hypothesis import strategies as st
from redis._parsers import _RESP2Parser

from fastervlm_video.cache.redis_connection import BoundedSocket
from fastervlm_video.cache.replies import LONG_VALUE_BYTES, DroppedConnectionError, ReplyParser, ReplyTooLargeError

LIMIT_BYTES = 4_000_000


class Connected:
    """What redis-py's parsers want of a connection."""

    def __init__(self, sock: Any) -> None:
        self._sock = sock
        self.socket_timeout = 10.0
        self.encoder = redis.Redis().get_encoder()


@contextmanager
def answering(pieces: list[bytes], *, timeout_seconds: float = 10, limit_bytes: int = LIMIT_BYTES) -> Iterator[Any]:
    """A parser that hears these pieces, one after the other, and then the end."""
    ours, theirs = socket.socketpair()

    def talk() -> None:
        with theirs, suppress(OSError):  # whoever has heard enough closes
            for piece in pieces:
                theirs.sendall(piece)

    speaker = threading.Thread(target=talk)
    speaker.start()
    parser = ReplyParser(socket_read_size=1)
    parser.on_connect(Connected(BoundedSocket(ours, timeout_seconds, limit_bytes)))
    try:
        yield parser
    finally:
        ours.close()
        speaker.join()


def wire(answer: object) -> bytes:
    """An answer as Redis sends it."""
    if answer is None:
        return b"$-1\r\n"
    if isinstance(answer, int):
        return b":%d\r\n" % answer
    if isinstance(answer, bytes):
        return b"$%d\r\n%s\r\n" % (len(answer), answer)
    assert isinstance(answer, list)
    return b"*%d\r\n%s" % (len(answer), b"".join(map(wire, answer)))


scalars = st.none() | st.integers(-(2**63), 2**63 - 1) | st.binary(max_size=40)
answers = st.lists(scalars | st.lists(scalars | st.lists(scalars, max_size=3), max_size=4), min_size=1, max_size=6)


@given(answers=answers, cuts=st.lists(st.integers(1, 50), max_size=20))
@settings(max_examples=60, deadline=None)
def test_answers_arrive_whole_however_they_are_cut(answers: list[object], cuts: list[int]) -> None:
    data = b"".join(map(wire, answers))
    starts = [0, *itertools.accumulate(cuts)]
    pieces = [data[a:b] for a, b in itertools.pairwise([*starts, len(data)])]
    with answering([piece for piece in pieces if piece]) as parser:
        assert [parser.read_response() for _ in answers] == answers


@pytest.mark.parametrize("size", [0, 1, 16_383, 16_384, 65_535, 65_536, 65_537, 1_051_968, 3_999_000])
def test_long_values_are_bytearrays_of_their_own(size: int) -> None:
    value = bytes(range(256)) * (size // 256 + 1)
    value = value[:size]
    with answering([wire(value), wire(7)]) as parser:
        found = parser.read_response()
        assert found == value
        assert type(found) is (bytearray if size >= LONG_VALUE_BYTES else bytes)
        assert parser.read_response() == 7


@pytest.mark.parametrize(
    "data",
    [
        b"+OK\r\n",
        b":-5\r\n",
        b"$-1\r\n",
        b"*-1\r\n",
        b"*0\r\n",
        b"$0\r\n\r\n",
        b"$3\r\n\r\n\r\r\n",
        b"*2\r\n:1\r\n*1\r\n$-1\r\n",
    ],
)
def test_the_same_as_redis_py_reads(data: bytes) -> None:
    """Its own parser of the same protocol, given the same bytes."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(data)
        theirs.close()
        reference: Any = _RESP2Parser(65536)  # type: ignore[no-untyped-call]
        reference.on_connect(Connected(ours))
        wanted = reference.read_response(disable_decoding=True)
    with answering([data]) as parser:
        assert parser.read_response() == wanted


def test_errors_are_told_apart_as_by_redis_py() -> None:
    data = b"-OOM command not allowed\r\n-WRONGTYPE no\r\n-ERR no\r\n*2\r\n:1\r\n-ERR inner\r\n-LOADING wait\r\n"
    with answering([data]) as parser:
        assert isinstance(parser.read_response(), redis.OutOfMemoryError)
        assert "WRONGTYPE" in str(parser.read_response())
        assert type(parser.read_response()) is redis.ResponseError
        one, inner = parser.read_response()
        assert (one, type(inner)) == (1, redis.ResponseError)
        with pytest.raises(redis.BusyLoadingError):  # not about this command alone
            parser.read_response()


@pytest.mark.parametrize(
    "data",
    [
        b"\r\n",
        b"HTTP/1.1 400 Bad Request\r\n",
        b"$\r\n",
        b"$abc\r\n",
        b"$1_0\r\n0123456789\r\n",
        b"$ 3\r\nabc\r\n",
        b"$-7\r\n",
        b"$--1\r\n",
        b"$3\r\nabcdef\r\n",
        b":\r\n",
        b":1.5\r\n",
        b":" + b"9" * 100 + b"\r\n",
        b"*-5\r\n",
        b"*1\r\n" * 50 + b":1\r\n",
        b"+" + b"x" * 200_000,
    ],
)
def test_nonsense_is_an_error(data: bytes) -> None:
    with answering([data]) as parser, pytest.raises(redis.InvalidResponse, match="not an answer of a Redis"):
        parser.read_response()


def test_what_is_announced_too_large_is_not_waited_for() -> None:
    with answering([b"$4000001\r\n"]) as parser, pytest.raises(ReplyTooLargeError, match="4000001 bytes"):
        parser.read_response()
    flood = [b"*1000\r\n", *[wire(bytes(60_000))] * 100]
    with answering(flood) as parser, pytest.raises(ReplyTooLargeError, match="more than 4000000 bytes"):
        parser.read_response()


@pytest.mark.parametrize("data", [b"", b"$5", b"$5\r\nab", b"$100000\r\nab", b"*2\r\n:1\r\n"])
def test_an_end_in_the_middle_is_a_dropped_connection(data: bytes) -> None:
    with answering([data] if data else []) as parser, pytest.raises(DroppedConnectionError, match="closed"):
        parser.read_response()


@pytest.mark.parametrize(("piece_bytes", "arrives"), [(4 * 1024**2, True), (1024, False)])
def test_a_large_answer_has_the_time_that_its_bytes_take(piece_bytes: int, arrives: bool) -> None:
    """0.2 s for the exchange, of which the answer takes more, in eight pieces; small ones are no reason to wait."""
    ours, theirs = socket.socketpair()
    value = b"x" * (8 * piece_bytes)

    def talk() -> None:
        with theirs, suppress(OSError):
            theirs.sendall(b"$%d\r\n" % len(value))
            for at in range(0, len(value), piece_bytes):
                time.sleep(0.05)
                theirs.sendall(value[at : at + piece_bytes])
            theirs.sendall(b"\r\n")

    speaker = threading.Thread(target=talk)
    speaker.start()
    parser = ReplyParser(socket_read_size=1)
    parser.on_connect(Connected(BoundedSocket(ours, 0.2, 64 * 1024**2)))
    with nullcontext() if arrives else pytest.raises(TimeoutError):
        assert len(parser.read_response()) == len(value)
    ours.close()
    speaker.join()


def test_an_idle_connection_says_whether_it_is_of_use() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        sock = BoundedSocket(ours, 10, LIMIT_BYTES)
        parser = ReplyParser(socket_read_size=1)
        assert not parser.can_read()
        parser.on_connect(Connected(sock))
        assert not parser.can_read()
        theirs.sendall(b":1\r\n:2\r\n")
        assert parser.read_response() == 1
        assert parser.can_read()  # an answer to nothing
        theirs.close()
        parser.on_connect(Connected(sock))
        with pytest.raises(DroppedConnectionError):
            parser.can_read()
