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

__all__ = ["MAX_RESIZED_PIXELS", "apply_resize", "resample_to", "resized_shape"]

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
        MediaLimitError: resizing would go through more than :data:`MAX_RESIZED_PIXELS`.
    """
    if frame_hwc_u8.dtype != np.uint8 or frame_hwc_u8.ndim != 3 or frame_hwc_u8.shape[2] != 3:
        raise InvalidRequestError(f"a frame must be uint8 [H, W, 3], got {frame_hwc_u8.dtype} {frame_hwc_u8.shape}")
    shape = resized_shape(frame_hwc_u8.shape[0], frame_hwc_u8.shape[1], resize)
    frame = frame_hwc_u8
    if resize.shortest_edge is not None or resize.size is not None:
        frame = resample_to(frame, shape, resize.resample)
    if resize.crop is not None:
        frame = _fit(_fit(frame, resize.crop[0], axis=0), resize.crop[1], axis=1)
    return np.ascontiguousarray(frame)


def resized_shape(height: int, width: int, resize: FrameResize) -> tuple[int, int]:
    """(height, width) after resizing and before cropping, for a frame of ``height`` x ``width``.

    Raises:
        MediaLimitError: resizing would go through more than :data:`MAX_RESIZED_PIXELS`.
    """
    if resize.size is not None:
        shape = resize.size
    elif resize.shortest_edge is not None:
        short, long = min(height, width), max(height, width)
        long = int(resize.shortest_edge * long / short)
        shape = (long, resize.shortest_edge) if width <= height else (resize.shortest_edge, long)
    else:
        return height, width
    _check_pixels((height, width), shape)
    return shape


def resample_to(frame_hwc_u8: Frame, size_hw: tuple[int, int], resample: int) -> Frame:
    """The whole frame at another size, its aspect ratio changed if need be.

    Args:
        frame_hwc_u8: uint8 [H, W, 3].
        size_hw: (height, width) wanted, in pixels.
        resample: PIL's number of the filter.

    Returns:
        uint8 [height, width, 3]; may be read-only.

    Raises:
        InvalidRequestError: the filter number is unknown to PIL.
        MediaLimitError: resizing would go through more than :data:`MAX_RESIZED_PIXELS`.
    """
    _check_pixels((frame_hwc_u8.shape[0], frame_hwc_u8.shape[1]), size_hw)
    try:
        return np.asarray(Image.fromarray(frame_hwc_u8).resize((size_hw[1], size_hw[0]), resample=resample))
    except ValueError as error:
        raise InvalidRequestError(f"resample={resample} is not a PIL filter: {error}") from error


def _check_pixels(old_hw: tuple[int, int], new_hw: tuple[int, int]) -> None:
    """Refuse what is too large when resized, or on the way there."""
    (height, width), (new_height, new_width) = old_hw, new_hw
    # PIL resamples across and then down: in between there are the old rows at the new width.
    rows = max(new_height, height if new_width != width else 0)
    if rows * new_width > MAX_RESIZED_PIXELS:
        way = "" if rows == new_height else f" by way of {new_width}x{rows}"
        raise MediaLimitError(
            f"a frame of {width}x{height} would be resized to {new_width}x{new_height}{way}, more than the "
            f"{MAX_RESIZED_PIXELS} pixels allowed: its sides differ too much"
        )


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
