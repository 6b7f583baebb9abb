"""Tokens in Redis: shared by all replicas, and allowed to be down, slow, full or lying.

One hash per video, so that eviction, expiry and deletion take all that was derived from it at once::

    fastervlm:video:<video>  ──▶  { <variant>.h: header,  <variant>.b: whole entry,  ... }

The header is kept beside the entry, which begins with it as well, so that a question about an entry
does not move its payload.
"""

import logging
from typing import Any

import redis

from fastervlm_video.cache.base import Blob, KeepExisting, StoredHeader, StoreEvents
from fastervlm_video.cache.breaker import CircuitBreaker
from fastervlm_video.cache.key import CacheKey
from fastervlm_video.cache.redis_calls import RedisCalls, RedisServer
from fastervlm_video.cache.replies import ReplyTooLargeError
from fastervlm_video.cache.retry_budget import RetryBudget
from fastervlm_video.errors import InvalidRequestError, UnavailableError

__all__ = ["MAX_ENTRY_BYTES", "RedisStore"]

logger = logging.getLogger(__name__)

KEY_PREFIX = "fastervlm:video:"
CLAIM_PREFIX = "fastervlm:claim:"
MAX_ENTRY_BYTES = 128 * 1024**2
REPLY_OVERHEAD_BYTES = 64 * 1024
PUT_ATTEMPTS = 3
MILLISECONDS = 1000

# Scripts where an answer takes two commands, and not MULTI: in a transaction, a full Redis refuses even to read.
_PROBE = "return {redis.call('HGET', KEYS[1], ARGV[1]), redis.call('HSTRLEN', KEYS[1], ARGV[2])}"
_DELETE = "local fields = redis.call('HKEYS', KEYS[1]) redis.call('UNLINK', KEYS[1]) return fields"

# Write only if the header is still the one that was looked at ("" for none). Not WATCH/MULTI: that takes
# two exchanges more, and redis-py's clean-up after it talks to the server again when that hangs.
_PUT_IF_UNCHANGED = """
if (redis.call('HGET', KEYS[1], ARGV[1]) or '') ~= ARGV[3] then return 0 end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[4], ARGV[2], ARGV[5])
if ARGV[6] ~= '' then redis.call('PEXPIRE', KEYS[1], ARGV[6]) end
return 1
"""

# A claim is a key of its own, so that it can lapse; only its owner renews or gives it back.
_CLAIM = """
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
"""
_RELEASE = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0"


