"""Where the bytes of a video or picture come from: a path, bytes or an open file, turned into one random-access reader.

libav is only ever given such a reader, never a name: it cannot open anything, and it cannot judge a
file by its extension.
"""

import io
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, Protocol

from fastervlm_video.config import MediaLimits
from fastervlm_video.errors import (
    CorruptMediaError,
    InvalidRequestError,
    MediaLimitError,
    UnsupportedMediaError,
    VideoNotFoundError,
)

__all__ = ["ByteReader", "MediaSource", "PositionedFile", "check_size", "open_regular_file", "open_source"]

_COPY_BYTES = 1024**2
_URL = re.compile(r"data:|[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_SHOWN_CHARS = 200


class ByteReader(Protocol):
    """The part of a binary file object that reading media needs."""

    def read(self, size: int = -1, /) -> bytes:
        """Up to ``size`` bytes; empty at the end."""

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """Move, and say where to."""

    def tell(self) -> int:
        """The current position."""


VideoSource = str | os.PathLike[str] | bytes | BinaryIO | ByteReader


class PositionedFile:
    """Reads an open file descriptor without touching its shared offset.

    A descriptor handed to another process shares its offset with the sender's; two jobs on one file
    would read each other's positions. ``pread`` does not use it. The file's size is that when this was made.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._size = os.fstat(descriptor).st_size
        self._position = 0

    def read(self, size: int = -1, /) -> bytes:
        """Up to ``size`` bytes from the current position; all that are left if negative."""
        if size < 0:
            size = max(0, self._size - self._position)
        data = os.pread(self._descriptor, size, self._position)
        self._position += len(data)
        return data

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Move the position; returns it."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise ValueError(f"cannot seek to {base + offset}")
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        """The current position."""
        return self._position


class MediaSource:
    """A seekable reader of known size that shows libav nothing else of the file under it, least its name.

    Attributes:
        size: bytes in all.
    """

    def __init__(self, file: ByteReader, size: int) -> None:
        self._file = file
        self.size = size

    def read(self, size: int = -1) -> bytes:
        """Up to ``size`` bytes; empty at the end."""
        return self._file.read(size)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move the position; returns it."""
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        """The current position."""
        return self._file.tell()

    def read_at(self, offset: int, size: int) -> bytes:
        """``size`` bytes (fewer at the end) from ``offset``; the position afterwards is undefined."""
        self._file.seek(offset)
        return self._file.read(size)


@contextmanager
def open_source(source: VideoSource, limits: MediaLimits) -> Iterator[MediaSource]:
    """Open a path, bytes or a binary file object for random access, within ``limits.max_bytes``.

    A file object is read from its start and left open. One that cannot seek (a pipe) is first read
    into memory.

    Raises:
        VideoNotFoundError: the path names nothing that can be opened.
        UnsupportedMediaError: no bytes, or the path is a directory or device.
        MediaLimitError: more than ``limits.max_bytes``.
        InvalidRequestError: not a path, bytes or binary file object.
    """
    if isinstance(source, bytes):
        yield _checked(io.BytesIO(source), len(source), limits)
    elif isinstance(source, str | os.PathLike):
        descriptor = open_regular_file(source)
        try:
            yield _checked(PositionedFile(descriptor), os.fstat(descriptor).st_size, limits)
        finally:
            os.close(descriptor)
    else:
        file, size = _sized(source, limits)
        yield _checked(file, size, limits)


def open_regular_file(path: str | os.PathLike[str]) -> int:
    """A read-only descriptor of a regular file; the caller closes it.

    Raises:
        VideoNotFoundError: nothing there, or not readable.
        UnsupportedMediaError: a directory, device or pipe.
    """
    try:
        # O_NONBLOCK: opening a named pipe without a writer must not wait for one.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        raise VideoNotFoundError(_why_not_found(os.fspath(path), error)) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise UnsupportedMediaError(f"{os.fspath(path)!r} is not a regular file")
    return descriptor


def _why_not_found(path: str, error: Exception) -> str:
    if _URL.match(path):
        return f"{path[:_SHOWN_CHARS]!r} is a URL, which is not fetched: give a path, bytes or a binary file object"
    if isinstance(error, FileNotFoundError):
        return f"there is no file {path!r}"
    return f"{path[:_SHOWN_CHARS]!r} cannot be opened: {getattr(error, 'strerror', None) or error}"


def check_size(size: int, limits: MediaLimits) -> None:
    """Refuse what is empty or too large before anything is read.

    Raises:
        UnsupportedMediaError: no bytes.
        MediaLimitError: more than ``limits.max_bytes``.
    """
    if size == 0:
        raise UnsupportedMediaError("the file is empty (0 bytes)")
    if size > limits.max_bytes:
        raise MediaLimitError(f"the file has {size} bytes, more than the {limits.max_bytes} allowed")


def _checked(file: ByteReader, size: int, limits: MediaLimits) -> MediaSource:
    check_size(size, limits)
    return MediaSource(file, size)


def _sized(source: Any, limits: MediaLimits) -> tuple[ByteReader, int]:
    """A file object as a seekable reader, and its size."""
    read = getattr(source, "read", None)
    if read is None:
        raise InvalidRequestError(
            f"a video or picture is a path, bytes or a binary file object, got {type(source).__name__}"
        )
    try:
        if not isinstance(read(0), bytes):
            raise InvalidRequestError("the file object must be opened in binary mode ('rb')")
        seekable = getattr(source, "seekable", None)
        if hasattr(source, "seek") and (seekable is None or seekable()):
            return source, source.seek(0, os.SEEK_END)
        return _read_all(source, limits)
    except (OSError, ValueError) as error:
        if isinstance(error, InvalidRequestError):
            raise
        raise CorruptMediaError(f"the file object cannot be read: {error}") from error


def _read_all(stream: BinaryIO, limits: MediaLimits) -> tuple[ByteReader, int]:
    """What cannot seek goes into memory, up to one piece past the limit."""
    held = io.BytesIO()
    while held.tell() <= limits.max_bytes and (piece := stream.read(_COPY_BYTES)):
        held.write(piece)
    return held, held.tell()
