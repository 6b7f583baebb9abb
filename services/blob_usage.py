"""How many bytes a blob store holds, known without listing it on every upload.

Two ways, behind one interface:

* a local folder keeps a counter file next to the blobs, read and changed under an ``flock``: exact, for any
  number of threads and processes on the machine (and on file systems that share ``flock``, such as NFSv4);
* anything else (S3, memory) is listed anew when the last listing is older than a minute, and counted on in
  between: exact for one process, and up to a minute behind what other machines have just uploaded.
"""

import contextlib
import fcntl
import os
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

__all__ = ["ListedUsage", "LocalUsage", "Usage"]

_LISTING_SECONDS = 60.0
_locks: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)


class Usage(Protocol):
    """A store's byte counter and the lock under which blobs come and go."""

    def lock(self) -> AbstractContextManager[None]:
        """Exclusive among all users of the store that can be reached. Not reentrant."""

    def read_bytes(self, recount: Callable[[], int]) -> int:
        """Bytes in use; ``recount`` lists the store and is called when the count is not known. Under the lock."""

    def set_bytes(self, used_bytes: int) -> None:
        """Record the count. Under the lock."""


class LocalUsage:
    """Counter file and lock file in ``folder``, which exists."""

    def __init__(self, folder: Path) -> None:
        self._counter = folder / "usage"
        self._lock_file = folder / "lock"

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the file lock; a lock belongs to an open file, so this also excludes other threads."""
        fd = os.open(self._lock_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    def read_bytes(self, recount: Callable[[], int]) -> int:
        """The counter; counted anew if the file is missing or damaged."""
        with contextlib.suppress(FileNotFoundError, ValueError):
            return int(self._counter.read_text(encoding="ascii"))
        used_bytes = recount()
        self.set_bytes(used_bytes)
        return used_bytes

    def set_bytes(self, used_bytes: int) -> None:
        """Replace the counter file."""
        fresh = self._counter.with_suffix(".new")
        with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="ascii") as file:
            file.write(str(used_bytes))
        fresh.replace(self._counter)


class ListedUsage:
    """A count kept in this process. ``url`` names the store, so that its users in one process share a lock."""

    def __init__(self, url: str) -> None:
        self._lock = _locks[url]
        self._used_bytes = 0
        self._listed_at: float | None = None

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Exclude the other threads of this process."""
        with self._lock:
            yield

    def read_bytes(self, recount: Callable[[], int]) -> int:
        """The count, from a fresh listing if the last one is too old."""
        if self._listed_at is None or time.monotonic() - self._listed_at > _LISTING_SECONDS:
            self._used_bytes = recount()
            self._listed_at = time.monotonic()
        return self._used_bytes

    def set_bytes(self, used_bytes: int) -> None:
        """Remember the count until the next listing."""
        self._used_bytes = used_bytes
