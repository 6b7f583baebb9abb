"""Still pictures of every kind that people send, made with PIL, and what Hugging Face reads in them."""

import io
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from transformers.image_utils import load_image

HEIGHT, WIDTH = 30, 44


def drawing(height: int = HEIGHT, width: int = WIDTH) -> Image.Image:
    """Smooth colours that no rotation or mirroring leaves as they are, with a little noise."""
    rows, columns = np.mgrid[0:height, 0:width]
    pixels = np.stack([rows * 255 // height, columns * 255 // width, (rows + 2 * columns) % 256], axis=-1)
    pixels += np.random.default_rng(0).integers(0, 9, pixels.shape)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    held = io.BytesIO()
    image.save(held, kind, **options)
    return held.getvalue()


def turned(kind: str, orientation: int) -> bytes:
    """A file whose EXIF data says how its picture is to be turned."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(drawing(), kind, exif=exif)


def hugging_face(data: bytes) -> npt.NDArray[np.uint8]:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(load_image(image), np.uint8)


def _sixteen_bits() -> Image.Image:
    return Image.fromarray(np.arange(HEIGHT * WIDTH, dtype=np.uint16).reshape(HEIGHT, WIDTH) * 49)


def _palette() -> Image.Image:
    return drawing().quantize(16)


def _with_alpha() -> Image.Image:
    image = drawing().convert("RGBA")
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    return image


def every_kind() -> dict[str, bytes]:
    """Files by a name of their kind; the first word is the format."""
    frames = [drawing(), drawing().transpose(Image.Transpose.ROTATE_180)]
    animation: dict[str, Any] = {"save_all": True, "append_images": frames[1:], "duration": 40}
    return {
        "jpeg": encoded(drawing(), "JPEG"),
        "jpeg progressive": encoded(drawing(), "JPEG", progressive=True, subsampling=0),
        "jpeg grey": encoded(drawing().convert("L"), "JPEG"),
        "jpeg cmyk": encoded(drawing().convert("CMYK"), "JPEG"),
        "jpeg several": encoded(frames[0], "MPO", save_all=True, append_images=frames[1:]),
        "png": encoded(drawing(), "PNG"),
        "png grey": encoded(drawing().convert("L"), "PNG"),
        "png grey transparent": encoded(drawing().convert("L"), "PNG", transparency=7),
        "png grey alpha": encoded(drawing().convert("LA"), "PNG"),
        "png bits": encoded(drawing().convert("1"), "PNG"),
        "png 16 bits": encoded(_sixteen_bits(), "PNG"),
        "png alpha": encoded(_with_alpha(), "PNG"),
        "png colour transparent": encoded(drawing(), "PNG", transparency=(1, 2, 3)),
        "png palette": encoded(_palette(), "PNG"),
        "png palette alpha": encoded(_palette(), "PNG", transparency=bytes(range(0, 256, 16))),
        "png animated": encoded(frames[0], "PNG", **animation),
        "png apart": encoded(frames[0], "PNG", **animation, default_image=True),
        "webp": encoded(drawing(), "WEBP"),
        "webp lossless": encoded(drawing(), "WEBP", lossless=True),
        "webp alpha": encoded(_with_alpha(), "WEBP"),
        "webp animated": encoded(frames[0], "WEBP", **animation),
    }
