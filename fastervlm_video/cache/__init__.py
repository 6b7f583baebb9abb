"""The token cache: an optimisation that never fails a request."""

from fastervlm_video.cache.base import KeepExisting, NullStore, StoredHeader, StoreEvents, TokenStore
from fastervlm_video.cache.breaker import CircuitBreaker
from fastervlm_video.cache.codec import check_blob, decode_tokens, encode_tokens, read_header
from fastervlm_video.cache.embedded import EmbeddedRedis, find_redis_server
from fastervlm_video.cache.factory import DEFAULT_MAX_MEMORY_BYTES, MEMORY_URL, OFF_URL, open_cache
from fastervlm_video.cache.header import FORMAT_VERSION, EntryHeader, JsonScalar
from fastervlm_video.cache.key import CacheKey, make_key, video_key
from fastervlm_video.cache.memory import MemoryStore
from fastervlm_video.cache.redis_calls import RedisServer
from fastervlm_video.cache.redis_store import MAX_ENTRY_BYTES, RedisStore
from fastervlm_video.cache.retry_budget import RetryBudget
from fastervlm_video.cache.storage import DEFAULT_STORAGE, Storage
from fastervlm_video.cache.token_cache import CacheStats, TokenCache

__all__ = [
    "DEFAULT_MAX_MEMORY_BYTES",
    "DEFAULT_STORAGE",
    "FORMAT_VERSION",
    "MAX_ENTRY_BYTES",
    "MEMORY_URL",
    "OFF_URL",
    "CacheKey",
    "CacheStats",
    "CircuitBreaker",
    "EmbeddedRedis",
    "EntryHeader",
    "JsonScalar",
    "KeepExisting",
    "MemoryStore",
    "NullStore",
    "RedisServer",
    "RedisStore",
    "RetryBudget",
    "Storage",
    "StoreEvents",
    "StoredHeader",
    "TokenCache",
    "TokenStore",
    "check_blob",
    "decode_tokens",
    "encode_tokens",
    "find_redis_server",
    "make_key",
    "open_cache",
    "read_header",
    "video_key",
]
