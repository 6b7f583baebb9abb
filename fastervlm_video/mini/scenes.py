"""Short synthetic videos: a few coloured shapes drifting over a shaded, noisy background.

For the demo and the tests, which need a real video without shipping one. Everything follows from the seed.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fastervlm_video.errors import InvalidRequestError

__all__ = ["COLORS", "SHAPES", "MovingShape", "Scene", "random_scene", "render_scene"]

COLORS = {
    "red": (214, 48, 49),
    "green": (46, 160, 67),
    "blue": (52, 101, 220),
    "yellow": (240, 200, 40),
    "purple": (150, 70, 190),
    "white": (235, 235, 235),
}
SHAPES = ("circle", "square", "triangle")

_NOISE_LEVEL = 6.0
_EDGE_SOFTNESS_PX = 1.0


@dataclass(frozen=True, slots=True)
class MovingShape:
    """One object. Positions are its centre as (x, y) shares of the frame, in [0, 1].

    Attributes:
        shape: one of :data:`SHAPES`.
        color: a key of :data:`COLORS`.
        radius: share of the frame's shorter side.
        start: where it is in the first frame.
        end: where it is in the last frame; it moves in a straight line.
    """

    shape: str
    color: str
    radius: float
    start: tuple[float, float]
    end: tuple[float, float]


@dataclass(frozen=True, slots=True)
class Scene:
    """Objects, drawn in order, over a background that the seed decides."""

    objects: tuple[MovingShape, ...]
    seed: int


def random_scene(seed: int) -> Scene:
    """One to three objects that differ in shape and colour, with random paths."""
    rng = np.random.default_rng(seed)
    count = int(rng.integers(1, len(SHAPES) + 1))
    shapes = rng.permutation(list(SHAPES))[:count]
    colors = rng.permutation(list(COLORS))[:count]

    def point() -> tuple[float, float]:
        x, y = rng.uniform(0.15, 0.85, size=2)
        return float(x), float(y)

    objects = tuple(
        MovingShape(str(shape), str(color), float(rng.uniform(0.08, 0.13)), point(), point())
        for shape, color in zip(shapes, colors, strict=True)
    )
    return Scene(objects, seed)


def _coverage(
    shape: str, dx: npt.NDArray[np.float32], dy: npt.NDArray[np.float32], radius: float
) -> npt.NDArray[np.float32]:
    """Soft mask in [0, 1] of a shape around the origin, from the signed distance to its outline in pixels."""
    if shape == "circle":
        distance = np.hypot(dx, dy) - radius
    elif shape == "square":
        distance = np.maximum(np.abs(dx), np.abs(dy)) - 0.85 * radius
    elif shape == "triangle":
        slope = np.float32(np.sqrt(3.0))
        distance = np.maximum(dy - radius / 2, (slope * np.abs(dx) - dy - radius) / 2)
    else:
        raise InvalidRequestError(f"unknown shape {shape!r}; one of {', '.join(SHAPES)}")
    return np.clip(0.5 - distance / _EDGE_SOFTNESS_PX, 0, 1)


def render_scene(scene: Scene, *, num_frames: int = 48, height: int = 240, width: int = 320) -> npt.NDArray[np.uint8]:
    """Draw a scene.

    Returns:
        uint8 [num_frames, height, width, 3], RGB.

    Raises:
        InvalidRequestError: an object's shape is not one of :data:`SHAPES`.
    """
    rng = np.random.default_rng(scene.seed)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    corners = rng.uniform(60, 130, size=(2, 3)).astype(np.float32)
    shade = ((x / width + y / height) / 2)[..., None]
    texture = 10 * np.sin(x / rng.uniform(9, 25) + y / rng.uniform(9, 25))[..., None]
    background = corners[0] * (1 - shade) + corners[1] * shade + texture
    frames = np.empty((num_frames, height, width, 3), np.uint8)
    for index in range(num_frames):
        time = index / max(1, num_frames - 1)
        canvas = background + rng.normal(0, _NOISE_LEVEL, (height, width, 1)).astype(np.float32)
        for item in scene.objects:
            center_x = (item.start[0] * (1 - time) + item.end[0] * time) * width
            center_y = (item.start[1] * (1 - time) + item.end[1] * time) * height
            mask = _coverage(item.shape, x - center_x, y - center_y, item.radius * min(height, width))[..., None]
            canvas = canvas * (1 - mask) + np.asarray(COLORS[item.color], np.float32) * mask
        frames[index] = np.clip(canvas, 0, 255).astype(np.uint8)
    return frames
