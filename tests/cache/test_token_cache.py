import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from fastervlm_video.cache import (
    CacheStats,
    EmbeddedRedis,
    MemoryStore,
    NullStore,
    RedisStore,
    Storage,
    TokenCache,
    TokenStore,
    encode_tokens,
    read_header,
)
from fastervlm_video.errors import InvalidRequestError
from tests.cache.conftest import server_pid, stopped
from tests.cache.samples import FINGERPRINT, assert_same, make_cache_key, make_tokens, put_together

KEY = make_cache_key()
NAME = "fastervlm:video:" + "a" * 64
HEAD, BODY = ("b" * 64 + suffix for suffix in (".h", ".b"))


@pytest.fixture(params=["memory", "redis"])
def store(request: pytest.FixtureRequest) -> TokenStore:
    if request.param == "memory":
        return MemoryStore(2**20)
    return RedisStore(request.getfixturevalue("server").url)


@pytest.fixture
def cache(store: TokenStore) -> Iterator[TokenCache]:
    opened = TokenCache(store)
    yield opened
    opened.close()


@pytest.fixture
def redis_cache(server: EmbeddedRedis) -> Iterator[TokenCache]:
    opened = TokenCache(RedisStore(server.url, operation_timeout_seconds=0.2))
    yield opened
    opened.close()


def test_what_is_inserted_is_found(cache: TokenCache) -> None:
    tokens = make_tokens((5, 5), cls=True)
    blob = encode_tokens(tokens, dtype=cache.dtype)
    assert cache.lookup(KEY, 5, FINGERPRINT) is None
    assert not cache.holds(KEY, 5)
    assert cache.insert(KEY, blob)
    assert_same(cache.lookup(KEY, 5, FINGERPRINT), tokens)
    assert_same(cache.lookup(KEY, None, FINGERPRINT), tokens)
    stats = cache.stats()
    assert stats.seconds > 0
    assert replace(stats, seconds=0) == CacheStats(
        hits=2, misses=1, errors=0, inserts=1, bytes_read=2 * len(blob), bytes_written=len(blob)
    )


def test_smaller_budgets_are_slices_and_larger_ones_misses(cache: TokenCache) -> None:
    cache.insert(KEY, encode_tokens(make_tokens((7, 7))))
    for budget in range(1, 8):
        assert cache.holds(KEY, budget)
        assert_same(cache.lookup(KEY, budget, FINGERPRINT), make_tokens((budget, budget)))
    assert not cache.holds(KEY, 8)
    assert cache.lookup(KEY, 8, FINGERPRINT) is None
    assert (cache.stats().misses, cache.stats().errors) == (1, 0)
    assert cache.holds(KEY, 7)  # a miss for want of tokens throws nothing away


def test_methods_that_are_not_nested_are_served_as_they_are(cache: TokenCache) -> None:
    ragged = make_tokens((2, 5), nested=False)
    cache.insert(KEY, encode_tokens(ragged))
    assert cache.holds(KEY, 4)
    assert_same(cache.lookup(KEY, 4, FINGERPRINT), ragged)


def test_a_smaller_entry_never_replaces_a_larger_one(cache: TokenCache) -> None:
    large, small = make_tokens((7, 7)), make_tokens((3, 3))
    assert cache.insert(KEY, encode_tokens(small))
    assert cache.insert(KEY, encode_tokens(large))
    assert not cache.insert(KEY, encode_tokens(small))
    assert_same(cache.lookup(KEY, None, FINGERPRINT), large)
    assert (cache.stats().inserts, cache.stats().errors) == (2, 0)


@pytest.mark.parametrize(
    "other",
    [
        make_tokens((7, 7), nested=False),
        make_tokens((7, 7), fingerprint="tower-2"),
        make_tokens((7, 7), grid=(4, 4)),
        make_tokens((7, 7), width=5),
        make_tokens((7, 7, 7)),
        make_tokens((7, 7), cls=True),
        replace(make_tokens((7, 7)), method="another"),
    ],
)
def test_a_larger_entry_of_another_kind_is_no_obstacle(cache: TokenCache, other: Any) -> None:
    assert cache.insert(KEY, encode_tokens(other))
    assert cache.insert(KEY, encode_tokens(make_tokens((3, 3))))
    assert_same(cache.lookup(KEY, 3, FINGERPRINT), make_tokens((3, 3)))


