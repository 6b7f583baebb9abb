"""Backgrounds for synthetic videos. Everything follows from the generator that is passed in."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from PIL import Image

__all__ = ["BACKGROUNDS", "resize_planes", "smooth_noise"]

FloatImage = npt.NDArray[np.float32]

_CLOUD_OCTAVES = ((3, 26.0), (7, 22.0), (14, 16.0), (28, 12.0))  # (cells per side, contrast)
_TINT = 0.35  # how much of a cloud's contrast is colour


def smooth_noise(rng: np.random.Generator, cells: int, height: int, width: int, channels: int) -> FloatImage:
    """float32 [height, width, channels]: normal noise on a grid of ``cells`` along the longer side, interpolated."""
    longer = max(height, width)
    rows, columns = (max(2, round(cells * side / longer) + 1) for side in (height, width))
    grid = rng.standard_normal((channels, rows, columns), np.float32)
    return resize_planes(grid, height, width, Image.Resampling.BILINEAR)


def resize_planes(planes: FloatImage, height: int, width: int, resample: Image.Resampling) -> FloatImage:
    """float32 [height, width, channels] from float32 planes [channels, h, w], which PIL resizes one by one."""
    resized = [
        np.asarray(Image.fromarray(plane, "F").resize((width, height), resample))
        for plane in np.ascontiguousarray(planes)
    ]
    return np.stack(resized, axis=-1)


def _cloudy(rng: np.random.Generator, height: int, width: int) -> FloatImage:
    """Tinted clouds over a grey of any brightness."""
    image = np.full((height, width, 3), rng.uniform(60, 165), np.float32)
    for cells, contrast in _CLOUD_OCTAVES:
        clouds = smooth_noise(rng, cells, height, width, 4)
        image += contrast * (clouds[..., :1] + _TINT * clouds[..., 1:])
    image *= rng.uniform(0.8, 1.15, 3).astype(np.float32)
    return image


def _patterned(rng: np.random.Generator, height: int, width: int) -> FloatImage:
    """Stripes, checks or rings in two muted colours, over a gradient."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32) / min(height, width)
    angle, pitch = rng.uniform(0, np.pi), rng.uniform(0.08, 0.3)
    u, v = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    centre = rng.uniform(0.2, 0.8, 2)
    phase = (u, np.floor(u / pitch) + np.floor(v / pitch), np.hypot(x - centre[0], y - centre[1]))
    kind = int(rng.integers(len(phase)))
    mask = phase[kind] % 2 if kind == 1 else (phase[kind] / pitch) % 1 > 0.5
    colors = rng.uniform(60, 180) + rng.uniform(-18, 18, (2, 3)) + rng.uniform(-30, 30, (2, 1))
    image = (
        np.where(mask[..., None] > 0, colors[0], colors[1])
        + 40 * (rng.uniform(-1, 1) * x + rng.uniform(-1, 1) * y)[..., None]
    )
    patterned: FloatImage = image.astype(np.float32)
    return patterned


BACKGROUNDS: dict[str, Callable[[np.random.Generator, int, int], FloatImage]] = {
    "cloudy": _cloudy,
    "patterned": _patterned,
}
"""Families by name: (generator, height, width) to float32 [height, width, 3], in 8-bit levels but not clipped."""
