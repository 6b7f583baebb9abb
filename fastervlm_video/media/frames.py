"""What decoding hands on: a few frames and the moments they were shown."""

import itertools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fastervlm_video.errors import InvalidRequestError

__all__ = ["FrameBatch", "VideoInfo"]

RGB_CHANNELS = 3


@dataclass(frozen=True, slots=True)
class VideoInfo:
    """What is known of a video's picture track, or of a still picture.

    Attributes:
        duration_seconds: length of the picture track; estimated where the container does not say;
            0 for a still picture.
        width: pixels, as shown (rotation applied), before any resizing.
        height: pixels, as shown, before any resizing.
        container: demuxer's short name, e.g. ``mov,mp4,m4a,3gp,3g2,mj2``, or the picture's format, e.g. ``jpeg``.
        codec: decoder's name, e.g. ``h264``, or the picture's format again.
    """

    duration_seconds: float
    width: int
    height: int
    container: str
    codec: str


@dataclass(frozen=True, slots=True, eq=False)
class FrameBatch:
    """Frames of one video in display order, or a still picture.

    A picture that is looked at through several views has several rows here, which are neighbours::

        views_per_frame = 3     rows  0 1 2 | 3 4 5 | ...     num_frames counts rows, num_pictures what was shown

    Attributes:
        frames_thwc_u8: uint8 array [T, H, W, 3], RGB, C-contiguous.
        pts_seconds: T presentation times, non-decreasing, relative to the track's first frame. Views of one
            picture repeat its time.
        info: facts about the video or picture they came from.
        views_per_frame: rows for each picture shown; T is a multiple.

    Raises:
        InvalidRequestError: shapes, dtype or times are not as described.
    """

    frames_thwc_u8: npt.NDArray[np.uint8]
    pts_seconds: tuple[float, ...]
    info: VideoInfo
    views_per_frame: int = 1

    def __post_init__(self) -> None:
        frames, times = self.frames_thwc_u8, self.pts_seconds
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != RGB_CHANNELS:
            raise InvalidRequestError(
                f"frames must be uint8 [T, H, W, {RGB_CHANNELS}], got {frames.dtype} {list(frames.shape)}"
            )
        if len(times) != len(frames) or not times:
            raise InvalidRequestError(f"{len(frames)} frames came with {len(times)} timestamps")
        if any(b < a for a, b in itertools.pairwise(times)):
            raise InvalidRequestError(f"timestamps must not decrease, got {list(times)}")
        if self.views_per_frame < 1 or len(frames) % self.views_per_frame:
            raise InvalidRequestError(f"{len(frames)} rows are not pictures of {self.views_per_frame} views each")

    @property
    def num_frames(self) -> int:
        """T: rows of the array, each an input of the vision tower."""
        return len(self.pts_seconds)

    @property
    def num_pictures(self) -> int:
        """How many pictures were shown, each with ``views_per_frame`` rows."""
        return self.num_frames // self.views_per_frame

    @property
    def size_bytes(self) -> int:
        """Bytes of pixel data."""
        return self.frames_thwc_u8.nbytes

    def __repr__(self) -> str:
        shape = "x".join(map(str, self.frames_thwc_u8.shape))
        views = "" if self.views_per_frame == 1 else f" ({self.num_pictures} x {self.views_per_frame} views)"
        return f"FrameBatch({shape} uint8{views}, {self.pts_seconds[0]:.3f}..{self.pts_seconds[-1]:.3f} s, {self.info})"
