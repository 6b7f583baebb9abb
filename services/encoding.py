"""Making one token set once, across all Api replicas.

Whoever is first to *claim* the set in the cache has it decoded and encoded; the others wait until the cache
holds it, or until the claim lapses because its owner died, and then take over. Without a working cache
everybody goes ahead: the claim saves work, and nothing depends on it.
"""

import asyncio
import logging
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from fastervlm_video.cache import TokenCache
from fastervlm_video.plan import TokenPlan
from services.handles import Encoding
from services.threads import finish

__all__ = ["ClaimBoard", "SharedEncoding"]

logger = logging.getLogger(__name__)

_CLAIM_SECONDS = 3.0
_RENEW_SECONDS = 1.0
_POLL_SECONDS = 0.05
_SLOWEST_POLL_SECONDS = 0.5
_THREADS = 8

T = TypeVar("T")


class ClaimBoard:
    """What an Api asks of the token cache, off the event loop.

    In threads of its own: uploads and the like may keep the default ones busy for long. A call that was begun is
    over when it returns or raises, also when it is cancelled, so that a claim cannot land after its release.

    Args:
        cache: where entries and claims are.
    """

    def __init__(self, cache: TokenCache) -> None:
        self._cache = cache
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="cache")

    async def holds(self, plan: TokenPlan) -> bool:
        """Whether the cache holds a token set."""
        return await self._run(lambda: self._cache.holds(plan.key, plan.tokens_per_frame))

    async def claim(self, plan: TokenPlan, owner: str) -> bool:
        """Take, or renew, the right to make a token set."""
        return await self._run(lambda: self._cache.claim(plan.key, owner, _CLAIM_SECONDS))

    async def release(self, plan: TokenPlan, owner: str) -> None:
        """Give that right back."""
        await self._run(lambda: self._cache.release(plan.key, owner))

    async def _run(self, call: Callable[[], T]) -> T:
        return await finish(asyncio.get_running_loop().run_in_executor(self._threads, call))


class SharedEncoding:
    """A token set that is being made, here or elsewhere. Needs a running event loop.

    Args:
        cache: where claims and finished sets are.
        plan: the token set.
        begin: starts decoding and encoding.
        trust_cache: whether a set that the cache holds is as good as one made here.
    """

    def __init__(
        self, cache: ClaimBoard, plan: TokenPlan, begin: Callable[[], Encoding], *, trust_cache: bool = True
    ) -> None:
        self._cache, self._plan, self._begin, self._trust_cache = cache, plan, begin, trust_cache
        self._owner = uuid.uuid4().hex
        self._encoding: Encoding | None = None
        self._settled: asyncio.Future[Encoding | None] = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._run())

    async def wait(self) -> Encoding | None:
        """The encoding under way here, or None once the cache holds what another replica made."""
        return await asyncio.shield(self._settled)

    def close(self, *, cancel: bool) -> None:
        """Give the claim back.

        Args:
            cancel: also stop the encoding, if it was begun here.
        """
        self._task.cancel()
        if cancel and self._encoding is not None:
            self._encoding.cancel()

    async def _run(self) -> None:
        try:
            self._encoding = await self._take_turn()
            self._settled.set_result(self._encoding)
            while self._encoding is not None:
                await asyncio.sleep(_RENEW_SECONDS)
                await self._cache.claim(self._plan, self._owner)
        except Exception as exc:
            logger.exception("an encoding could not be begun")
            if not self._settled.done():
                self._settled.set_exception(exc)
                self._settled.exception()  # seen, even if nobody waits any more
        finally:
            await self._cache.release(self._plan, self._owner)

    async def _take_turn(self) -> Encoding | None:
        pause_seconds = _POLL_SECONDS
        while not await self._cache.claim(self._plan, self._owner):
            await asyncio.sleep(pause_seconds)
            pause_seconds = min(1.5 * pause_seconds, _SLOWEST_POLL_SECONDS)
            if await self._is_cached():
                return None
        # Whoever had the claim before may have finished in between.
        return None if await self._is_cached() else self._begin()

    async def _is_cached(self) -> bool:
        return self._trust_cache and await self._cache.holds(self._plan)
