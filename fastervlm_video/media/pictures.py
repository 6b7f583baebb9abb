"""Still pictures: JPEG, PNG and WebP, decoded by PIL to the pixels that Hugging Face's ``load_image`` gives.

The classes of PIL that read one format each are used directly, and not ``Image.open``: which of them to ask is
known from the first bytes, and ``Image.open`` warns of large pictures by settings of the whole process. What is
too large is for :class:`~fastervlm_video.config.MediaLimits` to say, before there is room for pixels.
"""

from typing import BinaryIO, cast

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from fastervlm_video.config import FrameResize, MediaLimits, Medium, Tiling
from fastervlm_video.errors import CorruptMediaError, FasterVLMError, MediaLimitError, UnsupportedMediaError
from fastervlm_video.media.containers import is_heif, refuse_heif
from fastervlm_video.media.frames import FrameBatch, VideoInfo
from fastervlm_video.media.sources import MediaSource, VideoSource, open_source
from fastervlm_video.media.tiling import split_views

__all__ = ["PICTURE_FORMATS", "SNIFF_BYTES", "decode_picture", "sniff_medium"]

SNIFF_BYTES = 12
"""How many of a file's first bytes :func:`sniff_medium` looks at."""

_READERS: dict[str, type[ImageFile]] = {"jpeg": JpegImageFile, "png": PngImageFile, "webp": WebPImageFile}
PICTURE_FORMATS = tuple(_READERS)
"""Names of the formats that are pictures."""

_WEBP_HEADER_BYTES = 30
_WEBP_BYTES_PER_PIXEL = 8
"""libwebp's animation decoder, which PIL uses for all files, holds two canvases with four bytes a pixel."""


def sniff_medium(head: bytes) -> Medium:
    """Whether a file is a picture or (possibly) a video, by its first :data:`SNIFF_BYTES` bytes.

    JPEG, PNG and WebP are pictures, animated or not, and so are HEIC and AVIF, which cannot be decoded. All else is a
    video: GIFs, and what is neither.
    """
    return Medium.IMAGE if _format_of(head) is not None or is_heif(head) else Medium.VIDEO


def decode_picture(
    source: VideoSource,
    *,
    limits: MediaLimits = MediaLimits(),  # noqa: B008 - frozen
    resize: FrameResize | None = None,
    tiling: Tiling | None = None,
) -> FrameBatch:
    """Decode one JPEG, PNG or WebP picture; of an animated one, the first frame.

    Args:
        source: a path, the encoded bytes, or a binary file object (read from its start, left open).
        limits: ``max_bytes`` and ``max_pixels_per_frame`` hold for pictures, too. Time is only limited in a
            :class:`~fastervlm_video.media.SandboxedDecoder`.
        resize: makes the first view out of the whole picture, which keeps its size if None.
        tiling: how further views are cut, see :func:`~fastervlm_video.media.split_views`.

    Returns:
        The views of the picture as shown (EXIF orientation applied, transparency dropped), at 0 seconds.

    Raises:
        VideoNotFoundError: the path names nothing that can be opened.
        UnsupportedMediaError: not one of these formats; HEIC and AVIF are not.
        CorruptMediaError: truncated or damaged.
        MediaLimitError: more bytes, pixels or memory than allowed.
        InvalidRequestError: ``resize`` does not make the whole picture as large as a tile.
    """
    try:
        with open_source(source, limits) as media:
            pixels, kind = _decode(media, limits)
        height, width, _ = pixels.shape
        views = split_views(pixels, resize, tiling)
    except MemoryError as error:
        raise MediaLimitError(f"decoding needs more memory than the {limits.memory_bytes} bytes allowed") from error
    info = VideoInfo(0.0, width, height, container=kind, codec=kind)
    return FrameBatch(views, (0.0,) * len(views), info, views_per_frame=len(views))


def _format_of(head: bytes) -> str | None:
    if head.startswith(b"\xff\xd8\xff"):
        return "jpeg"
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return "webp"
    return None


def _decode(media: MediaSource, limits: MediaLimits) -> tuple[npt.NDArray[np.uint8], str]:
    """Pixels [H, W, 3] as shown, and the format's name."""
    try:
        head = media.read_at(0, _WEBP_HEADER_BYTES)
        kind = _format_of(head)
        if kind is None:
            refuse_heif(media)
            raise UnsupportedMediaError("not a picture of an allowed format; JPEG, PNG and WebP are")
        if kind == "webp":
            # Its reader makes room for the picture when it is built, and calls it damaged if there is none.
            width, height = _webp_size(head)
            _check_pixels((width, height), limits)
            np.empty(width * height * _WEBP_BYTES_PER_PIXEL, np.uint8)
        media.seek(0)
        image = _READERS[kind](cast("BinaryIO", media))
        _check_pixels(image.size, limits)
        return _as_shown(image), kind
    except (FasterVLMError, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        raise MediaLimitError(f"PIL is set to refuse this picture: {error}") from error
    except Exception as error:
        # Hostile bytes bring nearly every kind of exception out of PIL's readers, SyntaxError included.
        raise CorruptMediaError(f"the picture could not be decoded: {str(error) or type(error).__name__}") from error


def _webp_size(head: bytes) -> tuple[int, int]:
    """(width, height) by a WebP file's first chunk: extended, lossless or lossy, the latter two with their marks."""
    chunk = head[12:16]
    if chunk == b"VP8X":
        return int.from_bytes(head[24:27], "little") + 1, int.from_bytes(head[27:30], "little") + 1
    if chunk == b"VP8L" and head[20:21] == b"\x2f":
        packed = int.from_bytes(head[21:25], "little")
        return (packed & 0x3FFF) + 1, (packed >> 14 & 0x3FFF) + 1
    if chunk == b"VP8 " and head[23:26] == b"\x9d\x01\x2a":
        return int.from_bytes(head[26:28], "little") & 0x3FFF, int.from_bytes(head[28:30], "little") & 0x3FFF
    raise CorruptMediaError(f"the picture could not be decoded: a WebP file that begins with {chunk!r} and no size")


def _check_pixels(size: tuple[int, int], limits: MediaLimits) -> None:
    width, height = size
    if width * height > (most := limits.max_pixels_per_frame):
        raise MediaLimitError(f"a picture of {width}x{height} has more than the {most} pixels allowed")


def _as_shown(image: Image.Image) -> npt.NDArray[np.uint8]:
    ImageOps.exif_transpose(image, in_place=True)
    # Without it PIL does not warn that a palette's transparency is lost; RGB values do not depend on it.
    image.info.pop("transparency", None)
    return np.asarray(image.convert("RGB"))
