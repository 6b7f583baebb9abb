import os
import signal
import socket
import threading
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fastervlm_video.cache import CircuitBreaker, EmbeddedRedis, RedisStore, StoredHeader
from fastervlm_video.errors import InvalidRequestError, UnavailableError
from tests.cache.conftest import server_pid, stopped
from tests.cache.liar import Behaviour, drips, floods, lying_server, says
from tests.cache.samples import make_cache_key

KEY = make_cache_key()
NAME = "fastervlm:video:" + "a" * 64
HEAD, BODY = ("b" * 64 + suffix for suffix in (".h", ".b"))


@pytest.fixture
def store(server: EmbeddedRedis) -> Iterator[RedisStore]:
    opened = RedisStore(server.url, ttl_seconds=60)
    yield opened
    opened.close()


def test_one_hash_per_video(store: RedisStore, plain: Any) -> None:
    blob = bytes(range(256)) * 40
    assert store.get(KEY) is None
    assert store.get_header(KEY) is None
    assert store.put(KEY, blob, b"head\xff")
    assert plain.keys() == [NAME.encode()]
    assert plain.hgetall(NAME) == {HEAD.encode(): b"head\xff", BODY.encode(): blob}
    assert 55_000 < plain.pttl(NAME) <= 60_000
    assert store.get(KEY) == blob
    assert store.get_header(KEY) == StoredHeader(b"head\xff", len(blob))


def test_without_a_ttl_entries_stay(server: EmbeddedRedis, plain: Any) -> None:
    store = RedisStore(server.url)
    store.put(KEY, b"x", b"h")
    assert plain.pttl(NAME) == -1
    store.close()


def test_short_ttl_expires(server: EmbeddedRedis) -> None:
    store = RedisStore(server.url, ttl_seconds=0.05)
    store.put(KEY, b"x", b"h")
    time.sleep(0.2)
    assert store.get(KEY) is None
    store.close()


def test_deleting(store: RedisStore, plain: Any) -> None:
    for variant in "123":
        store.put(make_cache_key("a", variant), b"x", b"h")
    store.put(make_cache_key("c", "1"), b"y", b"h")
    assert store.discard(make_cache_key("a", "1"))
    assert not store.discard(make_cache_key("a", "1"))
    assert plain.hlen(NAME) == 4
    assert store.delete_video("a" * 64) == 2
    assert store.delete_video("a" * 64) == 0
    assert plain.keys() == [b"fastervlm:video:" + b"c" * 64]


def test_keep_decides_over_the_entry_in_the_way(store: RedisStore, plain: Any) -> None:
    assert store.put(KEY, b"12", b"old", keep=lambda stored: True)  # nothing is in the way
    assert not store.put(KEY, b"3", b"new", keep=lambda stored: stored == StoredHeader(b"old", 2))
    assert plain.hget(NAME, BODY) == b"12"
    assert store.put(KEY, b"3", b"new", keep=lambda stored: False)
    assert plain.hgetall(NAME) == {HEAD.encode(): b"new", BODY.encode(): b"3"}


def test_a_write_between_question_and_answer_is_not_lost(store: RedisStore, plain: Any) -> None:
    """While it is being decided whether the old entry stays, another process writes a better one."""
    store.put(KEY, b"small", b"small")
    asked: list[bytes] = []

    def keep(stored: StoredHeader) -> bool:
        asked.append(stored.header)
        if len(asked) == 1:
            plain.hset(NAME, mapping={HEAD: b"large", BODY: b"larger"})
        return stored.header == b"large"

    assert not store.put(KEY, b"medium", b"medium", keep=keep)
    assert asked == [b"small", b"large"]
    assert plain.hget(NAME, BODY) == b"larger"


def test_gives_up_when_others_keep_writing(store: RedisStore, plain: Any) -> None:
    store.put(KEY, b"0", b"0")
    asked: list[bytes] = []

    def keep(stored: StoredHeader) -> bool:
        asked.append(stored.header)
        plain.hset(NAME, HEAD, f"other {len(asked)}")
        return False

    assert not store.put(KEY, b"mine", b"mine", keep=keep)
    assert 1 < len(asked) < 10


@pytest.mark.parametrize("kind", ["string", "list", "set"])
def test_something_else_under_our_name_is_a_miss_and_is_replaced(store: RedisStore, plain: Any, kind: str) -> None:
    def occupy() -> None:
        {"string": plain.set, "list": plain.rpush, "set": plain.sadd}[kind](NAME, "foreign")

    occupy()
    assert store.get(KEY) is None
    assert plain.exists(NAME) == 0
    occupy()
    assert store.get_header(KEY) is None
    occupy()
    assert store.put(KEY, b"x", b"h", keep=lambda stored: True)
    assert store.get(KEY) == b"x"
    plain.delete(NAME)
    occupy()
    assert not store.discard(KEY)
    occupy()
    store.delete_video(KEY.video)
    assert plain.exists(NAME) == 0


