"""What a decoder process and its parent say to each other: length-prefixed JSON, then raw pixels.

::

    child   b"R"                                    imports done, waiting
    parent  length, {sampling, limits, resize, medium, tiling}      with the file's descriptor attached
    child   length, {"shape", "pts_seconds", "info"}, T*H*W*3 bytes        or
            length, {"code", "message"}

Times are sent once for all views of a frame. Nothing is ever unpickled: the child may have been taken over by
the file it decoded, so the parent checks every number against what it asked for.
"""

import dataclasses
import json
import math
import socket
import struct
from collections.abc import Iterator
from typing import Any

from fastervlm_video.config import FrameResize, FrameSampling, MediaLimits, Medium, Tiling
from fastervlm_video.errors import CorruptMediaError, FasterVLMError, InvalidRequestError, MediaError, MediaLimitError
from fastervlm_video.media.frames import FrameBatch, VideoInfo
from fastervlm_video.media.pictures import PICTURE_FORMATS
from fastervlm_video.media.tiling import view_size, views_per_picture

__all__ = [
    "LENGTH",
    "MAX_HEADER_BYTES",
    "READY",
    "Job",
    "Reply",
    "error_header",
    "pack",
    "parse_job",
    "parse_reply",
    "reply_header",
    "send_job",
]

READY = b"R"
LENGTH = struct.Struct("!I")
MAX_HEADER_BYTES = 64 * 1024
_MAX_TEXT = 2000


@dataclasses.dataclass(frozen=True, slots=True)
class Job:
    """One video or picture to decode; of a picture, ``sampling`` says nothing."""

    sampling: FrameSampling
    limits: MediaLimits
    resize: FrameResize | None
    medium: Medium = Medium.VIDEO
    tiling: Tiling | None = None

    @property
    def num_pictures(self) -> int:
        """How many frames are to come, each with all its views."""
        return self.sampling.num_frames if self.medium is Medium.VIDEO else 1


@dataclasses.dataclass(frozen=True, slots=True)
class Reply:
    """A checked reply header; ``shape`` is [T, H, W, 3], and there are T times."""

    shape: tuple[int, int, int, int]
    pts_seconds: tuple[float, ...]
    info: VideoInfo
    views_per_frame: int


def pack(header: dict[str, Any]) -> bytes:
    """A length-prefixed JSON message."""
    body = json.dumps(header).encode()
    return LENGTH.pack(len(body)) + body


def send_job(sock: socket.socket, job: Job, descriptor: int) -> None:
    """Send a job with the file's descriptor."""
    message = pack(dataclasses.asdict(job))
    sent = socket.send_fds(sock, [message], [descriptor])
    sock.sendall(message[sent:])


def parse_job(body: bytes) -> Job:
    """The job in a message's body."""
    fields = json.loads(body)
    resize = fields["resize"]
    if resize is not None:
        pairs = {name: None if resize[name] is None else tuple(resize[name]) for name in ("size", "crop")}
        resize = FrameResize(**{**resize, **pairs})
    tiling = fields["tiling"]
    if tiling is not None:
        tiling = Tiling(**{**tiling, "resolutions": tuple(tuple(size) for size in tiling["resolutions"])})
    return Job(
        FrameSampling(**fields["sampling"]), MediaLimits(**fields["limits"]), resize, Medium(fields["medium"]), tiling
    )


def reply_header(batch: FrameBatch) -> dict[str, Any]:
    """What goes before the pixels."""
    return {
        "shape": batch.frames_thwc_u8.shape,
        "pts_seconds": batch.pts_seconds[:: batch.views_per_frame],
        "info": dataclasses.asdict(batch.info),
    }


def error_header(error: FasterVLMError) -> dict[str, Any]:
    """A failed job's whole reply."""
    return {"code": error.code, "message": error.message[:_MAX_TEXT]}


def parse_reply(body: bytes, job: Job) -> Reply:
    """Check a reply against its job.

    Raises:
        FasterVLMError: the error that the child reports, if it is about the input.
        CorruptMediaError: the reply is not what an honest child would send.
    """
    try:
        header = json.loads(body)
        if "code" not in header:
            return _reply(header, job)
        error = _rebuilt(str(header["code"]), str(header["message"])[:_MAX_TEXT])
    except _NOT_HONEST as why:
        raise CorruptMediaError(f"the decoder answered nonsense about this file: {why}") from why
    raise error


_NOT_HONEST = (ValueError, TypeError, KeyError, OverflowError, RecursionError, InvalidRequestError, MediaLimitError)
"""What checking a reply brings out. With the last two an honest child would have *answered*."""


def _rebuilt(code: str, message: str) -> FasterVLMError:
    """An error from its code. The child may blame the file only; anything else is not its to say."""
    known = {cls.code: cls for cls in _tree(MediaError)}
    return known.get(code, CorruptMediaError)("".join(c if c.isprintable() else "?" for c in message))


def _tree(root: type[FasterVLMError]) -> Iterator[type[FasterVLMError]]:
    yield root
    for child in root.__subclasses__():
        yield from _tree(child)


def _require(ok: bool, what: str, value: object) -> None:
    if not ok:
        raise ValueError(f"{what} {str(value)[:_MAX_TEXT]}")


def _reply(header: Any, job: Job) -> Reply:
    info = _info(header["info"], job)
    views = views_per_picture((info.height, info.width), job.tiling)
    times = _times(header["pts_seconds"], job)
    return Reply(_shape(header["shape"], job, info), tuple(t for t in times for _ in range(views)), info, views)


def _shape(shape: Any, job: Job, info: VideoInfo) -> tuple[int, int, int, int]:
    """Follows wholly from the size that the file is said to have."""
    size = info.height, info.width
    expected = job.num_pictures * views_per_picture(size, job.tiling), *view_size(size, job.resize, job.tiling), 3
    _require(isinstance(shape, list) and all(type(n) is int for n in shape), "shape", shape)
    _require(tuple(shape) == expected and math.prod(expected) <= job.limits.memory_bytes, "shape", shape)
    return expected


def _times(times: Any, job: Job) -> tuple[float, ...]:
    numbers = isinstance(times, list) and all(_is_number(t) for t in times)
    _require(numbers and len(times) == job.num_pictures, "times", times)
    _require(job.medium is Medium.VIDEO or times == [0], "times of a picture", times)
    return tuple(float(t) for t in times)


def _info(fields: Any, job: Job) -> VideoInfo:
    seconds, width, height = fields["duration_seconds"], fields["width"], fields["height"]
    container, codec = (str(fields[name])[:_MAX_TEXT] for name in ("container", "codec"))
    _require(_is_number(seconds), "duration", seconds)
    _require(all(type(side) is int and side > 0 for side in (width, height)), "size", (width, height))
    _require(width * height <= job.limits.max_pixels_per_frame, "size", (width, height))
    if job.medium is Medium.IMAGE:
        _require(seconds == 0, "duration of a picture", seconds)
        _require(container == codec and codec in PICTURE_FORMATS, "picture format", (container, codec))
    return VideoInfo(float(seconds), width, height, container, codec)


def _is_number(value: Any) -> bool:
    return isinstance(value, float | int) and math.isfinite(value)
