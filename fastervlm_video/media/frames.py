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
    """What is known of a video's picture track.

    Attributes:
        duration_seconds: length of the picture track; estimated where the container does not say.
        width: pixels, as shown (rotation applied), before any resizing.
        height: pixels, as shown, before any resizing.
        container: demuxer's short name, e.g. ``mov,mp4,m4a,3gp,3g2,mj2``.
        codec: decoder's name, e.g. ``h264``.
    """

    duration_seconds: float
    width: int
    height: int
    container: str
    codec: str


@dataclass(frozen=True, slots=True, eq=False)
class FrameBatch:
    """Frames of one video in display order.

    Attributes:
        frames_thwc_u8: uint8 array [T, H, W, 3], RGB, C-contiguous.
        pts_seconds: T presentation times, non-decreasing, relative to the track's first frame.
        info: facts about the video they came from.

    Raises:
        InvalidRequestError: shapes, dtype or times are not as described.
    """

    frames_thwc_u8: npt.NDArray[np.uint8]
    pts_seconds: tuple[float, ...]
    info: VideoInfo

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

    @property
    def num_frames(self) -> int:
        """T."""
        return len(self.pts_seconds)

    @property
    def size_bytes(self) -> int:
        """Bytes of pixel data."""
        return self.frames_thwc_u8.nbytes

    def __repr__(self) -> str:
        shape = "x".join(map(str, self.frames_thwc_u8.shape))
        return f"FrameBatch({shape} uint8, {self.pts_seconds[0]:.3f}..{self.pts_seconds[-1]:.3f} s, {self.info})"