def test_entries_that_are_too_large_are_neither_written_nor_read(server: EmbeddedRedis, plain: Any) -> None:
    store = RedisStore(server.url, max_entry_bytes=100_000)
    assert not store.put(KEY, bytes(100_001), b"h")
    assert plain.keys() == []
    plain.hset(NAME, mapping={HEAD: b"h", BODY: bytes(8_000_000)})
    with pytest.raises(UnavailableError, match="more than"):
        store.get(KEY)
    assert plain.exists(NAME) == 0  # and so the next one can be served
    assert store.put(KEY, bytes(100_000), b"h")
    assert store.get(KEY) == bytes(100_000)
    store.close()


def test_full_redis_refuses_writes_and_still_answers_reads(store: RedisStore, plain: Any) -> None:
    store.put(KEY, b"x", b"h")
    plain.config_set("maxmemory-policy", "noeviction")
    plain.config_set("maxmemory", "1")
    for _ in range(5):
        with pytest.raises(UnavailableError, match="maxmemory"):
            store.put(make_cache_key("c"), bytes(1000), b"h")
    assert store.get(KEY) == b"x"  # refusals do not open the circuit
    assert plain.exists("fastervlm:video:" + "c" * 64) == 0


def test_eviction_takes_whole_videos(server: EmbeddedRedis, plain: Any) -> None:
    store = RedisStore(server.url)
    for number in range(60):
        for variant in "12":
            store.put(make_cache_key(f"{number:02x}"[-1] if number < 16 else "f", variant), bytes(2_000_000), b"h")
    assert plain.info("memory")["used_memory"] <= 34 * 1024**2
    assert plain.info("stats")["evicted_keys"] > 0
    store.close()


def test_killed_server_is_an_error_at_once(store: RedisStore, plain: Any) -> None:
    store.put(KEY, b"x", b"h")
    os.kill(server_pid(plain), signal.SIGKILL)
    for _ in range(5):
        with pytest.raises(UnavailableError):
            store.get(KEY)


def test_reconnects_to_a_server_that_came_back(server: EmbeddedRedis, store: RedisStore, plain: Any) -> None:
    store.put(KEY, b"x", b"h")
    os.kill(server_pid(plain), signal.SIGKILL)
    server.close()
    server.ensure_running()
    assert store.get(KEY) is None  # an idle connection to the dead one was no obstacle
    assert store.put(KEY, b"y", b"h")


def test_stopped_server_costs_the_time_limit_and_then_nothing(server: EmbeddedRedis, plain: Any) -> None:
    now = [0.0]
    breaker = CircuitBreaker(failures=2, cooldown_seconds=5, clock=lambda: now[0])
    store = RedisStore(server.url, operation_timeout_seconds=0.2, breaker=breaker)
    store.put(KEY, b"x", b"h")
    with stopped(server_pid(plain)):
        for call in (lambda: store.get(KEY), lambda: store.put(KEY, b"y", b"h")):
            began = time.monotonic()
            with pytest.raises(UnavailableError, match="failed"):
                call()
            assert 0.1 < time.monotonic() - began < 5
        began = time.monotonic()
        for _ in range(200):
            with pytest.raises(UnavailableError, match="skipped"):
                store.get(KEY)
        assert time.monotonic() - began < 10  # 40 s without the breaker
        with pytest.raises(UnavailableError, match="failed to delete"):
            store.delete_video("c" * 64)  # deleting is tried all the same
    with pytest.raises(UnavailableError, match="skipped"):
        store.get(KEY)
    now[0] = 5.0
    assert store.get(KEY) == b"x"
    store.close()


def test_connections_survive_errors(server: EmbeddedRedis, plain: Any) -> None:
    """The pool must not lose a connection with each failure."""
    store = RedisStore(
        server.url,
        operation_timeout_seconds=0.05,
        max_connections=2,
        breaker=CircuitBreaker(failures=1000, cooldown_seconds=0),
    )
    store.put(KEY, b"x", b"h")
    with stopped(server_pid(plain)):
        for _ in range(3):
            for call in (store.get, store.get_header, store.discard):
                with pytest.raises(UnavailableError):
                    call(KEY)
            with pytest.raises(UnavailableError):
                store.put(KEY, b"y", b"h")
            with pytest.raises(UnavailableError):
                store.delete_video(KEY.video)
    store.put(KEY, b"z", b"h")
    assert store.get(KEY) == b"z"
    store.close()


