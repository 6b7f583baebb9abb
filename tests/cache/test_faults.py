"""Whatever happens to a real Redis: every call ends in time, with the right tokens or none, and says what happened."""

import logging
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fastervlm_video.cache import (
    CircuitBreaker,
    EmbeddedRedis,
    MemoryStore,
    RedisStore,
    RetryBudget,
    Storage,
    TokenCache,
    encode_tokens,
    read_header,
)
from tests.cache.conftest import server_pid, stopped
from tests.cache.relay import Relay
from tests.cache.samples import FINGERPRINT, assert_same, make_cache_key, make_tokens, put_together

KEY, OTHER = make_cache_key(), make_cache_key(video="c")
NAME = "fastervlm:video:" + "a" * 64
CLAIM = f"fastervlm:claim:{'a' * 64}:{'b' * 64}"
HEAD, BODY = ("b" * 64 + suffix for suffix in (".h", ".b"))
TOKENS = make_tokens((12, 12), width=4096)  # 200 kB: an answer that arrives in several pieces
BLOB = encode_tokens(TOKENS)
LIMIT_SECONDS, SLACK_SECONDS = 0.2, 10.0


@pytest.fixture
def relay(server: EmbeddedRedis, runtime_dir: Path) -> Iterator[Relay]:
    """Between the cache and the Redis."""
    with Relay(runtime_dir / "redis.sock") as running:
        yield running


@pytest.fixture
def relayed(relay: Relay) -> Iterator[TokenCache]:
    """A cache behind it, patient enough for a busy machine."""
    opened = TokenCache(RedisStore(relay.url, operation_timeout_seconds=30, connect_timeout_seconds=30))
    yield opened
    opened.close()


@pytest.fixture
def cache(server: EmbeddedRedis) -> Iterator[TokenCache]:
    opened = TokenCache(RedisStore(server.url, operation_timeout_seconds=30))
    yield opened
    opened.close()


def never_opening() -> CircuitBreaker:
    return CircuitBreaker(failures=10**6, cooldown_seconds=0)


CALLS: dict[str, Callable[[TokenCache], object]] = {
    "lookup": lambda cache: cache.lookup(KEY, 12, FINGERPRINT) is not None,
    "probe": lambda cache: cache.holds(KEY, 12),
    "insert": lambda cache: cache.insert(KEY, BLOB),
    "claim": lambda cache: cache.claim(KEY, "me", 60),
    "delete": lambda cache: cache.delete_video(KEY.video) is not None,
}


@pytest.mark.parametrize("what", CALLS)
@pytest.mark.parametrize("when", ["idle", "at the request", "before the answer", "in the answer"])
def test_a_dropped_connection_costs_nothing(
    relay: Relay, relayed: TokenCache, plain: Any, caplog: pytest.LogCaptureFixture, what: str, when: str
) -> None:
    assert relayed.insert(KEY, BLOB)
    if when == "idle":
        relay.hang_up()
    elif when == "at the request":
        relay.lost_requests = 1
    else:
        relay.lost_answers, relay.answer_bytes = 1, 0 if when == "before the answer" else 3
    assert CALLS[what](relayed) is True
    stats = relayed.stats()
    assert (stats.errors, stats.misses, stats.skipped) == (0, 0, 0)
    if when != "idle":  # which is noticed before it is used, if the news has arrived
        assert stats.retries == 1
        assert "which is tried again" in caplog.text
    if what == "lookup":
        assert_same(relayed.lookup(KEY, 12, FINGERPRINT), TOKENS)
    elif what == "claim":
        assert plain.get(CLAIM) == b"me"
    elif what == "delete":
        assert plain.exists(NAME) == 0
    else:
        assert plain.hget(NAME, BODY) == BLOB


def test_an_answer_lost_halfway_is_read_again_whole(relay: Relay, relayed: TokenCache) -> None:
    assert relayed.insert(KEY, BLOB)
    for cut in (1, 10, 70_000, len(BLOB) - 1, len(BLOB)):
        relay.lost_answers, relay.answer_bytes = 1, cut
        assert_same(relayed.lookup(KEY, 12, FINGERPRINT), TOKENS)
    assert (relayed.stats().retries, relayed.stats().hits, relayed.stats().errors) == (5, 5, 0)


