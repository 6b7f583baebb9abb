"""Tokens in this process's memory: the least recently used give way when the room is used up."""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from fastervlm_video.cache.base import KeepExisting, StoredHeader, StoreEvents
from fastervlm_video.cache.key import CacheKey
from fastervlm_video.errors import InvalidRequestError

__all__ = ["MemoryStore"]

# Key, dictionary slots and bytes objects of one entry, roughly; without it, small entries would be free.
ENTRY_OVERHEAD_BYTES = 1024


@dataclass(frozen=True, slots=True)
class _Entry:
    blob: bytes
    header: bytes
    expires_at: float | None

    @property
    def size(self) -> int:
        return len(self.blob) + len(self.header) + ENTRY_OVERHEAD_BYTES


class MemoryStore:
    """A :class:`~fastervlm_video.cache.base.TokenStore` bounded in bytes, for one process.

    Args:
        max_bytes: room for entries; older ones are dropped to stay within it.
        ttl_seconds: an entry is forgotten this long after it was written; None keeps it.
        clock: seconds that never run backwards.

    Raises:
        InvalidRequestError: ``max_bytes`` or ``ttl_seconds`` is not positive.
    """

    def __init__(
        self, max_bytes: int, *, ttl_seconds: float | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        if max_bytes <= 0 or (ttl_seconds is not None and ttl_seconds <= 0):
            raise InvalidRequestError(f"max_bytes={max_bytes} and ttl_seconds={ttl_seconds} must be positive")
        self._max_bytes = max_bytes
        self._ttl_seconds = ttl_seconds
        self._clock = clock
        self._lock = threading.Lock()
        self._entries: OrderedDict[CacheKey, _Entry] = OrderedDict()
        self._variants: dict[str, set[CacheKey]] = {}
        self._claims: dict[CacheKey, tuple[str, float]] = {}
        self._size_bytes = 0
        self._evictions = 0

    @property
    def size_bytes(self) -> int:
        """Room in use."""
        with self._lock:
            return self._size_bytes

    def get(self, key: CacheKey) -> bytes | None:
        """The entry, which becomes the most recently used one; or None."""
        with self._lock:
            entry = self._live(key)
            if entry is None:
                return None
            self._entries.move_to_end(key)
            return entry.blob

    def get_header(self, key: CacheKey) -> StoredHeader | None:
        """The entry's header and size, or None."""
        with self._lock:
            entry = self._live(key)
            return None if entry is None else StoredHeader(entry.header, len(entry.blob))

    def put(self, key: CacheKey, blob: bytes, header: bytes, *, keep: KeepExisting | None = None) -> bool:
        """Store an entry if it fits at all and ``keep`` does not protect the one that is there."""
        expires_at = None if self._ttl_seconds is None else self._clock() + self._ttl_seconds
        entry = _Entry(bytes(blob), bytes(header), expires_at)
        if entry.size > self._max_bytes:
            return False
        with self._lock:
            existing = self._live(key)
            if existing is not None:
                if keep is not None and keep(StoredHeader(existing.header, len(existing.blob))):
                    return False
                self._remove(key)
            while self._size_bytes + entry.size > self._max_bytes:
                self._remove(next(iter(self._entries)))
                self._evictions += 1
            self._entries[key] = entry
            self._variants.setdefault(key.video, set()).add(key)
            self._size_bytes += entry.size
            return True

    def discard(self, key: CacheKey) -> bool:
        """Remove one entry. True if there was one."""
        with self._lock:
            there = self._live(key) is not None
            if there:
                self._remove(key)
            return there

    def delete_video(self, video: str) -> int:
        """Remove every entry of a video; how many there were."""
        with self._lock:
            live = [key for key in tuple(self._variants.get(video, ())) if self._live(key) is not None]
            for key in live:
                self._remove(key)
            return len(live)

    def claim(self, key: CacheKey, owner: str, seconds: float) -> bool:
        """Take, or renew, the sole right to make an entry; False if another has it."""
        with self._lock:
            now = self._clock()
            holder, until = self._claims.get(key, (owner, now))
            if holder != owner and now < until:
                return False
            self._claims = {each: held for each, held in self._claims.items() if now < held[1]}
            self._claims[key] = (owner, now + seconds)
            return True

    def release(self, key: CacheKey, owner: str) -> None:
        """Give that right back, if ``owner`` still has it."""
        with self._lock:
            if self._claims.get(key, ("", 0.0))[0] == owner:
                del self._claims[key]

    def events(self) -> StoreEvents:
        """None: calls do not fail."""
        return StoreEvents()

    def evictions(self) -> int | None:
        """Entries dropped for want of room."""
        with self._lock:
            return self._evictions

    def close(self) -> None:
        """Forget everything."""
        with self._lock:
            self._claims.clear()
            self._entries.clear()
            self._variants.clear()
            self._size_bytes = 0

    def _live(self, key: CacheKey) -> _Entry | None:
        entry = self._entries.get(key)
        if entry is not None and entry.expires_at is not None and self._clock() >= entry.expires_at:
            self._remove(key)
            return None
        return entry

    def _remove(self, key: CacheKey) -> None:
        self._size_bytes -= self._entries.pop(key).size
        siblings = self._variants[key.video]
        siblings.discard(key)
        if not siblings:
            del self._variants[key.video]
