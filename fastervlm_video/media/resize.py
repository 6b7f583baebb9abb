"""Resize and centre-crop of one frame, bit for bit as Hugging Face's PIL image processors do it.

The steps and their rounding follow ``transformers.image_transforms`` (``get_resize_output_image_size``,
``resize``, ``center_crop``), which are what checkpoints were evaluated with; PIL does the resampling.
"""

import math

import numpy as np
import numpy.typing as npt
from PIL import Image

from fastervlm_video.config import FrameResize
from fastervlm_video.errors import InvalidRequestError, MediaLimitError

__all__ = ["MAX_RESIZED_PIXELS", "apply_resize", "resized_shape"]

MAX_RESIZED_PIXELS = 8192 * 8192
"""Most pixels between resizing and cropping. Scaling the short edge of a 10000x2 strip up to 224 would
take a million columns; no picture that shows anything comes near this."""

Frame = npt.NDArray[np.uint8]


def apply_resize(frame_hwc_u8: Frame, resize: FrameResize) -> Frame:
    """Resize, then crop the centre.

    Args:
        frame_hwc_u8: uint8 [H, W, 3].
        resize: what to do, see :class:`~fastervlm_video.config.FrameResize`.

    Returns:
        uint8 [H', W', 3], C-contiguous; the frame itself if there is nothing to do.

    Raises:
        InvalidRequestError: the frame is not uint8 [H, W, 3], or the filter number is unknown to PIL.
        MediaLimitError: the resized frame would be larger than :data:`MAX_RESIZED_PIXELS`.
    """
    if frame_hwc_u8.dtype != np.uint8 or frame_hwc_u8.ndim != 3 or frame_hwc_u8.shape[2] != 3:
        raise InvalidRequestError(f"a frame must be uint8 [H, W, 3], got {frame_hwc_u8.dtype} {frame_hwc_u8.shape}")
    height, width = resized_shape(frame_hwc_u8.shape[0], frame_hwc_u8.shape[1], resize)
    frame = frame_hwc_u8
    if resize.shortest_edge is not None or resize.size is not None:
        try:
            frame = np.asarray(Image.fromarray(frame).resize((width, height), resample=resize.resample))
        except ValueError as error:
            raise InvalidRequestError(f"resample={resize.resample} is not a PIL filter: {error}") from error
    if resize.crop is not None:
        frame = _fit(_fit(frame, resize.crop[0], axis=0), resize.crop[1], axis=1)
    return np.ascontiguousarray(frame)


def resized_shape(height: int, width: int, resize: FrameResize) -> tuple[int, int]:
    """(height, width) after resizing and before cropping, for a frame of ``height`` x ``width``.

    Raises:
        MediaLimitError: more than :data:`MAX_RESIZED_PIXELS`.
    """
    if resize.size is not None:
        shape = resize.size
    elif resize.shortest_edge is not None:
        short, long = min(height, width), max(height, width)
        long = int(resize.shortest_edge * long / short)
        shape = (long, resize.shortest_edge) if width <= height else (resize.shortest_edge, long)
    else:
        return height, width
    if shape[0] * shape[1] > MAX_RESIZED_PIXELS:
        raise MediaLimitError(
            f"a frame of {width}x{height} would be resized to {shape[1]}x{shape[0]}, more than the "
            f"{MAX_RESIZED_PIXELS} pixels allowed: its sides differ too much"
        )
    return shape


def _fit(frame: Frame, wanted: int, axis: int) -> Frame:
    """Cut or zero-pad one side around the centre; the odd pixel is cut at the end, padded at the start."""
    have = frame.shape[axis]
    if have >= wanted:
        start = (have - wanted) // 2
        return frame[(slice(None),) * axis + (slice(start, start + wanted),)]
    before = math.ceil((wanted - have) / 2)
    padding = [(0, 0)] * frame.ndim
    padding[axis] = (before, wanted - have - before)
    return np.pad(frame, padding)