def test_a_release_whose_answer_is_lost_leaves_the_next_owner_alone(
    relay: Relay, relayed: TokenCache, server: EmbeddedRedis
) -> None:
    """Between the two tries of the release, somebody else takes the claim."""
    other = TokenCache(RedisStore(server.url, operation_timeout_seconds=30))
    assert relayed.claim(KEY, "me", 60)
    relay.lost_answers, relay.answer_bytes = 1, 0
    tries: list[bool] = []

    def second_try() -> None:
        tries.append(other.claim(KEY, "heir", 60))

    relay.on_request = second_try
    relayed.release(KEY, "me")
    assert tries == [False, True]  # before the release, and between its two tries
    assert not relayed.claim(KEY, "me", 60)
    assert relayed.stats().retries == 1
    other.close()


def test_a_larger_entry_that_comes_between_two_tries_stays(
    relay: Relay, relayed: TokenCache, server: EmbeddedRedis
) -> None:
    other = TokenCache(RedisStore(server.url, operation_timeout_seconds=30))
    small, large = encode_tokens(make_tokens((2, 2))), encode_tokens(make_tokens((5, 5)))
    requests: list[None] = []

    def third_request() -> None:  # probe, write (its answer is lost), probe
        requests.append(None)
        if len(requests) == 2:
            relay.lost_answers, relay.answer_bytes = 1, 0
        if len(requests) == 3:
            assert other.insert(KEY, large)

    relay.on_request = third_request
    relayed.insert(KEY, small)
    assert len(requests) >= 3
    assert_same(relayed.lookup(KEY, None, FINGERPRINT), make_tokens((5, 5)))
    other.close()


def test_a_sick_server_is_not_asked_much_more_often(relay: Relay) -> None:
    """Counted where the requests arrive: without the budget it would be twice as often."""
    calls, share, reserve = 200, 0.1, 5
    budget = RetryBudget(share=share, reserve=reserve)
    store = RedisStore(relay.url, operation_timeout_seconds=30, breaker=never_opening(), retries=budget)
    cache = TokenCache(store)
    relay.lost_requests = 10**6
    for _ in range(calls):
        assert cache.lookup(KEY, 12, FINGERPRINT) is None
    stats = cache.stats()
    assert (stats.misses, stats.errors) == (calls, calls)
    assert relay.requests == calls + stats.retries
    assert share * calls <= stats.retries <= share * calls + reserve
    cache.close()


def test_waiting_in_vain_is_not_repeated(relay: Relay, plain: Any) -> None:
    """A time limit that ran out is no dropped connection: a second wait would double what a hung server costs."""
    store = RedisStore(relay.url, operation_timeout_seconds=LIMIT_SECONDS, breaker=never_opening())
    cache = TokenCache(store)
    cache.holds(KEY, 1)
    before = relay.requests
    with stopped(server_pid(plain)):
        for _ in range(3):
            assert cache.lookup(KEY, 12, FINGERPRINT) is None
    assert relay.requests == before + 3
    assert cache.stats().retries == 0
    cache.close()


def test_a_connection_dropped_late_is_not_tried_again(relay: Relay, plain: Any) -> None:
    """The server hangs for longer than an exchange may take, and then the connection is lost: time is up."""
    store = RedisStore(relay.url, operation_timeout_seconds=LIMIT_SECONDS, breaker=never_opening())
    cache = TokenCache(store)
    assert cache.claim(KEY, "me", 60)
    relay.lost_requests = 1
    relay.on_request = lambda: time.sleep(3 * LIMIT_SECONDS)
    assert not cache.holds(KEY, 1)
    assert (cache.stats().retries, cache.stats().errors) == (0, 1)
    cache.close()


