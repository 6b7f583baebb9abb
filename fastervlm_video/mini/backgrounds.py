"""Backgrounds for synthetic videos, and where a camera puts them. Everything follows from the generator passed in."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from PIL import Image

from fastervlm_video.mini.scenes import SceneStyle

__all__ = ["BACKGROUNDS", "backdrop", "smooth_noise"]

FloatImage = npt.NDArray[np.float32]
_Box = tuple[float, float, float, float]  # left, top, right, bottom

_TEXTURE_SIDE = 128  # backgrounds are drawn at this size and enlarged
_BICUBIC_REACH = 2  # source pixels that the filter reads on each side; more where it makes a picture smaller

_CLOUD_OCTAVES = ((3, 26.0), (7, 22.0), (14, 16.0), (28, 12.0))  # (cells per side, contrast)
_TINT = 0.35  # how much of a cloud's contrast is colour


def smooth_noise(rng: np.random.Generator, cells: int, height: int, width: int, channels: int) -> FloatImage:
    """float32 [height, width, channels]: normal noise on a grid of ``cells`` along the longer side, interpolated."""
    longer = max(height, width)
    rows, columns = (max(2, round(cells * side / longer) + 1) for side in (height, width))
    grid = rng.standard_normal((channels, rows, columns), np.float32)
    return _resized(grid, height, width, Image.Resampling.BILINEAR)


def _resized(
    planes: FloatImage, height: int, width: int, resample: Image.Resampling, box: _Box | None = None
) -> FloatImage:
    """float32 [height, width, channels] from float32 planes [channels, h, w], which PIL resizes one by one.

    The box is the part of the planes that is taken, all without one. Its edges need not be whole numbers, and the
    filter reads beyond them what is there.
    """
    resized = [
        np.asarray(Image.fromarray(plane, "F").resize((width, height), resample, box))
        for plane in np.ascontiguousarray(planes)
    ]
    return np.stack(resized, axis=-1)


def _cloudy(rng: np.random.Generator, height: int, width: int, margin: int) -> FloatImage:
    """Tinted clouds over a grey of any brightness."""
    height, width = height + 2 * margin, width + 2 * margin
    image = np.full((height, width, 3), rng.uniform(60, 165), np.float32)
    for cells, contrast in _CLOUD_OCTAVES:
        clouds = smooth_noise(rng, cells, height, width, 4)
        image += contrast * (clouds[..., :1] + _TINT * clouds[..., 1:])
    image *= rng.uniform(0.8, 1.15, 3).astype(np.float32)
    return image


def _patterned(rng: np.random.Generator, height: int, width: int, margin: int) -> FloatImage:
    """Stripes, checks or rings in two muted colours, over a gradient. A margin shows more of the same pattern."""
    y, x = np.mgrid[-margin : height + margin, -margin : width + margin].astype(np.float32) / min(height, width)
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


BACKGROUNDS: dict[str, Callable[[np.random.Generator, int, int, int], FloatImage]] = {
    "cloudy": _cloudy,
    "patterned": _patterned,
}
"""Families by name: (generator, height, width, margin) to float32 [height + 2 * margin, width + 2 * margin, 3].

Values are 8-bit levels but not clipped; the margin is what a camera that moves brings into the picture.
"""


def backdrop(rng: np.random.Generator, style: SceneStyle, moved_px: FloatImage, size: tuple[int, int]) -> FloatImage:
    """Background and distractors in each frame, where the camera puts them.

    They are drawn once, small and with a margin, and each frame is enlarged from the part that the camera sees. A
    picture that has moved to the right by p pixels shows what is ``p * texels`` further left. That need not be a whole
    number: the filter weighs what is drawn by where it lies in the box, and finds margin, never an end, around it::

        ┌─────────────────────────────┐
        │ margin                      │
        │       ┌─────────────┐       │  box: ``small`` wide, begins at ``margin - moved_px * texels``
        │       │  one frame  │       │
        │       └─────────────┘       │
        │                      margin │
        └─────────────────────────────┘

    Args:
        rng: where the lots come from.
        style: which family, how many distractors, and how far the camera moves at most.
        moved_px: float32 [F, 2], pixels to the right and down.
        size: (height, width) of the frames, in pixels.

    Returns:
        float32 [F, height, width, 3], in 8-bit levels but not clipped.
    """
    height, width = size
    scale = _TEXTURE_SIDE / min(size)
    small = np.array([max(2, round(width * scale)), max(2, round(height * scale))])
    texels = small / np.array([width, height])  # to a pixel of the frame, along x and y
    reach = style.camera_reach * min(size) * texels + _BICUBIC_REACH * np.maximum(texels, 1)
    margin = int(np.ceil(reach.max())) if style.camera_shake else 0
    drawn = BACKGROUNDS[style.backgrounds](rng, int(small[1]), int(small[0]), margin)
    for _ in range(int(rng.integers(0, style.max_distractors + 1))):
        _add_distractor(drawn, rng, margin)
    planes = drawn.transpose(2, 0, 1)
    corners, place = np.unique(margin - moved_px * texels, axis=0, return_inverse=True)  # one, if the camera rests
    boxes = np.concatenate([corners, corners + small], axis=1).tolist()
    views = np.empty((len(boxes), height, width, 3), np.float32)
    for view, box in zip(views, boxes, strict=True):
        view[:] = _resized(planes, height, width, Image.Resampling.BICUBIC, tuple(box))
    frames: FloatImage = views[place.ravel()]
    return frames


def _add_distractor(drawn: FloatImage, rng: np.random.Generator, margin: int) -> None:
    """A soft grey disc or bar with its centre off the margin: as large as an object, but without colour."""
    height, width = (length - 2 * margin for length in drawn.shape[:2])
    side = min(height, width)
    x, y = rng.uniform(0, width), rng.uniform(0, height)
    rx, ry = rng.uniform(0.02, 0.12) * side, rng.uniform(0.02, 0.12) * side
    rows, columns = np.mgrid[-margin : height + margin, -margin : width + margin]
    mask = np.clip(1.5 - np.maximum(np.abs(columns - x) / rx, np.abs(rows - y) / ry), 0, 0.5)
    drawn += (rng.choice([-1, 1]) * rng.uniform(30, 90) * mask)[..., None].astype(np.float32)
