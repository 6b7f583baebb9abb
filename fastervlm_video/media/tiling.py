"""A picture as views for the vision tower: the whole of it, made small, and square tiles of it ("anyres").

Which resolution is chosen, the size in it, padding and order are those of Hugging Face's LLaVA-NeXT processor
(``select_best_resolution`` and ``get_patch_output_size`` in ``transformers.image_processing_utils``, and the PIL
image processor), which is what checkpoints were evaluated with.

::

    picture 900 x 400, tiles of 336        fitted to 672 x 299         padded to 672 x 336
    ┌─────────────────┐                    ┌──────────────┐            ┌──────┬──────┐  18 black rows
    │                 │   ──────────▶      │              │  ───────▶  │ tile │ tile │
    └─────────────────┘                    └──────────────┘            └──────┴──────┘  19 black rows
"""

import math

import numpy as np
import numpy.typing as npt

from fastervlm_video.config import FrameResize, Tiling
from fastervlm_video.errors import InvalidRequestError, MediaLimitError
from fastervlm_video.media.resize import MAX_RESIZED_PIXELS, apply_resize, resample_to, resized_shape

__all__ = [
    "best_resolution",
    "check_views_match",
    "fitted_size",
    "split_views",
    "tile_grid",
    "view_size",
    "views_per_picture",
    "write_views",
]

Frame = npt.NDArray[np.uint8]
Size = tuple[int, int]
"""(height, width) in pixels."""

_RGB_CHANNELS = 3


def best_resolution(size_hw: Size, resolutions: tuple[Size, ...]) -> Size:
    """The resolution in which most of a picture's pixels are kept; of several, the one with the least padding.

    Args:
        size_hw: (height, width) of the picture.
        resolutions: one or more to choose from; of equals, the first is taken.

    Returns:
        (height, width), one of ``resolutions``.

    Raises:
        InvalidRequestError: a side of the picture is not positive, or there are no resolutions.
    """
    _check_size(size_hw)
    if not resolutions:
        raise InvalidRequestError("there is no resolution to choose from")
    height, width = size_hw

    def merit(resolution: Size) -> tuple[int, int]:
        scale = min(resolution[1] / width, resolution[0] / height)
        used = min(int(width * scale) * int(height * scale), width * height)
        return used, used - resolution[0] * resolution[1]

    return max(resolutions, key=merit)


def fitted_size(size_hw: Size, target_hw: Size) -> Size:
    """The largest size within ``target_hw`` that has a picture's aspect ratio, rounded up.

    Args:
        size_hw: (height, width) of the picture.
        target_hw: (height, width) that it is to fit in.

    Returns:
        (height, width); one of them is the target's.

    Raises:
        InvalidRequestError: a side of the picture is not positive.
    """
    _check_size(size_hw)
    (height, width), (target_height, target_width) = size_hw, target_hw
    scale_across, scale_down = target_width / width, target_height / height
    if scale_across < scale_down:
        return min(math.ceil(height * scale_across), target_height), target_width
    return target_height, min(math.ceil(width * scale_down), target_width)


def tile_grid(size_hw: Size, tiling: Tiling) -> tuple[int, int]:
    """(rows, columns) of the tiles that a picture of (height, width) is cut into.

    Raises:
        InvalidRequestError: a side of the picture is not positive.
    """
    height, width = best_resolution(size_hw, tiling.resolutions)
    return height // tiling.tile_size, width // tiling.tile_size


def views_per_picture(size_hw: Size, tiling: Tiling | None) -> int:
    """How many views a picture of (height, width) has: 1, or with a ``tiling`` 1 + rows x columns.

    Raises:
        InvalidRequestError: a side of the picture is not positive.
    """
    if tiling is None:
        return 1
    rows, columns = tile_grid(size_hw, tiling)
    return 1 + rows * columns


def view_size(size_hw: Size, resize: FrameResize | None, tiling: Tiling | None) -> Size:
    """(height, width) of every view of a picture of (height, width).

    Raises:
        InvalidRequestError: the whole picture would not be resized to the tiles' size.
        MediaLimitError: resizing would go through more than
            :data:`~fastervlm_video.media.resize.MAX_RESIZED_PIXELS`.
    """
    whole = size_hw
    if resize is not None:
        resized = resized_shape(*size_hw, resize)
        whole = resize.crop or resized
    if tiling is not None:
        _check_match(f"{whole[1]}x{whole[0]}", whole, tiling)
    return whole