@pytest.mark.parametrize("when", ["before", "during", "after"])
def test_killed_redis(
    server: EmbeddedRedis,
    relay: Relay,
    relayed: TokenCache,
    plain: Any,
    caplog: pytest.LogCaptureFixture,
    when: str,
) -> None:
    """A hit until then, misses while it is gone, and a cache again once it is back."""
    assert relayed.insert(KEY, BLOB)
    pid = server_pid(plain)

    def kill() -> None:
        os.kill(pid, signal.SIGKILL)
        server.close()  # waits until it is gone

    if when == "before":
        kill()
    elif when == "during":
        relay.on_request = kill
    else:
        assert_same(relayed.lookup(KEY, 12, FINGERPRINT), TOKENS)
        kill()
    assert relayed.lookup(KEY, 12, FINGERPRINT) is None
    assert relayed.claim(KEY, "me", 60)
    assert not relayed.insert(KEY, BLOB)
    stats = relayed.stats()
    assert (stats.hits, stats.misses) == (int(when == "after"), 1)
    assert stats.errors == 3
    assert "failed to get" in caplog.text
    relay.on_request = lambda: None
    server.ensure_running()
    revived = TokenCache(RedisStore(relay.url, operation_timeout_seconds=30))
    assert revived.lookup(KEY, 12, FINGERPRINT) is None  # it has forgotten everything, which is no error
    assert revived.insert(KEY, BLOB)
    assert_same(revived.lookup(KEY, 12, FINGERPRINT), TOKENS)
    assert revived.stats().errors == 0
    revived.close()


def test_hung_redis(server: EmbeddedRedis, plain: Any, caplog: pytest.LogCaptureFixture) -> None:
    """For two seconds and more, under fire from several threads: nobody waits longer than the limit."""
    breaker = CircuitBreaker(failures=3, cooldown_seconds=0.5)
    cache = TokenCache(RedisStore(server.url, operation_timeout_seconds=LIMIT_SECONDS, breaker=breaker))
    patient = TokenCache(RedisStore(server.url, operation_timeout_seconds=30))
    assert patient.insert(KEY, BLOB)
    until, waits, found = time.monotonic() + 2.5, [0.0], [False]

    def ask() -> None:
        while (began := time.monotonic()) < until:
            found.append(cache.lookup(KEY, 12, FINGERPRINT) is not None)
            waits.append(time.monotonic() - began)

    with stopped(server_pid(plain)):
        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    stats = cache.stats()
    assert not any(found)
    assert max(waits) < 2 * LIMIT_SECONDS + SLACK_SECONDS
    assert stats.misses == stats.errors == len(waits) - 1
    tried = stats.errors - stats.skipped
    assert 3 <= tried <= 4 * 3 + 2.5 / 0.5 + 4  # until it opened, and a probe for each cool-down
    assert stats.skipped > tried
    assert stats.retries == 0
    assert stats.seconds >= 3 * LIMIT_SECONDS
    assert "failed to get" in caplog.text
    assert "circuit open" in caplog.text
    for _ in range(200):
        if (tokens := cache.lookup(KEY, 12, FINGERPRINT)) is not None:
            break
        time.sleep(0.1)
    assert_same(tokens, TOKENS)
    assert "circuit closed" in caplog.text
    cache.close()
    patient.close()


def test_full_redis(cache: TokenCache, plain: Any, caplog: pytest.LogCaptureFixture) -> None:
    """What is there is served and can be deleted, what is new is refused, and claims no longer keep anybody waiting."""
    assert cache.insert(KEY, BLOB)
    plain.config_set("maxmemory-policy", "noeviction")
    plain.config_set("maxmemory", "1")
    assert not cache.insert(OTHER, BLOB)
    assert "OOM command not allowed" in caplog.text
    assert cache.claim(OTHER, "a", 60)
    assert cache.claim(OTHER, "b", 60)
    assert cache.holds(KEY, 12)
    assert_same(cache.lookup(KEY, 12, FINGERPRINT), TOKENS)
    assert cache.lookup(OTHER, 12, FINGERPRINT) is None
    assert cache.stats().errors == 3
    assert cache.stats().skipped == 0  # it answers, if only to refuse
    assert cache.delete_video(KEY.video) == 1
    plain.config_set("maxmemory", str(32 * 1024**2))
    assert cache.insert(OTHER, BLOB)
    assert_same(cache.lookup(OTHER, 12, FINGERPRINT), TOKENS)


