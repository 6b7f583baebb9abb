"""A few frames out of a video, without decoding the rest of it."""

import struct
from collections.abc import Callable, Mapping
from typing import cast

import av
import numpy as np
import numpy.typing as npt
from av.buffer import Buffer

from fastervlm_video.config import FrameResize, FrameSampling, MediaLimits, Tiling
from fastervlm_video.errors import CorruptMediaError, FasterVLMError, MediaLimitError
from fastervlm_video.media.frames import FrameBatch, VideoInfo
from fastervlm_video.media.opening import why
from fastervlm_video.media.reader import ShownFrame, TrackReader
from fastervlm_video.media.resize import apply_resize
from fastervlm_video.media.sampling import instants
from fastervlm_video.media.sources import VideoSource, open_source
from fastervlm_video.media.tiling import view_size, views_per_picture, write_views

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
    tiling: Tiling | None = None,
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
        tiling: how further views are cut out of each frame, see :func:`~fastervlm_video.media.split_views`.
        progress: called after each frame.
        threads: decoder threads.

    Returns:
        The frames as shown (rotation applied; transparency and pixel aspect ratio ignored), each with all
        its views. If the resolution changes within the video, frames take the size of the first.

    Raises:
        VideoNotFoundError: the path names nothing that can be opened.
        UnsupportedMediaError: not a video, or a container or codec that is not allowed.
        NoVideoStreamError: a media file without a picture track.
        CorruptMediaError: truncated or damaged.
        MediaLimitError: over one of the limits.
        InvalidRequestError: with a ``tiling``, ``resize`` does not make a frame as large as a tile.
    """
    if sampling.num_frames > limits.max_num_frames:
        raise MediaLimitError(f"{sampling.num_frames} frames asked for, more than the {limits.max_num_frames} allowed")
    try:
        with open_source(source, limits) as media:
            reader = TrackReader(media, limits, threads)
            try:
                return _sample(reader, sampling, resize, tiling, progress)
            finally:
                reader.close()
    except FasterVLMError:
        raise
    except MemoryError as error:
        raise MediaLimitError(f"decoding needs more memory than the {limits.memory_bytes} bytes allowed") from error
    except (av.FFmpegError, OSError, ValueError) as error:
        raise CorruptMediaError(f"the video could not be decoded: {why(error)}") from error


class _Sheet:
    """Room for all views of all frames, taken once the first frame's size is known."""

    def __init__(
        self, size_hw: tuple[int, int], num_frames: int, resize: FrameResize | None, tiling: Tiling | None
    ) -> None:
        self._size_hw, self._resize, self._tiling = size_hw, resize, tiling
        self.views = views_per_picture(size_hw, tiling)
        self.rows = np.empty((num_frames * self.views, *view_size(size_hw, resize, tiling), 3), np.uint8)

    def put(self, index: int, picture: Frame) -> None:
        """Write the views of frame ``index``."""
        rows = self._of(index)
        if self._tiling is None:
            rows[0] = _fitted(picture, self._resize, rows.shape[1:3])
        else:
            write_views(_fitted(picture, None, self._size_hw), self._resize, self._tiling, rows)

    def repeat(self, index: int) -> None:
        """Let frame ``index`` be as the one before."""
        self._of(index)[...] = self._of(index - 1)

    def _of(self, index: int) -> Frame:
        return self.rows[index * self.views : (index + 1) * self.views]


def _sample(
    reader: TrackReader,
    sampling: FrameSampling,
    resize: FrameResize | None,
    tiling: Tiling | None,
    progress: Progress | None,
) -> FrameBatch:
    first, last = reader.first.pts, reader.last_pts()
    moments = instants(first, last, sampling.num_frames)
    sheet: _Sheet | None = None
    times: list[float] = []
    info: VideoInfo | None = None
    shown: ShownFrame | None = None
    for index, moment in enumerate(moments):
        previous, shown = shown, reader.frame_at(moment)
        if sheet is None or info is None:
            picture = _as_shown(shown.frame)
            info = _info(reader, last, picture.shape)
            sheet = _Sheet((info.height, info.width), len(moments), resize, tiling)
            sheet.put(0, picture)
        elif shown is previous:
            sheet.repeat(index)
        else:
            sheet.put(index, _as_shown(shown.frame))
        times.append(max(float((shown.pts - first) * reader.time_base), times[-1] if times else 0.0))
        if progress is not None:
            progress(index + 1, len(moments))
    assert sheet is not None  # there is at least one moment
    assert info is not None
    times_of_rows = tuple(seconds for seconds in times for _ in range(sheet.views))
    return FrameBatch(sheet.rows, times_of_rows, info, views_per_frame=sheet.views)


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
