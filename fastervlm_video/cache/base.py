"""What a token store is, and the one that keeps nothing."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from fastervlm_video.cache.key import CacheKey

__all__ = ["Blob", "KeepExisting", "NullStore", "StoreEvents", "StoredHeader", "TokenStore"]

Blob = bytes | bytearray
"""An entry's bytes. A bytearray belongs to whoever was given it, to keep and to write to."""


@dataclass(frozen=True, slots=True)
class StoredHeader:
    """What can be known of an entry without moving it.

    Attributes:
        header: the entry's first bytes, up to its payload.
        blob_bytes: size of the whole entry as it is stored.
    """

    header: bytes
    blob_bytes: int


@dataclass(frozen=True, slots=True)
class StoreEvents:
    """What happened to a store's calls since it was opened, in this process.

    Attributes:
        retries: calls that were made again.
        skipped: calls that were not made, because others had just failed.
    """

    retries: int = 0
    skipped: int = 0


KeepExisting = Callable[[StoredHeader], bool]
"""Says of an entry that is in the way whether it should stay."""


class TokenStore(Protocol):
    """Bytes in, bytes out; knows nothing of their format. Safe to use from several threads.

    Every method may raise :class:`~fastervlm_video.errors.UnavailableError`: the store is down, slow,
    full, or answers nonsense.
    """

    def get(self, key: CacheKey) -> Blob | None:
        """The entry, or None."""

    def get_header(self, key: CacheKey) -> StoredHeader | None:
        """The entry's header and size, or None; the payload is not moved."""

    def put(self, key: CacheKey, blob: bytes, header: bytes, *, keep: KeepExisting | None = None) -> bool:
        """Store an entry; replace the one that is there unless ``keep`` says that it stays.

        Nobody else's write comes between that question and the writing. True if it was written.
        """

    def discard(self, key: CacheKey) -> bool:
        """Remove one entry. True if there was one."""

    def delete_video(self, video: str) -> int:
        """Remove every entry of a video; how many there were."""

    def claim(self, key: CacheKey, owner: str, seconds: float) -> bool:
        """Take, or renew, the sole right to make an entry; it lapses after ``seconds``. False if another has it."""

    def release(self, key: CacheKey, owner: str) -> None:
        """Give that right back, if ``owner`` still has it."""

    def events(self) -> StoreEvents:
        """What happened to calls so far; asks nobody."""

    def evictions(self) -> int | None:
        """How many entries (of a Redis: keys, anybody's) had to make room so far; None if that is not known."""

    def close(self) -> None:
        """Let go of connections, memory and helper processes."""


class NullStore:
    """Keeps nothing: every look-up is a miss."""

    def get(self, key: CacheKey) -> bytes | None:  # noqa: ARG002
        """None."""
        return None

    def get_header(self, key: CacheKey) -> StoredHeader | None:  # noqa: ARG002
        """None."""
        return None

    def put(self, key: CacheKey, blob: bytes, header: bytes, *, keep: KeepExisting | None = None) -> bool:  # noqa: ARG002
        """False."""
        return False

    def discard(self, key: CacheKey) -> bool:  # noqa: ARG002
        """False."""
        return False

    def delete_video(self, video: str) -> int:  # noqa: ARG002
        """Nothing."""
        return 0

    def claim(self, key: CacheKey, owner: str, seconds: float) -> bool:  # noqa: ARG002
        """True: whoever makes an entry makes it for itself."""
        return True

    def release(self, key: CacheKey, owner: str) -> None:
        """Nothing."""

    def events(self) -> StoreEvents:
        """None."""
        return StoreEvents()

    def evictions(self) -> int | None:
        """None: nothing is kept."""
        return None

    def close(self) -> None:
        """Nothing."""
