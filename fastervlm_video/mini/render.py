"""Draws synthetic scenes: anti-aliased shapes over a background, with shade, grain, changing light and a camera."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fastervlm_video.errors import InvalidRequestError
from fastervlm_video.mini.backgrounds import backdrop, smooth_noise
from fastervlm_video.mini.scenes import COLORS, SHAPES, Scenes, smooth_path

__all__ = ["frame_times", "object_coverage", "render_scene", "render_scenes"]

FloatArray = npt.NDArray[np.float32]
Frames = npt.NDArray[np.uint8]

_PALETTE = np.array(list(COLORS.values()), np.float32)
_EDGE_SOFTNESS_PX = 1.0
_POST_WIDTH = 0.045  # as a share of the side
_POST_GREY = 95.0
_GRAIN_FIELDS = 4  # noise fields per video; each frame shows one of them, shifted


def frame_times(count: int) -> FloatArray:
    """float32 [count]: times of a video's frames, as shares of its duration."""
    return np.linspace(0, 1, count, dtype=np.float32) if count > 1 else np.full(1, 0.5, np.float32)


def signed_distance(shape: int, dx: FloatArray, dy: FloatArray, radius: FloatArray) -> FloatArray:
    """Distance in pixels from the outline of a shape around the origin, negative inside.

    Args:
        shape: index into :data:`~fastervlm_video.mini.scenes.SHAPES`.
        dx: pixels to the right of the centre.
        dy: pixels below the centre.
        radius: half-extent in pixels.
    """
    x, y = np.abs(dx), np.abs(dy)
    match SHAPES[shape]:
        case "circle":
            distance = np.hypot(dx, dy) - radius
        case "square":
            distance = np.maximum(x, y) - 0.86 * radius
        case "triangle":
            distance = np.maximum(dy - 0.85 * radius, (1.85 * x - dy - radius) / np.hypot(1.85, 1))
        case _:
            arm = 0.34 * radius
            distance = np.minimum(np.maximum(x - arm, y - radius), np.maximum(y - arm, x - radius))
    result: FloatArray = distance.astype(np.float32)
    return result


@dataclass(frozen=True, slots=True, eq=False)
class _Window:
    """Where one object is in P pictures: its soft mask [P, W, W] and the pixels it falls on, [P, W, W] each."""

    mask: FloatArray
    rows: npt.NDArray[np.int64]
    columns: npt.NDArray[np.int64]


def _window(
    shape: npt.NDArray[np.int64], centre_px: FloatArray, radius_px: FloatArray, size: tuple[int, int]
) -> _Window:
    """The object's surroundings only, since it covers a hundredth of the picture."""
    height, width = size
    side = min(height, width, 2 * int(np.ceil(radius_px.max())) + 4)
    corner = np.rint(centre_px - side / 2).astype(np.int64)
    corner = np.clip(corner, 0, np.array([width - side, height - side]))
    columns = (corner[:, 0, None] + np.arange(side))[:, None, :]
    rows = (corner[:, 1, None] + np.arange(side))[:, :, None]
    dx = (columns + 0.5 - centre_px[:, 0, None, None]).astype(np.float32)
    dy = (rows + 0.5 - centre_px[:, 1, None, None]).astype(np.float32)
    dx, dy = np.broadcast_arrays(dx, dy)
    distance = np.empty(dx.shape, np.float32)
    for kind in np.unique(shape):
        which = shape == kind
        distance[which] = signed_distance(int(kind), dx[which], dy[which], radius_px[which, None, None])
    mask = np.clip(0.5 - distance / _EDGE_SOFTNESS_PX, 0, 1)
    return _Window(mask, *np.broadcast_arrays(rows, columns))


def _placed(centres: FloatArray, size: tuple[int, int]) -> FloatArray:
    """Shares of the square to pixels (x, y): the square is the largest one in the middle of the frame."""
    height, width = size
    side = min(height, width)
    offset = np.array([(width - side) / 2, (height - side) / 2], np.float32)
    return (centres * side + offset).astype(np.float32)


@dataclass(frozen=True, slots=True, eq=False)
class _Look:
    """What a scene's own seed decides, for F frames: ``canvas`` [F, H, W, 3] is the background behind the objects."""

    canvas: FloatArray
    jitter: FloatArray
    gain: FloatArray
    paint: FloatArray
    post: float | None
    grain: FloatArray


def _look(scenes: Scenes, index: int, times: FloatArray, moved_px: FloatArray, size: tuple[int, int]) -> _Look:
    style, rng = scenes.style, np.random.default_rng(int(scenes.seed[index]))
    canvas = backdrop(rng, style, moved_px, size)
    jitter = smooth_path(rng, times, style.jitter)
    gain = 1 + rng.uniform(-style.light_drift, style.light_drift) * (times - 0.5)
    objects = scenes.color.shape[1]
    paint = _PALETTE[scenes.color[index]] * rng.uniform(0.85, 1.1, (objects, 1)) + rng.normal(0, 7, (objects, 3))
    post = float(rng.uniform(0.2, 0.8)) if rng.random() < style.occluder_share else None
    grain = smooth_noise(rng, 64, *size, _GRAIN_FIELDS).transpose(2, 0, 1) * style.noise
    grain += rng.standard_normal(grain.shape, np.float32) * (style.noise / 2)
    return _Look(canvas, jitter, gain.astype(np.float32), paint.astype(np.float32), post, grain)


