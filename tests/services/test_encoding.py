"""One token set is made once, whichever replicas are asked for it."""

import asyncio
from dataclasses import dataclass, field
from typing import cast

import pytest

from fastervlm_video.cache import MemoryStore, TokenCache, encode_tokens
from fastervlm_video.config import Medium
from fastervlm_video.plan import TokenPlan
from services import encoding as module
from services.encoding import ClaimBoard, SharedEncoding
from services.handles import Encoding
from tests.cache.samples import make_cache_key, make_tokens

PLAN = TokenPlan(make_cache_key(), 1, Medium.VIDEO)


@dataclass
class Begun:
    """Stands for calls to the Decoder and the Encoder, which need a cluster."""

    cancelled: int = 0

    def cancel(self) -> None:
        self.cancelled += 1


@dataclass
class Replica:
    """What one Api replica does with one token set."""

    cache: TokenCache
    begun: list[Begun] = field(default_factory=list)

    def share(self) -> SharedEncoding:
        return SharedEncoding(ClaimBoard(self.cache), PLAN, self._begin)

    def _begin(self) -> Encoding:
        self.begun.append(Begun())
        return cast("Encoding", self.begun[-1])


@pytest.fixture
def cache() -> TokenCache:
    return TokenCache(MemoryStore(10**7))


async def _settle() -> None:
    await asyncio.sleep(0.1)


async def test_the_second_replica_waits_for_the_first_ones_result(cache: TokenCache) -> None:
    first, second = Replica(cache), Replica(cache)
    leader, follower = first.share(), second.share()
    assert await leader.wait() is not None
    await _settle()
    waiting = asyncio.create_task(follower.wait())
    await _settle()
    assert not waiting.done()
    cache.insert(PLAN.key, encode_tokens(make_tokens()))
    assert await asyncio.wait_for(waiting, 5) is None
    assert (len(first.begun), len(second.begun)) == (1, 0)
    leader.close(cancel=False)
    follower.close(cancel=True)
    assert first.begun[0].cancelled == 0


async def test_a_leader_that_gives_up_is_succeeded(cache: TokenCache) -> None:
    first, second = Replica(cache), Replica(cache)
    leader = first.share()
    await leader.wait()
    follower = second.share()
    leader.close(cancel=True)
    assert first.begun[0].cancelled == 1
    assert await asyncio.wait_for(follower.wait(), 5) is not None
    assert len(second.begun) == 1
    follower.close(cancel=False)


async def test_a_dead_leader_is_succeeded_when_its_claim_lapses(
    cache: TokenCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cache.claim(PLAN.key, "killed", 0.2)
    follower = Replica(cache).share()
    assert await asyncio.wait_for(follower.wait(), 5) is not None
    follower.close(cancel=True)


async def test_a_living_leader_keeps_its_claim(cache: TokenCache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CLAIM_SECONDS", 0.3)
    monkeypatch.setattr(module, "_RENEW_SECONDS", 0.05)
    leader = Replica(cache).share()
    await leader.wait()
    await asyncio.sleep(0.6)
    assert not cache.claim(PLAN.key, "thief", 1)
    leader.close(cancel=False)
    await _settle()
    assert cache.claim(PLAN.key, "next", 1)


async def test_what_was_finished_meanwhile_is_not_made_again(cache: TokenCache) -> None:
    cache.insert(PLAN.key, encode_tokens(make_tokens()))
    replica = Replica(cache)
    assert await replica.share().wait() is None
    assert not replica.begun


async def test_a_start_that_fails_reaches_the_waiters_and_frees_the_claim(cache: TokenCache) -> None:
    def fail() -> Encoding:
        raise RuntimeError("no handle")

    shared = SharedEncoding(ClaimBoard(cache), PLAN, fail)
    with pytest.raises(RuntimeError, match="no handle"):
        await shared.wait()
    await _settle()
    assert cache.claim(PLAN.key, "next", 1)
