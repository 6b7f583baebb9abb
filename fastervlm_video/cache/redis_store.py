"""Tokens in Redis: shared by all replicas, and allowed to be down, slow, full or lying.

One hash per video, so that eviction, expiry and deletion take all that was derived from it at once::

    fastervlm:video:<video>  ──▶  { <variant>.h: header,  <variant>.b: whole entry,  ... }

The header is kept beside the entry, which begins with it as well, so that a question about an entry
does not move its payload.
"""

import logging
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import redis

from fastervlm_video.cache.base import KeepExisting, StoredHeader
from fastervlm_video.cache.breaker import CircuitBreaker
from fastervlm_video.cache.key import CacheKey
from fastervlm_video.cache.redis_connection import ReplyTooLargeError, connect_client, public_url
from fastervlm_video.errors import InvalidRequestError, UnavailableError

__all__ = ["MAX_ENTRY_BYTES", "RedisServer", "RedisStore"]

logger = logging.getLogger(__name__)

KEY_PREFIX = "fastervlm:video:"
CLAIM_PREFIX = "fastervlm:claim:"
MAX_ENTRY_BYTES = 128 * 1024**2
REPLY_OVERHEAD_BYTES = 64 * 1024
PUT_ATTEMPTS = 3
REVIVAL_PAUSE_SECONDS = 1.0
MILLISECONDS = 1000

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

T = TypeVar("T")


class RedisServer(Protocol):
    """The server behind a store, if it is one that can be brought back."""

    def ensure_running(self) -> None:
        """Use the live server, or start one.

        Raises:
            UnavailableError: neither was possible.
        """

    def close(self) -> None:
        """Stop it, if this process started it."""


class RedisStore:
    """A :class:`~fastervlm_video.cache.base.TokenStore` in a Redis.

    Args:
        url: ``redis://``, ``rediss://`` or ``unix://``.
        ttl_seconds: a video's entries expire this long after the last of them was written; None leaves
            it to Redis to make room.
        connect_timeout_seconds: for reaching the server.
        operation_timeout_seconds: for one exchange with it; writing an entry takes two.
        max_entry_bytes: larger values are neither written nor read.
        max_connections: most connections at once.
        breaker: decides when not to try at all.
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
        self._client = connect_client(
            url,
            connect_timeout_seconds=connect_timeout_seconds,
            operation_timeout_seconds=operation_timeout_seconds,
            max_reply_bytes=max_entry_bytes + REPLY_OVERHEAD_BYTES,
            max_connections=max_connections,
        )
        self._address = public_url(url)
        self._ttl_milliseconds = "" if ttl_seconds is None else str(max(1, round(ttl_seconds * MILLISECONDS)))
        self._max_entry_bytes = max_entry_bytes
        self._breaker = breaker or CircuitBreaker()
        self._server = server
        self._revival = threading.Lock()
        self._next_revival = 0.0

    def get(self, key: CacheKey) -> bytes | None:
        """The entry, or None. A value too large to be an entry is removed."""
        name, _, body = _where(key)
        try:
            return self._call("get", lambda client: _bytes_or_none(_ask(client, name, ("HGET", name, body))[0]))
        except UnavailableError as error:
            if isinstance(error.__cause__, ReplyTooLargeError):
                self.discard(key)
            raise

    def get_header(self, key: CacheKey) -> StoredHeader | None:
        """The entry's header and size, or None."""
        return self._call("probe", lambda client: _probe(client, key))

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

        return self._call("put", put)

    def discard(self, key: CacheKey) -> bool:
        """Remove one entry. True if there was one."""
        name, head, body = _where(key)
        return self._call("discard", lambda client: bool(_ask(client, name, ("HDEL", name, head, body))[0]))

    def delete_video(self, video: str) -> int:
        """Remove every entry of a video; how many there were. Tried even while the circuit is open."""
        name = KEY_PREFIX + video

        def delete(client: redis.Redis) -> int:
            fields, _ = _ask(client, name, ("HKEYS", name), ("UNLINK", name))
            return len({field.partition(b".")[0] for field in fields or ()})

        return self._call("delete", delete, must_try=True)

    def claim(self, key: CacheKey, owner: str, seconds: float) -> bool:
        """Take, or renew, the sole right to make an entry; False if another has it."""
        lifetime = str(max(1, round(seconds * MILLISECONDS)))
        return self._call("claim", lambda client: bool(_run(client, _CLAIM, _claim_name(key), owner, lifetime)))

    def release(self, key: CacheKey, owner: str) -> None:
        """Give that right back, if ``owner`` still has it."""
        self._call("release", lambda client: _run(client, _RELEASE, _claim_name(key), owner))

    def close(self) -> None:
        """Close all connections, and the server if it is this process's own."""
        self._client.connection_pool.disconnect()
        if self._server is not None:
            self._server.close()

    def _call(self, what: str, operation: Callable[[redis.Redis], T], *, must_try: bool = False) -> T:
        """Run an exchange, with breaker and revival; whatever goes wrong becomes an UnavailableError."""
        if not self._breaker.allow() and not must_try:
            raise UnavailableError(f"{what} skipped: the Redis at {self._address} failed just now")
        try:
            try:
                result = operation(self._client)
            except redis.ConnectionError:
                if not self._revive():
                    raise
                result = operation(self._client)
        except redis.ResponseError as error:
            self._breaker.record_success()  # it answers, if only to refuse
            logger.warning("the Redis at %s refused to %s: %s", self._address, what, error)
            raise UnavailableError(f"the Redis at {self._address} refused to {what}: {error}") from error
        # All else: no answer, or one out of which redis-py or this module could make no sense.
        except Exception as error:
            self._breaker.record_failure()
            logger.warning("the Redis at %s failed to %s: %s: %s", self._address, what, type(error).__name__, error)
            raise UnavailableError(f"the Redis at {self._address} failed to {what}: {error}") from error
        self._breaker.record_success()
        return result

    def _revive(self) -> bool:
        """Have the server started again; by one thread, and not all the time. True if it is back."""
        if self._server is None or not self._revival.acquire(blocking=False):
            return False
        try:
            if time.monotonic() < self._next_revival:
                return False
            self._next_revival = time.monotonic() + REVIVAL_PAUSE_SECONDS
            self._server.ensure_running()
        except UnavailableError as error:
            logger.warning("the Redis at %s cannot be brought back: %s", self._address, error)
            return False
        else:
            logger.warning("the Redis at %s is back", self._address)
            return True
        finally:
            self._revival.release()


