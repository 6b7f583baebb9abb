"""Making one token set once, across all Api replicas.

Whoever is first to *claim* the set in the cache has it decoded and encoded; the others wait until the cache
holds it, or until the claim lapses because its owner died, and then take over. Without a working cache
everybody goes ahead: the claim saves work, and nothing depends on it.
"""

import asyncio
import logging
import uuid
from collections.abc import Callable

from fastervlm_video.cache import TokenCache
from fastervlm_video.plan import TokenPlan
from services.handles import Encoding

__all__ = ["SharedEncoding"]

logger = logging.getLogger(__name__)

_CLAIM_SECONDS = 3.0
_RENEW_SECONDS = 1.0
_POLL_SECONDS = 0.05


class SharedEncoding:
    """A token set that is being made, here or elsewhere. Needs a running event loop.

    Args:
        cache: where claims and finished sets are.
        plan: the token set.
        begin: starts decoding and encoding.
    """

    def __init__(self, cache: TokenCache, plan: TokenPlan, begin: Callable[[], Encoding]) -> None:
        self._cache, self._plan, self._begin = cache, plan, begin
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
                await self._claim()
        except Exception as exc:
            logger.exception("an encoding could not be begun")
            if not self._settled.done():
                self._settled.set_exception(exc)
        finally:
            await asyncio.shield(asyncio.to_thread(self._cache.release, self._plan.key, self._owner))

    async def _take_turn(self) -> Encoding | None:
        while not await self._claim():
            await asyncio.sleep(_POLL_SECONDS)
            if await self._is_cached():
                return None
        # Whoever had the claim before may have finished in between.
        return None if await self._is_cached() else self._begin()

    async def _claim(self) -> bool:
        return await asyncio.to_thread(self._cache.claim, self._plan.key, self._owner, _CLAIM_SECONDS)

    async def _is_cached(self) -> bool:
        return await asyncio.to_thread(self._cache.holds, self._plan.key, self._plan.tokens_per_frame)
