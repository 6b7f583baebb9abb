"""What the rest of the project knows of the cache: tokens by key, and never an exception."""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from fastervlm_video.cache.base import Blob, StoredHeader, TokenStore
from fastervlm_video.cache.codec import check_blob, decode_tokens, read_header
from fastervlm_video.cache.header import EntryHeader
from fastervlm_video.cache.key import CacheKey
from fastervlm_video.cache.storage import DEFAULT_STORAGE, Storage
from fastervlm_video.errors import (
    FasterVLMError,
    FingerprintMismatchError,
    TokenFormatError,
    UnavailableError,
)
from fastervlm_video.vision.tokens import VisualTokens

__all__ = ["CacheStats", "TokenCache"]

logger = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class CacheStats:
    """Counts since the cache was opened, in this process.

    Attributes:
        hits: look-ups served.
        misses: look-ups not served, for whatever reason.
        errors: operations that failed: the store was down or skipped, or an entry was not usable.
        inserts: entries written.
        bytes_read: of entries fetched, usable or not.
        bytes_written: of entries written.
        seconds: spent in calls of the cache, by all threads together.
        retries: exchanges with the store that were made again.
        skipped: exchanges that the circuit breaker did not let through.
    """

    hits: int = 0
    misses: int = 0
    errors: int = 0
    inserts: int = 0
    bytes_read: int = 0
    bytes_written: int = 0
    seconds: float = 0.0
    retries: int = 0
    skipped: int = 0