def test_evictions_are_reported_by_whoever_evicts(cache: TokenCache, plain: Any) -> None:
    assert cache.evictions() == 0
    for number in range(40):
        plain.set(f"other {number}", bytes(1_000_000))
    assert cache.evictions() == plain.info("stats")["evicted_keys"] > 0
    memory = TokenCache(MemoryStore(500_000))
    assert memory.evictions() == 0
    for video in "0123":
        assert memory.insert(make_cache_key(video), BLOB)
    assert memory.evictions() == 2
    os.kill(server_pid(plain), signal.SIGKILL)
    assert cache.evictions() is None


@pytest.mark.parametrize("dtype", [Storage.FLOAT16, Storage.INT8])
def test_flipped_and_missing_bytes_anywhere(
    server: EmbeddedRedis, plain: Any, caplog: pytest.LogCaptureFixture, dtype: Storage
) -> None:
    """A few at a time, at random places of a large entry: each time a miss that says why, and nothing in the way."""
    cache = TokenCache(RedisStore(server.url, operation_timeout_seconds=30), dtype=dtype)
    lots, blob = random.Random(7), encode_tokens(TOKENS, dtype=dtype)
    damage: list[bytes] = []
    for _ in range(40):
        flipped = bytearray(blob)
        for position in lots.sample(range(len(blob)), lots.randint(1, 4)):
            flipped[position] ^= lots.randint(1, 255)
        damage.append(bytes(flipped))
    damage += [blob[: lots.randrange(len(blob))] for _ in range(20)] + [blob + b"\0", blob * 2, b"\0", blob[::-1]]
    for wrong in damage:
        plain.hset(NAME, mapping={HEAD: blob[: read_header(blob).header_size], BODY: wrong})
        caplog.clear()
        assert cache.lookup(KEY, 12, FINGERPRINT) is None
        assert [record.levelno for record in caplog.records] == [logging.WARNING]
        assert "unusable entry" in caplog.text
        assert plain.exists(NAME) == 0
    stats = cache.stats()
    assert (stats.hits, stats.misses, stats.errors) == (0, len(damage), len(damage))
    assert cache.insert(KEY, blob)
    assert_same(cache.lookup(KEY, 12, FINGERPRINT), TOKENS, dtype)
    cache.close()