def _where(key: CacheKey) -> tuple[str, str, str]:
    """Name of the hash, field of the header, field of the entry."""
    return KEY_PREFIX + key.video, f"{key.variant}.h", f"{key.variant}.b"


def _claim_name(key: CacheKey) -> str:
    return f"{CLAIM_PREFIX}{key.video}:{key.variant}"


def _run(client: redis.Redis, script: str, name: str, *values: str | bytes) -> Any:
    """What a script on one key answers."""
    return client.execute_command("EVAL", script, 1, name, *values)  # type: ignore[no-untyped-call]


def _ask(client: redis.Redis, name: str, *commands: tuple[str, ...]) -> list[Any]:
    """The answers to commands sent together; all None if no hash is under ``name``, which is then removed."""
    try:
        with client.pipeline(transaction=len(commands) > 1) as pipe:
            for command in commands:
                pipe.execute_command(*command)  # type: ignore[no-untyped-call]
            return pipe.execute()
    except redis.ResponseError as error:
        if "WRONGTYPE" not in str(error):
            raise
        logger.warning("removed %s from Redis, which was not a hash of this cache", name)
        client.unlink(name)
        return [None] * len(commands)


def _probe(client: redis.Redis, key: CacheKey) -> StoredHeader | None:
    name, head, body = _where(key)
    header, blob_bytes = _ask(client, name, ("HGET", name, head), ("HSTRLEN", name, body))
    if not isinstance(blob_bytes, int | None):
        raise redis.InvalidResponse(f"HSTRLEN answered {type(blob_bytes).__name__}")
    header = _bytes_or_none(header)
    return None if header is None else StoredHeader(header, blob_bytes or 0)


def _bytes_or_none(answer: object) -> bytes | None:
    if not isinstance(answer, bytes | None):
        raise redis.InvalidResponse(f"a value was expected, not {type(answer).__name__}")
    return answer