class TokenCache:
    """Visual tokens by key, in a store that may fail. Thread-safe; calls block for as long as the store does.

    Args:
        store: where the bytes are.
        dtype: how features are stored; entries in any other are not used.

    Raises:
        InvalidRequestError: features cannot be stored in ``dtype``.
    """

    def __init__(self, store: TokenStore, *, dtype: Storage = DEFAULT_STORAGE) -> None:
        self._store = store
        self._dtype = Storage.parse(dtype)
        self._lock = threading.Lock()
        self._counts: dict[str, float] = {}

    @property
    def dtype(self) -> Storage:
        """How features are stored: give it to :func:`~fastervlm_video.cache.codec.encode_tokens`."""
        return self._dtype

    def lookup(self, key: CacheKey, tokens_per_frame: int | None, fingerprint: str) -> VisualTokens | None:
        """A video's tokens at a budget, or None.

        Args:
            key: of the video and the way of making its tokens.
            tokens_per_frame: the budget, to which a nested method's entry is cut; None takes the entry as
                it is. The budget of a method that is not nested is in the key.
            fingerprint: the tower whose features are wanted.
        """

        def fetch() -> VisualTokens | None:
            blob = self._store.get(key)
            if blob is None:
                return None
            self._count(bytes_read=len(blob))
            return self._decode(blob, tokens_per_frame, fingerprint)

        tokens = self._guarded("look-up", key, fetch, default=None)
        self._count(**{"misses" if tokens is None else "hits": 1})
        return tokens

    def holds(self, key: CacheKey, tokens_per_frame: int | None) -> bool:
        """Whether a look-up would most likely hit; moves nothing, and is no hit or miss."""

        def probe() -> bool:
            stored = self._store.get_header(key)
            return stored is not None and self._sound_header(stored).holds(tokens_per_frame)

        return self._guarded("probe", key, probe, default=False)

    def insert(self, key: CacheKey, blob: bytes) -> bool:
        """Store what :func:`~fastervlm_video.cache.codec.encode_tokens` made. True if it was written.

        A larger entry of the same nested method stays, as this one is a slice of it.
        """

        def write() -> bool:
            header = check_blob(blob)
            if header.dtype != self._dtype:
                raise TokenFormatError(f"tokens stored as {header.dtype} do not belong in a cache of {self._dtype}")
            return self._store.put(
                key, blob, bytes(blob[: header.header_size]), keep=lambda stored: self._outranks(stored, header)
            )

        written = self._guarded("insert", key, write, default=False)
        if written:
            self._count(inserts=1, bytes_written=len(blob))
        return written

    def delete_video(self, video: str) -> int | None:
        """Remove all that was derived from a video; how many entries, or None if the store could not say."""
        began = time.perf_counter()
        try:
            return self._store.delete_video(video)
        except FasterVLMError as error:
            self._count(errors=1)
            logger.warning("entries of video %s may still be there: %s", video, error)
            return None
        finally:
            self._count(seconds=time.perf_counter() - began)

    def claim(self, key: CacheKey, owner: str, seconds: float) -> bool:
        """Take, or renew, the sole right to make an entry, for ``seconds``; False if another has it.

        For doing the work once, not for correctness: with the store down, everybody is told to go ahead.
        """
        return self._guarded("claim", key, lambda: self._store.claim(key, owner, seconds), default=True)

    def release(self, key: CacheKey, owner: str) -> None:
        """Give that right back, if ``owner`` still has it; otherwise it lapses by itself."""
        self._guarded("release", key, lambda: self._store.release(key, owner), default=None)

    def stats(self) -> CacheStats:
        """A snapshot of the counts; asks nobody."""
        events = self._store.events()
        with self._lock:
            return CacheStats(**self._counts, retries=events.retries, skipped=events.skipped)  # type: ignore[arg-type]

    def evictions(self) -> int | None:
        """Entries (of a Redis: keys, anybody's) that the store says it dropped to make room; None if it cannot say.

        Asks the store, within the time of any other call.
        """
        try:
            return self._store.evictions()
        except UnavailableError as error:
            logger.debug("evictions: %s", error)
            return None

    def close(self) -> None:
        """Let go of the store."""
        self._store.close()

    def _decode(self, blob: Blob, tokens_per_frame: int | None, fingerprint: str) -> VisualTokens | None:
        tokens = decode_tokens(blob, expect_fingerprint=fingerprint, expect_dtype=self._dtype, in_place=True)
        if tokens_per_frame is None or not tokens.nested:
            return tokens
        return tokens.select(tokens_per_frame) if tokens.holds(tokens_per_frame) else None

    def _sound_header(self, stored: StoredHeader) -> EntryHeader:
        header = read_header(stored.header)
        if header.dtype != self._dtype or header.total_size != stored.blob_bytes:
            raise TokenFormatError(
                f"{stored.blob_bytes} bytes stored, {header.total_size} as {header.dtype} described by the header"
            )
        return header

    def _outranks(self, stored: StoredHeader, new: EntryHeader) -> bool:
        """Whether a stored entry makes a new one superfluous."""
        try:
            old = self._sound_header(stored)
        except TokenFormatError as error:
            logger.info("overwriting an entry that cannot be used: %s", error)
            return False
        same = _made_alike(old) == _made_alike(new)
        return same and old.nested and new.nested and old.num_tokens > new.num_tokens

    def _guarded(self, what: str, key: CacheKey, action: Callable[[], T], *, default: T) -> T:
        """The boundary behind which the cache may fail: any error is counted, logged, and means ``default``."""
        began = time.perf_counter()
        try:
            return action()
        except UnavailableError as error:
            # The store logs its own failures; those that a circuit breaker skips come by the thousand.
            logger.debug("%s of %s: %s", what, key, error)
        except (TokenFormatError, FingerprintMismatchError) as error:
            logger.warning("%s of %s: unusable entry: %s", what, key, error)
            if what != "insert":
                self._discard(key)
        except Exception:
            logger.exception("%s of %s failed in an unforeseen way", what, key)
        finally:
            self._count(seconds=time.perf_counter() - began)
        self._count(errors=1)
        return default

    def _discard(self, key: CacheKey) -> None:
        """Drop an unusable entry, whose header might otherwise keep a good one from being written."""
        try:
            self._store.discard(key)
        except FasterVLMError as error:
            logger.debug("could not discard %s: %s", key, error)

    def _count(self, **amounts: float) -> None:
        with self._lock:
            for name, amount in amounts.items():
                self._counts[name] = self._counts.get(name, 0) + amount


def _made_alike(header: EntryHeader) -> tuple[object, ...]:
    """What is equal for entries of which the smaller one is a slice of the larger."""
    recipe = (header.method, header.fingerprint, header.grid, header.width, len(header.counts), header.has_cls)
    return (*recipe, header.medium, header.picture_size, header.views_per_picture, header.capacities)
