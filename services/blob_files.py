"""The few file operations a blob store needs, on a local folder and on any fsspec location.

Paths are relative to the store's root, with ``/`` between parts.
"""

import contextlib
import errno
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Protocol, cast

import fsspec
from fsspec.implementations.local import LocalFileSystem

from fastervlm_video.errors import InvalidRequestError

__all__ = ["Files", "LocalFiles", "RemoteFiles", "open_files"]


class Files(Protocol):
    """Operations on files under one root. All but :meth:`listing` concern one file."""

    def create(self, path: str) -> BinaryIO:
        """A new file to write to; it is complete when closed."""

    def open(self, path: str) -> BinaryIO:
        """An existing file to read from."""

    def read(self, path: str, limit_bytes: int) -> bytes:
        """The beginning of an existing file."""

    def read_each(self, paths: list[str], limit_bytes: int) -> dict[str, bytes]:
        """The beginnings of many files, by path; those that are gone are left out."""

    def write(self, path: str, data: bytes) -> None:
        """A small file, or its new content, at once: readers see the old content or the new."""

    def replace(self, source: str, target: str) -> None:
        """Move a file, over the target if there is one."""

    def remove(self, path: str) -> int | None:
        """Remove a file; its size in bytes, or None if there was none."""

    def size_bytes(self, path: str) -> int | None:
        """A file's size, or None if there is none."""

    def modified_at(self, path: str) -> float:
        """When a file was last written, seconds since 1970."""

    def listing(self, folder: str) -> Iterator[tuple[str, int]]:
        """Path and size of every file at any depth in ``folder``; nothing if there is no such folder."""


def open_files(url: str, storage_options: dict[str, Any]) -> tuple[Files, str]:
    """The files at ``url``, and a name that is equal for equal locations.

    Raises:
        InvalidRequestError: ``url`` names no usable location.
    """
    try:
        # Listings must be fresh: other processes change the store.
        fs, root = fsspec.url_to_fs(url, **{"use_listings_cache": False, **storage_options})
    except (ImportError, ValueError) as exc:
        raise InvalidRequestError(f"cannot use {url!r} as a blob store: {exc}") from exc
    if isinstance(fs, LocalFileSystem):
        return LocalFiles(Path(root)), root
    return RemoteFiles(fs, root.rstrip("/")), f"{fs.protocol}:{root.rstrip('/')}"


class LocalFiles:
    """Files in a local folder: folders get mode 0700, files 0600, moves are atomic renames."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir(mode=0o700, parents=True, exist_ok=True)

    def create(self, path: str) -> BinaryIO:
        """A new file; refuses to overwrite."""
        full = self.root / path
        full.parent.mkdir(mode=0o700, exist_ok=True)
        return cast("BinaryIO", os.fdopen(os.open(full, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb"))

    def open(self, path: str) -> BinaryIO:
        """The file itself."""
        return (self.root / path).open("rb")

    def read(self, path: str, limit_bytes: int) -> bytes:
        """From the file itself."""
        with self.open(path) as file:
            return file.read(limit_bytes)

    def read_each(self, paths: list[str], limit_bytes: int) -> dict[str, bytes]:
        """One after the other."""
        found = {}
        for path in paths:
            with contextlib.suppress(FileNotFoundError):
                found[path] = self.read(path, limit_bytes)
        return found

    def write(self, path: str, data: bytes) -> None:
        """Write beside, then rename."""
        full = self.root / path
        fresh = full.with_name(f"{full.name}.{uuid.uuid4().hex}.new")
        with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(data)
        fresh.replace(full)

    def replace(self, source: str, target: str) -> None:
        """Rename."""
        full = self.root / target
        for folder in reversed(Path(target).parents[:-1]):
            (self.root / folder).mkdir(mode=0o700, exist_ok=True)
        (self.root / source).replace(full)

    def remove(self, path: str) -> int | None:
        """Unlink; who has it open keeps it."""
        size_bytes = self.size_bytes(path)
        (self.root / path).unlink(missing_ok=True)
        return size_bytes

    def size_bytes(self, path: str) -> int | None:
        """From ``stat``."""
        try:
            return (self.root / path).stat().st_size
        except FileNotFoundError:
            return None

    def modified_at(self, path: str) -> float:
        """From ``stat``."""
        return (self.root / path).stat().st_mtime

    def listing(self, folder: str) -> Iterator[tuple[str, int]]:
        """Walk the folder."""
        for parent, _, names in os.walk(self.root / folder):
            for name in names:
                path = (Path(parent) / name).relative_to(self.root).as_posix()
                size_bytes = self.size_bytes(path)
                if size_bytes is not None:
                    yield path, size_bytes


class RemoteFiles:
    """Files in any fsspec location. A move may be a copy on the server and a removal, as on S3."""

    def __init__(self, fs: Any, root: str) -> None:
        self._fs, self._root = fs, root

    def create(self, path: str) -> BinaryIO:
        """A new file; what it replaces stays in place until it is closed."""
        return cast("BinaryIO", self._fs.open(self._full(path), "wb"))

    def open(self, path: str) -> BinaryIO:
        """A stream over the network, without read-ahead."""
        return cast("BinaryIO", self._fs.open(self._full(path), "rb"))

    def read(self, path: str, limit_bytes: int) -> bytes:
        """One call, for that range."""
        try:
            return bytes(self._fs.cat_file(self._full(path), start=0, end=limit_bytes))
        except OSError as exc:
            if self._is_empty(path, exc):
                return b""
            raise

    def read_each(self, paths: list[str], limit_bytes: int) -> dict[str, bytes]:
        """One call, which object stores spread over many connections."""
        full = [self._full(path) for path in paths]
        starts, ends = [0] * len(full), [limit_bytes] * len(full)
        found = self._fs.cat_ranges(full, starts, ends, on_error="return") if full else []
        contents = {}
        for path, item in zip(paths, found, strict=True):
            if not isinstance(item, Exception):
                contents[path] = bytes(item)
            elif self._is_empty(path, item):
                contents[path] = b""
            elif not isinstance(item, FileNotFoundError):
                raise item
        return contents

    def write(self, path: str, data: bytes) -> None:
        """One call; object stores show it when it is complete."""
        self._fs.pipe_file(self._full(path), data)

    def replace(self, source: str, target: str) -> None:
        """Copy and remove, unless the file system can do better."""
        self._fs.mv(self._full(source), self._full(target))

    def remove(self, path: str) -> int | None:
        """Remove."""
        size_bytes = self.size_bytes(path)
        if size_bytes is not None:
            self._fs.rm_file(self._full(path))
        return size_bytes

    def size_bytes(self, path: str) -> int | None:
        """Ask the file system."""
        try:
            return int(self._fs.info(self._full(path))["size"])
        except FileNotFoundError:
            return None

    def modified_at(self, path: str) -> float:
        """Ask the file system."""
        return float(self._fs.modified(self._full(path)).timestamp())

    def listing(self, folder: str) -> Iterator[tuple[str, int]]:
        """List at any depth, in one call where the file system can."""
        prefix = f"{self._root}/"
        for full, info in self._fs.find(self._full(folder), detail=True).items():
            yield str(full).removeprefix(prefix), int(info["size"])

    def _is_empty(self, path: str, error: Exception) -> bool:
        """Whether ``error`` is S3's way of saying that an empty file has no beginning."""
        return isinstance(error, OSError) and error.errno == errno.EINVAL and self.size_bytes(path) == 0

    def _full(self, path: str) -> str:
        return f"{self._root}/{path}"