def test_another_versions_and_another_settings_values(
    server: EmbeddedRedis, cache: TokenCache, plain: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Under our very key, which a sound writer would not use for them."""
    cases = {
        "format version 1": put_together(b"{}", b"", version=1),
        "stored as int8": encode_tokens(TOKENS, dtype=Storage.INT8),
        "stored as float32": encode_tokens(TOKENS, dtype=Storage.FLOAT32),
        "tower-2": encode_tokens(make_tokens((12, 12), fingerprint="tower-2")),
        "not token bytes": b"\x80\x04cos\nsystem\n(S'sleep infinity'\ntR.",
    }
    for reason, wrong in cases.items():
        plain.hset(NAME, BODY, wrong)
        caplog.clear()
        assert cache.lookup(KEY, 12, FINGERPRINT) is None
        assert reason in caplog.text
        assert cache.insert(KEY, BLOB)
        assert_same(cache.lookup(KEY, 12, FINGERPRINT), TOKENS)
    assert (cache.stats().hits, cache.stats().errors) == (len(cases), len(cases))


@pytest.mark.parametrize("kind", ["string", "list", "set", "sorted set", "stream"])
@pytest.mark.parametrize("what", CALLS)
def test_values_of_another_type_under_our_names(
    cache: TokenCache, plain: Any, caplog: pytest.LogCaptureFixture, kind: str, what: str
) -> None:
    occupy: dict[str, Callable[[str], tuple[Any, ...]]] = {
        "string": lambda name: ("SET", name, BLOB),
        "list": lambda name: ("RPUSH", name, BLOB),
        "set": lambda name: ("SADD", name, BLOB),
        "sorted set": lambda name: ("ZADD", name, 1, "x"),
        "stream": lambda name: ("XADD", name, "*", "x", "1"),
    }
    plain.execute_command(*occupy[kind](NAME))
    if what != "claim":
        assert CALLS[what](cache) is (what in {"insert", "delete"})
        assert cache.stats().errors == 0  # an ordinary miss: what was there is nobody's tokens
        assert "was not a hash of this cache" in caplog.text
        assert plain.exists(NAME) == (what == "insert")
    plain.execute_command(*occupy[kind](CLAIM))
    assert cache.claim(KEY, "me", 60) is (kind != "string")  # a string is a claim, of somebody without an end
    assert cache.insert(KEY, BLOB)
    assert_same(cache.lookup(KEY, 12, FINGERPRINT), TOKENS)


_DIES_WITH_A_CLAIM = """
import sys
from fastervlm_video.cache import CacheKey, RedisStore, TokenCache
cache = TokenCache(RedisStore(sys.argv[1], operation_timeout_seconds=30))
print(cache.claim(CacheKey(video="a" * 64, variant="b" * 64), "leader", float(sys.argv[2])), flush=True)
sys.stdin.read()
"""


def test_the_claim_of_a_leader_that_was_killed_lapses(server: EmbeddedRedis, cache: TokenCache) -> None:
    """Another process holds it, and has no time to give it back."""
    command = [sys.executable, "-c", _DIES_WITH_A_CLAIM, server.url, "5"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as leader:
        assert leader.stdout is not None
        assert leader.stdout.readline() == "True\n"
        held = not cache.claim(KEY, "heir", 60)
        leader.kill()
    assert held
    for _ in range(300):
        if taken := cache.claim(KEY, "heir", 60):
            break
        time.sleep(0.1)
    assert taken
    assert not cache.claim(KEY, "third", 60)
    assert cache.insert(KEY, BLOB)
    cache.release(KEY, "heir")
    assert cache.claim(KEY, "third", 60)
    assert cache.stats().errors == 0


@pytest.mark.parametrize("how", ["evicted", "deleted"])
def test_a_claim_that_is_lost_costs_work_and_nothing_else(
    server: EmbeddedRedis, cache: TokenCache, plain: Any, how: str
) -> None:
    """Two makers at once, neither of which knows of the other: both succeed, and the larger result is kept."""
    other = TokenCache(RedisStore(server.url, operation_timeout_seconds=30))
    assert cache.claim(KEY, "first", 60)
    if how == "deleted":
        plain.delete(CLAIM)
    else:
        number = 0
        while plain.exists(CLAIM) and number < 2000:  # the server makes room, and does not ask whose it is
            plain.set(f"filler {number}", bytes(500_000))
            number += 1
    assert plain.exists(CLAIM) == 0
    assert other.claim(KEY, "second", 60)
    large, small = make_tokens((9, 9)), make_tokens((4, 4))
    assert cache.insert(KEY, encode_tokens(large))
    assert not other.insert(KEY, encode_tokens(small))
    cache.release(KEY, "first")
    assert not cache.claim(KEY, "third", 60)  # that was not the first's to give
    assert_same(other.lookup(KEY, 4, FINGERPRINT), small)
    assert_same(cache.lookup(KEY, 9, FINGERPRINT), large)
    assert (cache.stats().errors, other.stats().errors) == (0, 0)
    other.close()


def test_replicas_with_different_settings_miss_and_do_not_err(server: EmbeddedRedis, plain: Any) -> None:
    """The setting is in the key, so each keeps its own entries of one video, and they are deleted together."""
    caches = {dtype: TokenCache(RedisStore(server.url, operation_timeout_seconds=30), dtype=dtype) for dtype in Storage}
    keys = {dtype: make_cache_key("a", digit) for dtype, digit in zip(Storage, "1234", strict=True)}
    for dtype, cache in caches.items():
        assert cache.lookup(keys[dtype], 12, FINGERPRINT) is None
        assert cache.insert(keys[dtype], encode_tokens(TOKENS, dtype=dtype))
    for dtype, cache in caches.items():
        assert_same(cache.lookup(keys[dtype], 12, FINGERPRINT), TOKENS, dtype)
        assert cache.stats().errors == 0
    assert plain.hlen(NAME) == 2 * len(caches)
    assert caches[Storage.INT8].delete_video(KEY.video) == len(caches)
    for cache in caches.values():
        cache.close()
