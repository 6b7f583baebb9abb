"""The cache that a URL names."""

import logging
from pathlib import Path

from fastervlm_video.cache.base import NullStore, TokenStore
from fastervlm_video.cache.embedded import EmbeddedRedis
from fastervlm_video.cache.memory import MemoryStore
from fastervlm_video.cache.redis_store import RedisStore
from fastervlm_video.cache.storage import DEFAULT_STORAGE, Storage
from fastervlm_video.cache.token_cache import TokenCache
from fastervlm_video.errors import UnavailableError

__all__ = ["DEFAULT_MAX_MEMORY_BYTES", "MEMORY_URL", "OFF_URL", "open_cache"]

logger = logging.getLogger(__name__)

DEFAULT_MAX_MEMORY_BYTES = 512 * 1024**2
MEMORY_URL = "memory://"
OFF_URL = "none://"


def open_cache(
    *,
    url: str | None,
    runtime_dir: Path,
    dtype: Storage = DEFAULT_STORAGE,
    ttl_seconds: float | None = None,
    max_memory_bytes: int = DEFAULT_MAX_MEMORY_BYTES,
    connect_timeout_seconds: float = 0.25,
    operation_timeout_seconds: float = 0.5,
) -> TokenCache:
    """Open the token cache that ``url`` names; close it when done.

    Args:
        url: ``redis://``, ``rediss://`` or ``unix://`` for a running Redis; ``memory://`` for this
            process's memory; ``none://`` or ``off`` for no cache; None for the embedded Redis of this machine.
        runtime_dir: where the embedded Redis has its socket; this user's alone. Otherwise not touched.
        dtype: how features are stored.
        ttl_seconds: how long entries are kept; None keeps them while there is room.
        max_memory_bytes: room, for the embedded Redis and for ``memory://``.
        connect_timeout_seconds: for reaching Redis.
        operation_timeout_seconds: for one exchange with Redis.

    Raises:
        InvalidRequestError: an argument cannot be used.
        UnavailableError: the embedded Redis is wanted, and no redis-server is installed.
    """
    store: TokenStore
    if url in (OFF_URL, "off"):
        store = NullStore()
    elif url == MEMORY_URL:
        store = MemoryStore(max_memory_bytes, ttl_seconds=ttl_seconds)
    else:
        server = None if url else EmbeddedRedis(runtime_dir, max_memory_bytes=max_memory_bytes)
        if server is not None:
            url = server.url
            try:
                server.ensure_running()
            except UnavailableError as error:  # the store asks again whenever it misses the server
                logger.warning("going on without a cache for now: %s", error)
        assert url is not None  # narrows the type; an empty one means the embedded server, too
        store = RedisStore(
            url,
            ttl_seconds=ttl_seconds,
            connect_timeout_seconds=connect_timeout_seconds,
            operation_timeout_seconds=operation_timeout_seconds,
            server=server,
        )
    return TokenCache(store, dtype=dtype)
