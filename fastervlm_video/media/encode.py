"""Writing videos: for demos, benchmarks and tests."""

import itertools
import os
from collections.abc import Iterable, Mapping
from fractions import Fraction

import av
import numpy as np
import numpy.typing as npt

from fastervlm_video.errors import InvalidRequestError

__all__ = ["write_video"]

_VARIABLE_RATE_TIME_BASE = Fraction(1, 90_000)


def write_video(
    path: str | os.PathLike[str],
    frames_hwc_u8: Iterable[npt.NDArray[np.uint8]],
    *,
    fps: int | Fraction = 24,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    container: str | None = None,
    gop_size: int | None = None,
    bit_rate: int | None = None,
    codec_options: Mapping[str, str] | None = None,
    container_options: Mapping[str, str] | None = None,
    pts_seconds: Iterable[float] | None = None,
    rotation_degrees: int = 0,
) -> None:
    """Encode RGB frames into a video file.

    Args:
        path: where to write; replaced if it exists.
        frames_hwc_u8: uint8 [H, W, 3] each, all of one size; at least one.
        fps: frames per second.
        codec: libav encoder.
        pix_fmt: pixel format to encode in.
        container: muxer, if the path's extension does not tell.
        gop_size: keyframe distance in frames; the encoder's default if None.
        bit_rate: bits per second; the encoder's default if None.
        codec_options: passed to the encoder, e.g. ``{"crf": "18"}``.
        container_options: passed to the muxer, e.g. ``{"movflags": "faststart"}``.
        pts_seconds: when each frame begins, for a variable frame rate; ``fps`` decides if None.
        rotation_degrees: how far a player turns the frames counter-clockwise before showing them.

    Raises:
        InvalidRequestError: no frames, or the encoder or container refuses them or an option.
    """
    frames = iter(frames_hwc_u8)
    first = next(frames, None)
    if first is None:
        raise InvalidRequestError("a video needs at least one frame")
    try:
        with av.open(os.fspath(path), "w", format=container, container_options=dict(container_options or {})) as out:
            stream = out.add_stream(codec, rate=fps, options=dict(codec_options or {}))
            if not isinstance(stream, av.VideoStream):
                raise InvalidRequestError(f"{codec!r} is not a video encoder")
            stream.height, stream.width = first.shape[:2]
            stream.pix_fmt = pix_fmt
            stream.codec_context.thread_count = 1
            if gop_size is not None:
                stream.codec_context.gop_size = gop_size
            if bit_rate is not None:
                stream.bit_rate = bit_rate
            if rotation_degrees:
                stream.set_display_rotation(rotation_degrees)
            times = None if pts_seconds is None else iter(pts_seconds)
            base = 1 / Fraction(fps) if times is None else _VARIABLE_RATE_TIME_BASE
            stream.codec_context.time_base = base
            for index, pixels in enumerate(itertools.chain([first], frames)):
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
                frame.pts = index if times is None else round(next(times) / base)
                frame.time_base = base
                out.mux(stream.encode(frame))
            out.mux(stream.encode(None))
    except (av.FFmpegError, ValueError, StopIteration) as error:
        if isinstance(error, InvalidRequestError):
            raise
        raise InvalidRequestError(f"cannot write {os.fspath(path)!r} with {codec} in {pix_fmt}: {error!r}") from error
