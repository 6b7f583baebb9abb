"""What a decoder process and its parent say to each other: length-prefixed JSON, then raw pixels.

::

    child   b"R"                                    imports done, waiting
    parent  length, {sampling, limits, resize}      with the video's file descriptor attached
    child   length, {"shape", "pts_seconds", "info"}, T*H*W*3 bytes        or
            length, {"code", "message"}

Nothing is ever unpickled: the child may have been taken over by the video it decoded, so the parent
checks every number against what it asked for.
"""

import dataclasses
import json
import math
import socket
import struct
from collections.abc import Callable, Iterator
from typing import Any

from fastervlm_video.config import FrameResize, FrameSampling, MediaLimits
from fastervlm_video.errors import CorruptMediaError, FasterVLMError, MediaError
from fastervlm_video.media.frames import FrameBatch, VideoInfo
from fastervlm_video.media.resize import MAX_RESIZED_PIXELS

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
    """One video to decode."""

    sampling: FrameSampling
    limits: MediaLimits
    resize: FrameResize | None


@dataclasses.dataclass(frozen=True, slots=True)
class Reply:
    """A checked reply header; ``shape`` is [T, H, W, 3]."""

    shape: tuple[int, int, int, int]
    pts_seconds: tuple[float, ...]
    info: VideoInfo


def pack(header: dict[str, Any]) -> bytes:
    """A length-prefixed JSON message."""
    body = json.dumps(header).encode()
    return LENGTH.pack(len(body)) + body


def send_job(sock: socket.socket, job: Job, descriptor: int) -> None:
    """Send a job with the video's descriptor."""
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
    return Job(FrameSampling(**fields["sampling"]), MediaLimits(**fields["limits"]), resize)


def reply_header(batch: FrameBatch) -> dict[str, Any]:
    """What goes before the pixels."""
    return {
        "shape": batch.frames_thwc_u8.shape,
        "pts_seconds": batch.pts_seconds,
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
        if "code" in header:
            raise _rebuilt(str(header["code"]), str(header["message"])[:_MAX_TEXT])
        return Reply(_shape(header["shape"], job), _times(header["pts_seconds"], job), _info(header["info"]))
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        if isinstance(error, FasterVLMError):
            raise
        raise CorruptMediaError(f"the decoder answered nonsense about this video: {error}") from error


def _rebuilt(code: str, message: str) -> FasterVLMError:
    """An error from its code. The child may blame the video only; anything else is not its to say."""
    known = {cls.code: cls for cls in _tree(MediaError)}
    return known.get(code, CorruptMediaError)("".join(c if c.isprintable() else "?" for c in message))


def _tree(root: type[FasterVLMError]) -> Iterator[type[FasterVLMError]]:
    yield root
    for child in root.__subclasses__():
        yield from _tree(child)


def _require(ok: bool, what: str, value: object) -> None:
    if not ok:
        raise ValueError(f"{what} {str(value)[:_MAX_TEXT]}")


def _shape(shape: Any, job: Job) -> tuple[int, int, int, int]:
    _require(isinstance(shape, list) and len(shape) == 4 and all(type(n) is int for n in shape), "shape", shape)
    frames, height, width, channels = shape
    exact = None if job.resize is None else job.resize.crop or job.resize.size
    most = job.limits.max_pixels_per_frame if job.resize is None else MAX_RESIZED_PIXELS
    _require(frames == job.sampling.num_frames and channels == 3, "shape", shape)
    _require(height > 0 and width > 0 and height * width <= most, "shape", shape)
    _require(exact is None or (height, width) == exact, "shape", shape)
    _require(math.prod(shape) <= job.limits.memory_bytes, "shape", shape)
    return frames, height, width, channels


def _times(times: Any, job: Job) -> tuple[float, ...]:
    numbers = isinstance(times, list) and all(isinstance(t, float | int) and math.isfinite(t) for t in times)
    _require(numbers and len(times) == job.sampling.num_frames, "times", times)
    return tuple(float(t) for t in times)


def _info(fields: Any) -> VideoInfo:
    kinds: dict[str, Callable[[Any], Any]] = {
        "duration_seconds": float,
        "width": int,
        "height": int,
        "container": lambda text: str(text)[:_MAX_TEXT],
        "codec": lambda text: str(text)[:_MAX_TEXT],
    }
    return VideoInfo(**{name: kind(fields[name]) for name, kind in kinds.items()})
