"""The right to make an entry: one owner at a time, renewable, lapsing, and never in the way."""

import time
from collections.abc import Iterator
from typing import Any

import pytest

from fastervlm_video.cache import EmbeddedRedis, MemoryStore, NullStore, RedisStore, TokenCache, TokenStore
from tests.cache.conftest import server_pid, stopped
from tests.cache.samples import make_cache_key

KEY, OTHER = make_cache_key(), make_cache_key(variant="2")


@pytest.fixture(params=["memory", "redis"])
def store(request: pytest.FixtureRequest, server: EmbeddedRedis) -> Iterator[TokenStore]:
    made = MemoryStore(10**6) if request.param == "memory" else RedisStore(server.url)
    yield made
    made.close()


def test_one_owner_at_a_time(store: TokenStore) -> None:
    assert store.claim(KEY, "a", 10)
    assert not store.claim(KEY, "b", 10)
    assert store.claim(KEY, "a", 10)
    assert store.claim(OTHER, "b", 10)
    store.release(KEY, "b")
    assert not store.claim(KEY, "b", 10)
    store.release(KEY, "a")
    assert store.claim(KEY, "b", 10)


def test_a_claim_lapses_unless_it_is_renewed(store: TokenStore) -> None:
    assert store.claim(KEY, "dead", 0.05)
    assert store.claim(OTHER, "alive", 0.05)
    assert store.claim(OTHER, "alive", 10)
    time.sleep(0.1)
    assert store.claim(KEY, "heir", 10)
    assert not store.claim(OTHER, "heir", 10)
    store.release(KEY, "dead")
    assert not store.claim(KEY, "third", 10)


def test_without_a_store_everybody_goes_ahead(server: EmbeddedRedis, plain: Any) -> None:
    assert TokenCache(NullStore()).claim(KEY, "a", 10)
    assert TokenCache(NullStore()).claim(KEY, "b", 10)
    cache = TokenCache(RedisStore(server.url, operation_timeout_seconds=0.1))
    with stopped(server_pid(plain)):
        assert cache.claim(KEY, "a", 10)
        cache.release(KEY, "a")
    assert cache.stats().errors == 2


def test_a_lost_claim_is_taken_over(server: EmbeddedRedis, plain: Any) -> None:
    cache = TokenCache(RedisStore(server.url))
    assert cache.claim(KEY, "a", 10)
    plain.flushall()
    assert cache.claim(KEY, "b", 10)
    assert not cache.claim(KEY, "a", 10)