@pytest.mark.parametrize(
    "behaviour",
    [
        says(b":5\r\n"),
        says(b"*1\r\n:5\r\n"),
        says(b"$abc\r\n"),
        says(b"$-7\r\n"),
        says(b"HTTP/1.1 400 Bad Request\r\n\r\n"),
        says(b"\xff\x00\r\n"),
        says(b"*1\r\n" * 5000),
        says(b"-ERR no\r\n"),
        says(b"-LOADING wait\r\n"),
        says(b"-NOAUTH who are you\r\n"),
        floods(b"$99999999999\r\n", bytes(65536)),
        floods(b"$", b"9" * 65536),
        floods(b"*99999999999\r\n", b":1\r\n" * 16384),
        drips(b"$100\r\n", 0.05),
        drips(b"", 0.05),
        drips(b"$1000000\r\n", 0.0005),
    ],
)
def test_lying_server(behaviour: Behaviour) -> None:
    """Whatever it says, each call is one typed error, in bounded time and memory, and the store stays usable."""
    with lying_server(behaviour) as url:
        store = RedisStore(
            url,
            operation_timeout_seconds=0.3,
            max_entry_bytes=1_000_000,
            breaker=CircuitBreaker(failures=1000, cooldown_seconds=0),
        )
        for call in (store.get, store.get_header, lambda key: store.put(key, b"x", b"h")):
            tracemalloc.start()
            began = time.monotonic()
            with pytest.raises(UnavailableError):
                call(KEY)
            assert time.monotonic() - began < 10
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            assert peak < 40_000_000
        store.close()


def test_unreachable_addresses() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    for url in (f"redis://127.0.0.1:{port}", "unix:///nowhere/redis.sock"):
        store = RedisStore(url)
        with pytest.raises(UnavailableError, match="failed to get"):
            store.get(KEY)
        store.close()


def test_passwords_stay_out_of_messages(caplog: pytest.LogCaptureFixture) -> None:
    store = RedisStore("redis://me:secret@127.0.0.1:1/0?password=hidden")
    with pytest.raises(UnavailableError) as caught:
        store.get(KEY)
    assert "127.0.0.1:1" in str(caught.value)
    assert "secret" not in str(caught.value) + caplog.text
    assert "hidden" not in str(caught.value) + caplog.text
    store.close()


@pytest.mark.parametrize(
    "url", ["http://localhost", "localhost:6379", "", "redis://localhost:notaport", "redis://h?db=x"]
)
def test_urls_that_are_no_redis(url: str) -> None:
    with pytest.raises(InvalidRequestError, match="Redis"):
        RedisStore(url)


@pytest.mark.parametrize("option", ["ttl_seconds", "operation_timeout_seconds", "max_entry_bytes", "max_connections"])
def test_numbers_must_be_positive(option: str) -> None:
    with pytest.raises(InvalidRequestError, match=option):
        RedisStore("redis://localhost", **{option: 0})  # type: ignore[arg-type]


def test_url_options_do_not_undo_ours(server: EmbeddedRedis) -> None:
    store = RedisStore(server.url + "?decode_responses=yes&socket_timeout=60&protocol=3")
    store.put(KEY, b"\xff\xfe", b"h")
    assert store.get(KEY) == b"\xff\xfe"
    store.close()


def test_many_threads_share_few_connections(server: EmbeddedRedis) -> None:
    store = RedisStore(server.url, max_connections=2, operation_timeout_seconds=30)
    failures: list[BaseException] = []

    def work(digit: str) -> None:
        try:
            key, blob = make_cache_key(digit), digit.encode() * 10_000
            for _ in range(20):
                assert store.put(key, blob, b"h")
                assert store.get(key) == blob
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(digit,)) for digit in "01234567"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    store.close()


class FakeServer:
    """Counts how often it is asked to come back."""

    def __init__(self, works: bool) -> None:
        self.works = works
        self.asked = 0
        self.closed = False

    def ensure_running(self) -> None:
        self.asked += 1
        if not self.works:
            raise UnavailableError("not today")

    def close(self) -> None:
        self.closed = True


@pytest.mark.parametrize("works", [True, False])
def test_revival_is_not_tried_all_the_time(runtime_dir: Path, works: bool) -> None:
    behind = FakeServer(works)
    store = RedisStore(
        f"unix://{runtime_dir}/none.sock", server=behind, breaker=CircuitBreaker(failures=1000, cooldown_seconds=0)
    )
    for _ in range(50):
        with pytest.raises(UnavailableError):
            store.get(KEY)
    assert 1 <= behind.asked <= 5
    time.sleep(1.1)
    with pytest.raises(UnavailableError):
        store.get(KEY)
    assert behind.asked >= 2
    store.close()
    assert behind.closed