def check_views_match(resize: FrameResize | None, tiling: Tiling | None) -> None:
    """Refuse a resize that does not make the whole of *any* picture as large as a tile, before one is there.

    Raises:
        InvalidRequestError: it does not.
    """
    if tiling is not None:
        exact = None if resize is None else resize.crop or resize.size
        _check_match("no certain size" if exact is None else f"{exact[1]}x{exact[0]}", exact, tiling)


def split_views(picture_hwc_u8: Frame, resize: FrameResize | None, tiling: Tiling | None) -> Frame:
    """All views of a picture.

    Args:
        picture_hwc_u8: uint8 [H, W, 3].
        resize: makes view 0 out of the whole picture, see :func:`~fastervlm_video.media.resize.apply_resize`;
            the picture itself if None.
        tiling: how further views are cut out of it; none are if None.

    Returns:
        uint8 [V, H', W', 3], C-contiguous: the whole, then the tiles row by row.

    Raises:
        InvalidRequestError: the picture is not uint8 [H, W, 3], a filter number is unknown to PIL, or the whole
            would not be resized to the tiles' size.
        MediaLimitError: an intermediate picture would be larger than
            :data:`~fastervlm_video.media.resize.MAX_RESIZED_PIXELS`.
    """
    if picture_hwc_u8.dtype != np.uint8 or picture_hwc_u8.ndim != 3 or picture_hwc_u8.shape[2] != _RGB_CHANNELS:
        raise InvalidRequestError(
            f"a picture must be uint8 [H, W, 3], got {picture_hwc_u8.dtype} {picture_hwc_u8.shape}"
        )
    size = picture_hwc_u8.shape[0], picture_hwc_u8.shape[1]
    height, width = view_size(size, resize, tiling)
    views = np.empty((views_per_picture(size, tiling), height, width, _RGB_CHANNELS), np.uint8)
    write_views(picture_hwc_u8, resize, tiling, views)
    return views


def write_views(picture_hwc_u8: Frame, resize: FrameResize | None, tiling: Tiling | None, out: Frame) -> None:
    """As :func:`split_views`, into ``out``: uint8 [V, H', W', 3] of just the right shape, C-contiguous."""
    out[0] = picture_hwc_u8 if resize is None else apply_resize(picture_hwc_u8, resize)
    if tiling is None:
        return
    size = picture_hwc_u8.shape[0], picture_hwc_u8.shape[1]
    resolution = best_resolution(size, tiling.resolutions)
    canvas = _on_canvas(picture_hwc_u8, size, resolution, tiling.resample)
    rows, columns, side = resolution[0] // tiling.tile_size, resolution[1] // tiling.tile_size, tiling.tile_size
    tiles = out[1:].reshape(rows, columns, side, side, _RGB_CHANNELS)
    tiles[...] = canvas.reshape(rows, side, columns, side, _RGB_CHANNELS).swapaxes(1, 2)


def _on_canvas(picture: Frame, size: Size, resolution: Size, resample: int) -> Frame:
    """The picture fitted and centred on black; of an odd number of black rows or columns, the odd one comes after."""
    if resolution[0] * resolution[1] > MAX_RESIZED_PIXELS:
        raise MediaLimitError(
            f"a resolution of {resolution[1]}x{resolution[0]} for tiles has more than the "
            f"{MAX_RESIZED_PIXELS} pixels allowed"
        )
    height, width = fitted_size(size, resolution)
    top, left = (resolution[0] - height) // 2, (resolution[1] - width) // 2
    canvas = np.zeros((*resolution, _RGB_CHANNELS), np.uint8)
    canvas[top : top + height, left : left + width] = resample_to(picture, (height, width), resample)
    return canvas


def _check_size(size_hw: Size) -> None:
    if size_hw[0] < 1 or size_hw[1] < 1:
        raise InvalidRequestError(f"a picture has at least one pixel, got {size_hw[1]}x{size_hw[0]}")


def _check_match(what: str, size: Size | None, tiling: Tiling) -> None:
    if size != (tiling.tile_size, tiling.tile_size):
        raise InvalidRequestError(
            f"with tiles of {tiling.tile_size}x{tiling.tile_size}, the whole picture must be resized to that size, "
            f"too, but it comes to {what}; set resize's size or crop"
        )