def render_scenes(scenes: Scenes, times: FloatArray, *, height: int = 112, width: int = 112) -> Frames:
    """Draw scenes.

    A scene looks the same whatever others are drawn with it, and at whatever times it is drawn.

    Args:
        scenes: B of them.
        times: float32 [B, F], shares of the duration.
        height: of the frames, in pixels.
        width: of the frames, in pixels.

    Returns:
        uint8 [B, F, height, width, 3], RGB. The scene's square is the middle of a frame that is not square.

    Raises:
        InvalidRequestError: ``times`` is not [B, F].
    """
    if times.ndim != 2 or len(times) != len(scenes):
        raise InvalidRequestError(f"times must be [scenes, frames] for {len(scenes)} scenes, got {times.shape}")
    size = (height, width)
    visible, moved = scenes.visible(times), scenes.camera(times)
    centres = scenes.positions(times) + moved[:, None]
    frames = np.empty((*times.shape, height, width, 3), np.uint8)
    for index in range(len(scenes)):
        moved_px = moved[index] * np.float32(min(size))
        look = _look(scenes, index, times[index], moved_px, size)
        canvas = look.canvas
        for item in range(scenes.color.shape[1]):
            seen = visible[index, item]
            if seen.any():
                centre = _placed(centres[index, item, seen] + look.jitter[seen], size)
                radius_px = np.full(len(centre), scenes.radius[index, item] * min(size), np.float32)
                window = _window(np.full(len(centre), scenes.shape[index, item]), centre, radius_px, size)
                _paint(canvas, np.flatnonzero(seen), window, look.paint[item])
        if look.post is not None:
            _put_post(canvas, look.post, moved_px)
        _finish(canvas, look, times[index])
        np.clip(canvas, 0, 255, out=canvas)
        frames[index] = np.rint(canvas)
    return frames


def _paint(canvas: FloatArray, where: npt.NDArray[np.int64], window: _Window, paint: FloatArray) -> None:
    """One object in the frames ``where`` of ``canvas`` [F, H, W, 3], in place."""
    at = (where[:, None, None], window.rows, window.columns)
    under = canvas[at]
    mask = window.mask[..., None]
    # A little of the light behind shows on the object, as it would in one room.
    shade = (under.mean(axis=-1, keepdims=True) - 110) * 0.15
    canvas[at] = under * (1 - mask) + (paint + shade) * mask


def _put_post(canvas: FloatArray, place: float, moved_px: FloatArray) -> None:
    """A grey post from top to bottom, at this share of the square and as far beside as the camera moves it."""
    height, width = canvas.shape[1:3]
    side = min(height, width)
    left = round((width - side) / 2 + place * side) + moved_px[:, 0, None]
    right = left + max(1, round(_POST_WIDTH * side))
    columns = np.arange(max(0, int(left.min())), min(width, int(np.ceil(right.max()))))
    # The share of each column that it covers: soft at its edges, where these are not between two columns.
    mask = np.clip(np.minimum(columns + 1, right) - np.maximum(columns, left), 0, 1)[:, None, :, None]
    canvas[:, :, columns] = canvas[:, :, columns] * (1 - mask) + _POST_GREY * mask


def _finish(canvas: FloatArray, look: _Look, times: FloatArray) -> None:
    """The light and the grain, which are the camera's own and do not move with the picture, in place."""
    canvas *= look.gain[:, None, None, None]
    for frame, time in enumerate(times):
        step = int(time * 997)  # a function of the time alone
        field = np.roll(look.grain[step % _GRAIN_FIELDS], (step * 7, step * 13), axis=(0, 1))
        canvas[frame] += field[..., None]


def render_scene(scene: Scenes, *, num_frames: int = 48, height: int = 240, width: int = 320) -> Frames:
    """Draw a single scene as a video.

    Returns:
        uint8 [num_frames, height, width, 3], RGB.

    Raises:
        InvalidRequestError: ``scene`` holds more than one.
    """
    if len(scene) != 1:
        raise InvalidRequestError(f"render_scene draws one scene, got {len(scene)}: use render_scenes")
    frames: Frames = render_scenes(scene, frame_times(num_frames)[None], height=height, width=width)[0]
    return frames


def object_coverage(scenes: Scenes, times: FloatArray, grid: tuple[int, int]) -> FloatArray:
    """How much of each patch each object covers, by construction.

    It follows the camera. Left out are what stands in front (other objects and the post) and the objects' jitter.

    Args:
        scenes: B of them, of up to N objects.
        times: float32 [B, F].
        grid: (rows, columns) of patches over the scene's square.

    Returns:
        float32 [B, N, F, rows * columns], in [0, 1].
    """
    cell = 8  # pixels per patch and side: fine enough to rank patches
    size = (grid[0] * cell, grid[1] * cell)
    visible = scenes.visible(times)
    centres = scenes.positions(times) + scenes.camera(times)[:, None]
    covered = np.zeros((*visible.shape, *size), np.float32)
    b, n, f = visible.nonzero()
    if len(b):
        window = _window(scenes.shape[b, n], _placed(centres[b, n, f], size), scenes.radius[b, n] * min(size), size)
        covered[b[:, None, None], n[:, None, None], f[:, None, None], window.rows, window.columns] = window.mask
    patches = covered.reshape(*visible.shape, grid[0], cell, grid[1], cell).mean(axis=(4, 6))
    shares: FloatArray = patches.reshape(*visible.shape, -1)
    return shares