def test_many_writers_leave_the_largest(cache: TokenCache) -> None:
    blobs = [encode_tokens(make_tokens((budget, budget))) for budget in range(1, 13)]

    def write(order: list[bytes]) -> None:
        for blob in order:
            cache.insert(KEY, blob)

    threads = [threading.Thread(target=write, args=(blobs[n:] + blobs[:n],)) for n in (0, 4, 8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert_same(cache.lookup(KEY, None, FINGERPRINT), make_tokens((12, 12)))
    assert cache.stats().errors == 0


def test_entries_that_do_not_belong_are_not_written(cache: TokenCache) -> None:
    blob = encode_tokens(make_tokens())
    assert not cache.insert(KEY, b"not token bytes")
    assert not cache.insert(KEY, blob[:-1] + b"\x01")
    assert not cache.insert(KEY, encode_tokens(make_tokens(), dtype=Storage.FLOAT32))
    assert cache.lookup(KEY, None, FINGERPRINT) is None
    assert cache.stats().errors == 3


def test_anothers_features_are_a_counted_and_logged_miss(cache: TokenCache, caplog: pytest.LogCaptureFixture) -> None:
    cache.insert(KEY, encode_tokens(make_tokens(fingerprint="tower-2")))
    assert cache.lookup(KEY, 3, FINGERPRINT) is None
    assert "tower-2" in caplog.text
    assert (cache.stats().misses, cache.stats().errors) == (1, 1)


def test_deleting_a_video_takes_all_its_variants(cache: TokenCache) -> None:
    for key in (KEY, make_cache_key(variant="c"), make_cache_key(video="d")):
        cache.insert(key, encode_tokens(make_tokens()))
    assert cache.delete_video(KEY.video) == 2
    assert cache.delete_video(KEY.video) == 0
    assert not cache.holds(KEY, 1)
    assert cache.holds(make_cache_key(video="d"), 1)


def test_damage_in_redis_is_a_miss_is_logged_and_is_overwritten(
    redis_cache: TokenCache, plain: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Every byte of an entry, and every smaller budget can then be cached again: nothing damaged stays in the way."""
    large, small = encode_tokens(make_tokens((2, 2), width=2)), encode_tokens(make_tokens((1, 1), width=2))
    for position in range(len(large)):
        assert redis_cache.insert(KEY, large)
        damaged = bytearray(large)
        damaged[position] ^= 0x10
        plain.hset(NAME, BODY, bytes(damaged))
        caplog.clear()
        assert redis_cache.lookup(KEY, 1, FINGERPRINT) is None
        assert [record.levelno for record in caplog.records] == [logging.WARNING]
        assert redis_cache.insert(KEY, small)
        assert redis_cache.lookup(KEY, 1, FINGERPRINT) is not None
    stats = redis_cache.stats()
    assert (stats.hits, stats.misses, stats.errors) == (len(large), len(large), len(large))


def test_damaged_headers_in_redis_never_make_a_promise(redis_cache: TokenCache, plain: Any) -> None:
    blob, small = encode_tokens(make_tokens((2, 2), width=2)), encode_tokens(make_tokens((1, 1), width=2))
    header = blob[: read_header(blob).header_size]
    for position in range(len(header)):
        damaged = bytearray(header)
        damaged[position] ^= 0x10
        plain.hset(NAME, mapping={HEAD: bytes(damaged), BODY: blob})
        assert not redis_cache.holds(KEY, 1)
        plain.hset(NAME, mapping={HEAD: bytes(damaged), BODY: blob})
        assert redis_cache.insert(KEY, small)


@pytest.mark.parametrize("what", ["no entry", "no header", "short entry", "other version", "other variant", "pickle"])
def test_other_wrong_things_in_redis(redis_cache: TokenCache, plain: Any, what: str) -> None:
    blob, small = encode_tokens(make_tokens((2, 2))), encode_tokens(make_tokens((1, 1)))
    redis_cache.insert(KEY, blob)
    header = plain.hget(NAME, HEAD)
    {
        "no entry": lambda: plain.hdel(NAME, BODY),
        "no header": lambda: plain.hset(NAME, HEAD, b""),
        "short entry": lambda: plain.hset(NAME, BODY, blob[:-1]),
        "other version": lambda: plain.hset(NAME, BODY, put_together(b"{}", b"", version=2)),
        "other variant": lambda: plain.hset(NAME, BODY, encode_tokens(make_tokens((2, 2), fingerprint="tower-2"))),
        "pickle": lambda: plain.hset(NAME, BODY, b"\x80\x04cos\nsystem\n(S'true'\ntR."),
    }[what]()
    served = redis_cache.lookup(KEY, 1, FINGERPRINT)
    assert (served is not None) == (what == "no header")  # the entry repeats its header
    if what in ("no entry", "short entry"):
        plain.hset(NAME, HEAD, header)
        assert not redis_cache.holds(KEY, 1)
    assert redis_cache.insert(KEY, small)
    assert_same(redis_cache.lookup(KEY, 1, FINGERPRINT), make_tokens((1, 1)))


def test_the_payload_does_not_move_for_a_probe(redis_cache: TokenCache, plain: Any) -> None:
    tokens = make_tokens((12, 12), width=4096)
    blob = encode_tokens(tokens)
    assert len(blob) > 150_000
    redis_cache.insert(KEY, blob)
    redis_cache.holds(KEY, 12)
    before = plain.info("stats")["total_net_output_bytes"]
    for _ in range(10):
        assert redis_cache.holds(KEY, 12)
    moved = plain.info("stats")["total_net_output_bytes"] - before
    assert moved < len(blob) // 2


def test_killed_redis_never_raises(redis_cache: TokenCache, plain: Any, caplog: pytest.LogCaptureFixture) -> None:
    blob = encode_tokens(make_tokens())
    redis_cache.insert(KEY, blob)
    os.kill(server_pid(plain), signal.SIGKILL)
    for _ in range(100):
        assert redis_cache.lookup(KEY, 1, FINGERPRINT) is None
        assert not redis_cache.holds(KEY, 1)
        assert not redis_cache.insert(KEY, blob)
        assert redis_cache.delete_video(KEY.video) is None
    assert (redis_cache.stats().misses, redis_cache.stats().errors) == (100, 400)
    look_ups = [record for record in caplog.records if "failed to get" in record.message]
    assert 1 <= len(look_ups) <= 5  # logged, and not a hundred times


def test_stopped_redis_never_raises_and_soon_costs_nothing(redis_cache: TokenCache, plain: Any) -> None:
    blob = encode_tokens(make_tokens())
    redis_cache.insert(KEY, blob)
    began = time.monotonic()
    with stopped(server_pid(plain)):
        for _ in range(300):
            assert redis_cache.lookup(KEY, 1, FINGERPRINT) is None
            assert not redis_cache.holds(KEY, 1)
            assert not redis_cache.insert(KEY, blob)
    assert time.monotonic() - began < 60  # 180 s at 0.2 s a call
    assert redis_cache.stats().misses == 300


def test_full_redis_never_raises_and_still_serves(redis_cache: TokenCache, plain: Any) -> None:
    blob = encode_tokens(make_tokens())
    redis_cache.insert(KEY, blob)
    plain.config_set("maxmemory-policy", "noeviction")
    plain.config_set("maxmemory", "1")
    for _ in range(5):
        assert not redis_cache.insert(make_cache_key("c"), blob)
    assert_same(redis_cache.lookup(KEY, 3, FINGERPRINT), make_tokens())


class BrokenStore(NullStore):
    """Fails in ways that a store should not."""

    def get(self, key: Any) -> bytes | None:
        raise ZeroDivisionError("a bug")

    def put(self, *args: Any, **kwargs: Any) -> bool:
        raise ZeroDivisionError("a bug")


def test_a_bug_in_a_store_is_logged_with_its_traceback(caplog: pytest.LogCaptureFixture) -> None:
    cache = TokenCache(BrokenStore())
    assert cache.lookup(KEY, 1, FINGERPRINT) is None
    assert not cache.insert(KEY, encode_tokens(make_tokens()))
    assert caplog.text.count("ZeroDivisionError: a bug") == 2
    assert (cache.stats().misses, cache.stats().errors) == (1, 2)


def test_null_store_keeps_nothing() -> None:
    cache = TokenCache(NullStore())
    assert not cache.insert(KEY, encode_tokens(make_tokens()))
    assert cache.lookup(KEY, 1, FINGERPRINT) is None
    assert not cache.holds(KEY, 1)
    assert cache.delete_video(KEY.video) == 0
    assert replace(cache.stats(), seconds=0) == CacheStats(misses=1)
    assert cache.evictions() is None
    cache.close()


def test_dtype_is_checked_when_opened() -> None:
    with pytest.raises(InvalidRequestError, match="not as int4"):
        TokenCache(NullStore(), dtype="int4")  # type: ignore[arg-type]
