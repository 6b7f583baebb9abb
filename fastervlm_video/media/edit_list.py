"""Whether an MP4's edit lists say anything that matters, found out without libav.

An edit list says which part of a track is shown. libav applies it sample by sample when it opens the file, which takes
as long as reading the whole index once more, although nearly every file's list says one thing only: all of it, from the
first picture on. (A first picture's time is not 0 where B-frames are stored before their turn.) ::

    moov ─ mvhd                        ticks per second of the list's durations
         ├ trak ─ mdia ─ hdlr          is it the picture track?
         │      │      ├ mdhd          its ticks per second, and its length
         │      │      └ minf ─ stbl ─ ctts      the first picture's time
         │      └ edts ─ elst          the list: one entry, from that time on, at least that long, at speed 1?
         └ mvex                        fragments follow, which may go on without an index

Whatever is not exactly so is left to libav.
"""

import struct
from collections.abc import Iterator, Sequence

from fastervlm_video.media.sources import MediaSource

__all__ = ["shows_everything"]

_MOST_BOXES = 64
"""In one box. More than that is not the kind of file that this is about."""
_WHOLE_SPEED = 0x10000
_HEADER_BYTES, _LONG_HEADER_BYTES = 8, 16

Box = tuple[int, int]
"""Where a box's content begins, and where it ends."""


def shows_everything(source: MediaSource) -> bool:
    """Whether it is an MP4 whose picture tracks are shown from their first picture to their last.

    False where that cannot be said at a glance. The source's position afterwards is undefined.
    """
    try:
        (movie,) = _find(source, (0, source.size), b"moov")
        if _find(source, movie, b"mvex"):
            return False
        (header,) = _find(source, movie, b"mvhd")
        movie_rate, _ = _rate_and_length(source, header)
        tracks = _find(source, movie, b"trak")
        pictures = [track for track in tracks if _kind(source, track) == b"vide"]
        return bool(pictures) and all(_is_whole(source, track, movie_rate) for track in pictures)
    except (ValueError, struct.error, ZeroDivisionError):
        return False


def _is_whole(source: MediaSource, track: Box, movie_rate: int) -> bool:
    """Whether a track's edit list is missing, or one entry about all of it."""
    lists = _find(source, track, b"edts", b"elst")
    if not lists:
        return True
    (entries,) = lists
    version, count = _integers(source, entries, ">B3xI")
    if count != 1:
        return False
    shown, start, speed = _integers(source, entries, ">8x" + ("QqI" if version else "IiI"))
    (header,) = _find(source, track, b"mdia", b"mdhd")
    rate, length = _rate_and_length(source, header)
    # Durations are rounded to the movie's ticks.
    return speed == _WHOLE_SPEED and start == _first_time(source, track) and (shown + 1) * rate >= length * movie_rate


def _first_time(source: MediaSource, track: Box) -> int:
    """When the first stored picture is shown, in the track's ticks."""
    offsets = _find(source, track, b"mdia", b"minf", b"stbl", b"ctts")
    if not offsets:
        return 0
    (first,) = _integers(source, offsets[0], ">12xi")
    return first


def _kind(source: MediaSource, track: Box) -> bytes:
    (handler,) = _find(source, track, b"mdia", b"hdlr")
    return source.read_at(handler[0] + 8, 4)


def _rate_and_length(source: MediaSource, header: Box) -> tuple[int, int]:
    """Ticks per second, and length in ticks, of ``mvhd`` or ``mdhd``."""
    (version,) = _integers(source, header, ">B")
    rate, length = _integers(source, header, ">20xIQ" if version else ">12xII")
    return rate, length


def _integers(source: MediaSource, box: Box, layout: str) -> tuple[int, ...]:
    """From the beginning of a box's content, which may be too short."""
    size = struct.calcsize(layout)
    return struct.unpack(layout, source.read_at(box[0], min(size, box[1] - box[0])))


def _find(source: MediaSource, within: Box, *path: bytes) -> Sequence[Box]:
    """All boxes at a path."""
    found = [within]
    for kind in path:
        found = [box for outer in found for name, box in _boxes(source, outer) if name == kind]
    return found


def _boxes(source: MediaSource, within: Box) -> Iterator[tuple[bytes, Box]]:
    """A box's boxes: their names and contents.

    Raises:
        ValueError: a box does not fit, or they are too many.
    """
    at, end = within
    for _ in range(_MOST_BOXES):
        if at + _HEADER_BYTES > end:
            return
        header = source.read_at(at, _LONG_HEADER_BYTES)
        size, name = struct.unpack_from(">I4s", header)
        content = at + _HEADER_BYTES
        if size == 0:  # to the end
            size = end - at
        elif size == 1:
            (size,) = struct.unpack_from(">Q", header, _HEADER_BYTES)
            content = at + _LONG_HEADER_BYTES
        if content > at + size or at + size > end:
            raise ValueError(f"a box {name!r} of {size} bytes at {at} does not fit before {end}")
        yield name, (content, at + size)
        at += size
    raise ValueError(f"more than {_MOST_BOXES} boxes at {within}")
