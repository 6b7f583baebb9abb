"""A directory of this user alone, and a lock in it that holds between processes."""

import contextlib
import fcntl
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path

from fastervlm_video.errors import InvalidRequestError, UnavailableError

__all__ = ["locked_private_dir", "open_private_dir"]

POLL_SECONDS = 0.01


def open_private_dir(path: Path) -> int:
    """A descriptor of a directory, made if need be, that belongs to this user and to nobody else.

    Raises:
        InvalidRequestError: it is a symbolic link, no directory, another user's, or open to others.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise InvalidRequestError(f"cannot use {path} as runtime directory: {error}") from error
    found = os.fstat(directory)
    if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077:
        os.close(directory)
        raise InvalidRequestError(
            f"{path} must belong to user {os.geteuid()} with mode 0700 to be a runtime directory; "
            f"it belongs to {found.st_uid} with mode {stat.S_IMODE(found.st_mode):04o}"
        )
    return directory


@contextlib.contextmanager
def locked_private_dir(path: Path, timeout_seconds: float) -> Iterator[int]:
    """Keep other processes out of a private directory; yields its descriptor.

    Raises:
        InvalidRequestError: as for :func:`open_private_dir`.
        UnavailableError: another process holds the lock for longer than ``timeout_seconds``.
    """
    directory = open_private_dir(path)
    try:
        lock = os.open("lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=directory)
        try:
            _acquire(lock, path, timeout_seconds)
            yield directory
        finally:
            fcntl.flock(lock, fcntl.LOCK_UN)  # closing is not enough while a forked child has a copy
            os.close(lock)
    finally:
        os.close(directory)


def _acquire(lock: int, path: Path, timeout_seconds: float) -> None:
    deadline = time.monotonic() + timeout_seconds
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise UnavailableError(f"another process holds the lock of {path} for too long") from None
            time.sleep(POLL_SECONDS)
        else:
            return