class RedisStore:
    """A :class:`~fastervlm_video.cache.base.TokenStore` in a Redis.

    A call may be made twice (see :class:`~fastervlm_video.cache.redis_calls.RedisCalls`), which is as good as once:
    reading changes nothing; what was removed stays removed (only the count may be short); an entry that the first try
    has written is written again, or left if a larger one has come; a claim names its owner, who renews it; and one that
    the first try gave back is nobody's by then, or another's, and left alone.

    Args:
        url: ``redis://``, ``rediss://`` or ``unix://``.
        ttl_seconds: a video's entries expire this long after the last of them was written; None leaves
            it to Redis to make room.
        connect_timeout_seconds: for reaching the server.
        operation_timeout_seconds: for one exchange with it; writing an entry takes two.
            :class:`~fastervlm_video.cache.redis_calls.RedisCalls` says what follows for a call.
        max_entry_bytes: larger values are neither written nor read.
        max_connections: most connections at once.
        breaker: decides when not to try at all.
        retries: decides when to try again after a dropped connection.
        server: is asked to come back when it is gone; closed with the store.

    Raises:
        InvalidRequestError: the URL or a number cannot be used.
    """

    def __init__(
        self,
        url: str,
        *,
        ttl_seconds: float | None = None,
        connect_timeout_seconds: float = 0.25,
        operation_timeout_seconds: float = 0.5,
        max_entry_bytes: int = MAX_ENTRY_BYTES,
        max_connections: int = 64,
        breaker: CircuitBreaker | None = None,
        retries: RetryBudget | None = None,
        server: RedisServer | None = None,
    ) -> None:
        for name, value in (
            ("ttl_seconds", ttl_seconds),
            ("connect_timeout_seconds", connect_timeout_seconds),
            ("operation_timeout_seconds", operation_timeout_seconds),
            ("max_entry_bytes", max_entry_bytes),
            ("max_connections", max_connections),
        ):
            if value is not None and value <= 0:
                raise InvalidRequestError(f"{name} must be positive, got {value}")
        self._redis = RedisCalls(
            url,
            connect_timeout_seconds=connect_timeout_seconds,
            operation_timeout_seconds=operation_timeout_seconds,
            max_reply_bytes=max_entry_bytes + REPLY_OVERHEAD_BYTES,
            max_connections=max_connections,
            breaker=breaker,
            retries=retries,
            server=server,
        )
        self._ttl_milliseconds = "" if ttl_seconds is None else str(max(1, round(ttl_seconds * MILLISECONDS)))
        self._max_entry_bytes = max_entry_bytes

    def get(self, key: CacheKey) -> Blob | None:
        """The entry, or None. A value too large to be an entry is removed."""
        name, _, body = _where(key)
        try:
            return self._redis.call("get", lambda client: _blob_or_none(_ask(client, name, "HGET", name, body)))
        except UnavailableError as error:
            if isinstance(error.__cause__, ReplyTooLargeError):
                self.discard(key)
            raise

    def get_header(self, key: CacheKey) -> StoredHeader | None:
        """The entry's header and size, or None."""
        return self._redis.call("probe", lambda client: _probe(client, key))

    def put(self, key: CacheKey, blob: bytes, header: bytes, *, keep: KeepExisting | None = None) -> bool:
        """Store an entry, whole or not at all, unless ``keep`` says that the one there should stay."""
        if len(blob) > self._max_entry_bytes:
            logger.warning("not cached: %d bytes are more than the %d of an entry", len(blob), self._max_entry_bytes)
            return False
        name, head, body = _where(key)

        def put(client: redis.Redis) -> bool:
            for _ in range(PUT_ATTEMPTS):
                existing = _probe(client, key)
                if existing is not None and keep is not None and keep(existing):
                    return False
                seen = b"" if existing is None else existing.header
                values = (head, body, seen, header, blob, self._ttl_milliseconds)
                if _run(client, _PUT_IF_UNCHANGED, name, *values):
                    return True
            logger.info("not cached: others kept writing the same entry")
            return False

        return self._redis.call("put", put)

    def discard(self, key: CacheKey) -> bool:
        """Remove one entry. True if there was one."""
        name, head, body = _where(key)
        return self._redis.call("discard", lambda client: bool(_ask(client, name, "HDEL", name, head, body)))

    def delete_video(self, video: str) -> int:
        """Remove every entry of a video; how many there were. Tried even while the circuit is open."""
        name = KEY_PREFIX + video

        def delete(client: redis.Redis) -> int:
            fields = _ask(client, name, "EVAL", _DELETE, 1, name)
            return len({field.partition(b".")[0] for field in fields or ()})

        return self._redis.call("delete", delete, must_try=True)

    def claim(self, key: CacheKey, owner: str, seconds: float) -> bool:
        """Take, or renew, the sole right to make an entry; False if another has it."""
        lifetime = str(max(1, round(seconds * MILLISECONDS)))
        return self._redis.call("claim", lambda client: bool(_run(client, _CLAIM, _claim_name(key), owner, lifetime)))

    def release(self, key: CacheKey, owner: str) -> None:
        """Give that right back, if ``owner`` still has it."""
        self._redis.call("release", lambda client: _run(client, _RELEASE, _claim_name(key), owner))

    def events(self) -> StoreEvents:
        """Calls made again, and calls not made because the circuit was open."""
        return self._redis.events

    def evictions(self) -> int | None:
        """Keys that the server has evicted since it was started, anybody's; None if it does not say.

        Raises:
            UnavailableError: it could not be asked.
        """
        stats = self._redis.call("say what it evicted", lambda client: client.execute_command("INFO", "stats"))  # type: ignore[no-untyped-call]
        evicted = stats.get("evicted_keys") if isinstance(stats, dict) else None
        return evicted if isinstance(evicted, int) else None

    def close(self) -> None:
        """Close all connections, and the server if it is this process's own."""
        self._redis.close()


def _where(key: CacheKey) -> tuple[str, str, str]:
    """Name of the hash, field of the header, field of the entry."""
    return KEY_PREFIX + key.video, f"{key.variant}.h", f"{key.variant}.b"


def _claim_name(key: CacheKey) -> str:
    return f"{CLAIM_PREFIX}{key.video}:{key.variant}"


def _run(client: redis.Redis, script: str, name: str, *values: str | bytes) -> Any:
    """What a script on one key answers."""
    return client.execute_command("EVAL", script, 1, name, *values)  # type: ignore[no-untyped-call]


def _ask(client: redis.Redis, name: str, *command: str | int) -> Any:
    """The answer to a command; None if something else than a hash is under ``name``, which is then removed."""
    try:
        return client.execute_command(*command)  # type: ignore[no-untyped-call]
    except redis.ResponseError as error:
        if "WRONGTYPE" not in str(error):
            raise
        logger.warning("removed %s from Redis, which was not a hash of this cache", name)
        client.unlink(name)
        return None


def _probe(client: redis.Redis, key: CacheKey) -> StoredHeader | None:
    name, head, body = _where(key)
    answer = _ask(client, name, "EVAL", _PROBE, 1, name, head, body)
    if answer is None:
        return None
    if not isinstance(answer, list) or len(answer) != 2 or not isinstance(answer[1], int):
        raise redis.InvalidResponse(f"a header and a size were expected, not {type(answer).__name__}")
    header = _blob_or_none(answer[0])
    return None if header is None else StoredHeader(bytes(header), answer[1])


def _blob_or_none(answer: object) -> Blob | None:
    if not isinstance(answer, bytes | bytearray | None):
        raise redis.InvalidResponse(f"a value was expected, not {type(answer).__name__}")
    return answer
