"""A few frames out of a video, without decoding the rest of it."""

import struct
from collections.abc import Callable, Mapping
from typing import cast

import av
import numpy as np
import numpy.typing as npt
from av.buffer import Buffer

from fastervlm_video.config import FrameResize, FrameSampling, MediaLimits
from fastervlm_video.errors import CorruptMediaError, FasterVLMError, MediaLimitError
from fastervlm_video.media.frames import FrameBatch, VideoInfo
from fastervlm_video.media.opening import why
from fastervlm_video.media.reader import ShownFrame, TrackReader
from fastervlm_video.media.resize import apply_resize
from fastervlm_video.media.sampling import instants
from fastervlm_video.media.sources import VideoSource, open_source

__all__ = ["Progress", "decode_video"]

Frame = npt.NDArray[np.uint8]
Progress = Callable[[int, int], None]
"""Called with (frames done, frames in all)."""

_DISPLAY_MATRIX = struct.Struct("=9i")


def decode_video(
    source: VideoSource,
    sampling: FrameSampling,
    *,
    limits: MediaLimits = MediaLimits(),  # noqa: B008 - frozen
    resize: FrameResize | None = None,
    progress: Progress | None = None,
    threads: int = 1,
) -> FrameBatch:
    """Take ``sampling.num_frames`` frames, evenly spread over a video, seeking from one to the next.

    Args:
        source: a path, the encoded bytes, or a binary file object (read from its start, left open).
        sampling: how many frames; see :mod:`fastervlm_video.media.sampling` for which.
        limits: bounds that are enforced before and during the work.
        resize: applied to each frame as soon as it is decoded, so that memory is that of the small
            frames however large the video is. Frames keep their size if None.
        progress: called after each frame.
        threads: decoder threads.

    Returns:
        The frames as shown (rotation applied; transparency and pixel aspect ratio ignored). If the
        resolution changes within the video, frames take the size of the first.

    Raises:
        VideoNotFoundError: the path names nothing that can be opened.
        UnsupportedMediaError: not a video, or a container or codec that is not allowed.
        NoVideoStreamError: a media file without a picture track.
        CorruptMediaError: truncated or damaged.
        MediaLimitError: over one of the limits.
    """
    if sampling.num_frames > limits.max_num_frames:
        raise MediaLimitError(f"{sampling.num_frames} frames asked for, more than the {limits.max_num_frames} allowed")
    try:
        with open_source(source, limits) as media:
            reader = TrackReader(media, limits, threads)
            try:
                return _sample(reader, sampling, resize, progress)
            finally:
                reader.close()
    except FasterVLMError:
        raise
    except MemoryError as error:
        raise MediaLimitError(f"decoding needs more memory than the {limits.memory_bytes} bytes allowed") from error
    except (av.FFmpegError, OSError, ValueError) as error:
        raise CorruptMediaError(f"the video could not be decoded: {why(error)}") from error


def _sample(
    reader: TrackReader, sampling: FrameSampling, resize: FrameResize | None, progress: Progress | None
) -> FrameBatch:
    first, last = reader.first.pts, reader.last_pts()
    moments = instants(first, last, sampling.num_frames)
    frames: Frame | None = None
    times: list[float] = []
    info: VideoInfo | None = None
    shown: ShownFrame | None = None
    for index, moment in enumerate(moments):
        previous, shown = shown, reader.frame_at(moment)
        if frames is None or info is None:
            picture = _as_shown(shown.frame)
            info = _info(reader, last, picture.shape)
            picture = picture if resize is None else apply_resize(picture, resize)
            frames = np.empty((len(moments), *picture.shape), np.uint8)
            frames[0] = picture
        elif shown is previous:
            frames[index] = frames[index - 1]
        else:
            frames[index] = _fitted(_as_shown(shown.frame), resize, frames.shape[1:3])
        times.append(max(float((shown.pts - first) * reader.time_base), times[-1] if times else 0.0))
        if progress is not None:
            progress(index + 1, len(moments))
    assert frames is not None  # there is at least one moment
    assert info is not None
    return FrameBatch(frames, tuple(times), info)


def _info(reader: TrackReader, last: int, shape: tuple[int, ...]) -> VideoInfo:
    length = last - reader.first.pts + round(reader.ticks_per_frame or 0)
    return VideoInfo(float(length * reader.time_base), shape[1], shape[0], reader.container, reader.codec)


def _fitted(picture: Frame, resize: FrameResize | None, shape: tuple[int, int]) -> Frame:
    """Resized as asked, and to the first frame's size should the resolution have changed since."""
    picture = picture if resize is None else apply_resize(picture, resize)
    return picture if picture.shape[:2] == shape else apply_resize(picture, FrameResize(size=shape))


def _as_shown(frame: av.VideoFrame) -> Frame:
    """RGB pixels [H, W, 3], turned and mirrored as the display matrix says."""
    pixels = np.asarray(frame.to_ndarray(format="rgb24", threads=1), dtype=np.uint8)
    matrix = cast("Mapping[str, Buffer]", frame.side_data).get("DISPLAYMATRIX")
    if matrix is None:
        return pixels
    a, b, _, c, d, *_ = _DISPLAY_MATRIX.unpack(bytes(matrix))
    # The matrix maps (x, y) to (a x + c y, b x + d y); it is taken as its nearest quarter turn.
    if abs(b) + abs(c) > abs(a) + abs(d):
        pixels = pixels.transpose(1, 0, 2)
        a, d = c, b
    if a < 0:
        pixels = pixels[:, ::-1]
    if d < 0:
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)
