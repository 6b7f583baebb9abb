"""What happens in a synthetic video: a few small coloured shapes that appear one after the other and move.

A :class:`Scenes` holds many scenes as arrays, so that they are drawn from a seed, rendered and asked about
without a loop per object. Positions are shares of a square in [0, 1] with y downwards; times are shares of
the video's duration, 0 its first frame and 1 its last one::

    (0, 0) ─────────── x
      │    ●→              time 0.0: a red circle is there and begins to move right
      │              ■     time 0.3: a blue square appears, and stays
      y

Nothing here draws (see :mod:`fastervlm_video.mini.render`) or asks (:mod:`fastervlm_video.mini.questions`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = [
    "CLOSE_UP",
    "COLORS",
    "DIRECTIONS",
    "OUT_OF_DISTRIBUTION",
    "SHAPES",
    "STANDARD",
    "SceneStyle",
    "Scenes",
    "random_scene",
    "sample_scenes",
    "smooth_path",
]

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]

COLORS = {
    "red": (225, 40, 40),
    "green": (40, 175, 60),
    "blue": (50, 80, 235),
    "yellow": (235, 215, 50),
    "purple": (165, 55, 200),
    "cyan": (50, 210, 215),
}
SHAPES = ("circle", "square", "triangle", "cross")
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1), "still": (0, 0)}

FRAME_STEP = 1 / 7
"""Time between two of the eight frames that the model looks at; onsets are placed in its units."""
_MARGIN = 0.015
_PLACEMENTS = 4  # tried per scene; the one whose objects stay furthest apart is taken
_PATH_KNOTS = 9
_CAMERA_STREAM = 1  # set behind the scene's seed: the camera's lots are its own


@dataclass(frozen=True, slots=True)
class SceneStyle:
    """What the scenes of a data set have in common.

    Attributes:
        min_objects: fewest objects in a scene.
        max_objects: most objects in a scene; at most as many as there are shapes, for they all differ.
        onset_slots: when objects may appear, in steps of :data:`FRAME_STEP`; each object gets one of its own.
        radius: smallest and largest half-extent of an object.
        displacement: least and most distance covered by an object that moves.
        backgrounds: a family of :mod:`fastervlm_video.mini.backgrounds`.
        max_distractors: colourless marks on the background, which are no objects.
        occluder_share: share of scenes with a grey post that stands in front of the objects.
        jitter: standard deviation of a movement that all objects share, as a share of the side; the background stays.
        camera_shake: standard deviation of a movement of the whole picture, as a share of the side.
        light_drift: most change of the brightness from first to last frame, as a share.
        noise: standard deviation of the grain, in 8-bit grey levels.
    """

    min_objects: int = 1
    max_objects: int = 3
    onset_slots: tuple[float, ...] = (0, 2, 4)
    radius: tuple[float, float] = (0.085, 0.11)
    displacement: tuple[float, float] = (0.34, 0.64)
    backgrounds: str = "cloudy"
    max_distractors: int = 2
    occluder_share: float = 0.15
    jitter: float = 0.006
    camera_shake: float = 0.0
    light_drift: float = 0.12
    noise: float = 8.0

    @property
    def camera_reach(self) -> float:
        """The furthest that the camera moves the picture along x or y, as a share of the side: three deviations."""
        return 3 * self.camera_shake


STANDARD = SceneStyle()
"""What the model is trained on, and held-out scenes are drawn from."""

CLOSE_UP = SceneStyle(radius=(0.085, 0.24), displacement=(0.2, 0.42))
"""Objects of all sizes, for the last phase of training: how much of a frame is background varies."""

OUT_OF_DISTRIBUTION = SceneStyle(
    min_objects=2,
    max_objects=4,
    onset_slots=(0, 1.5, 3, 4.5),
    radius=(0.075, 0.12),
    backgrounds="patterned",
    max_distractors=5,
    occluder_share=0.5,
    camera_shake=0.015,
    light_drift=0.3,
    noise=12.0,
)
"""More objects, other backgrounds, a camera that shakes, and more of everything else that disturbs."""


@dataclass(frozen=True, slots=True, eq=False)
class Scenes:
    """B scenes of up to N objects; object ``i`` of scene ``b`` exists if ``i < count[b]``.

    Attributes:
        count: int64 [B], objects in each scene.
        color: int64 [B, N], index into :data:`COLORS`; all different within a scene.
        shape: int64 [B, N], index into :data:`SHAPES`; all different within a scene.
        direction: int64 [B, N], index into :data:`DIRECTIONS`.
        onset: float32 [B, N], when the object appears; those of a scene are well apart.
        radius: float32 [B, N], half-extent.
        start: float32 [B, N, 2], centre (x, y) at the onset.
        end: float32 [B, N, 2], centre at time 1.
        seed: int64 [B], decides everything else about how the scene looks.
        style: what they have in common.
    """

    count: IntArray
    color: IntArray
    shape: IntArray
    direction: IntArray
    onset: FloatArray
    radius: FloatArray
    start: FloatArray
    end: FloatArray
    seed: IntArray
    style: SceneStyle = STANDARD

    def __len__(self) -> int:
        return len(self.count)

    def __getitem__(self, index: slice | IntArray) -> "Scenes":
        return replace(self, **{name: array[index] for name, array in self.arrays.items()})

    @property
    def arrays(self) -> dict[str, Any]:
        """Everything but the style, by name: what a file of scenes holds, and ``Scenes(**arrays)`` takes."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name != "style"}

    @classmethod
    def join(cls, parts: Sequence["Scenes"]) -> "Scenes":
        """The scenes of all parts, one or more and of one style, in order."""
        names = parts[0].arrays
        joined: dict[str, Any] = {name: np.concatenate([part.arrays[name] for part in parts]) for name in names}
        return replace(parts[0], **joined)

    @property
    def exists(self) -> npt.NDArray[np.bool_]:
        """Boolean [B, N]: whether there is such an object."""
        return np.arange(self.color.shape[1]) < self.count[:, None]

    def visible(self, times: FloatArray) -> npt.NDArray[np.bool_]:
        """Boolean [B, N, F]: whether each object has appeared by each of the ``times`` [B, F]."""
        return self.exists[..., None] & (times[:, None] >= self.onset[..., None])

    def positions(self, times: FloatArray) -> FloatArray:
        """float32 [B, N, F, 2]: centres (x, y) at ``times`` [B, F]; at the start before the onset."""
        return _positions(times[:, None], self.onset, self.start, self.end)

    def camera(self, times: FloatArray) -> FloatArray:
        """float32 [B, F, 2]: how far the camera has moved the picture to the right and down at ``times`` [B, F].

        As shares of the side, never more than :attr:`SceneStyle.camera_reach`. What :meth:`positions` gives is where
        objects are in front of the background; with this added, it is where they are in the picture.
        """
        moved = np.zeros((*times.shape, 2), np.float32)
        if self.style.camera_shake:
            for index, seed in enumerate(self.seed):
                rng = np.random.default_rng((int(seed), _CAMERA_STREAM))
                moved[index] = smooth_path(rng, times[index], self.style.camera_shake)
        reach = np.float32(self.style.camera_reach)
        shaken: FloatArray = np.clip(moved, -reach, reach)
        return shaken


def _positions(times: FloatArray, onset: FloatArray, start: FloatArray, end: FloatArray) -> FloatArray:
    onset = onset[..., None]
    progress = np.clip((times - onset) / (1 - onset), 0, 1)[..., None]
    centres: FloatArray = start[..., None, :] * (1 - progress) + end[..., None, :] * progress
    return centres


def smooth_path(rng: np.random.Generator, times: FloatArray, deviation: float) -> FloatArray:
    """float32 [F, 2]: a point (x, y) that wanders around the origin, at ``times`` [F].

    Normal noise of this standard deviation on a coarse grid of times, and straight on between them (where it deviates
    a little less): the same path at whatever times it is asked for.
    """
    knots = np.linspace(0, 1, _PATH_KNOTS)
    path = np.stack([np.interp(times, knots, rng.normal(0, deviation, len(knots))) for _ in range(2)], axis=-1)
    return path.astype(np.float32)


def sample_scenes(rng: np.random.Generator, count: int, style: SceneStyle = STANDARD) -> Scenes:
    """Draw scenes.

    Args:
        rng: where the lots come from.
        count: how many scenes, B.
        style: what they have in common.
    """
    objects = style.max_objects
    direction = rng.integers(0, len(DIRECTIONS), (count, objects))
    distance = rng.uniform(*style.displacement, (count, objects, 1))
    move = (np.array(list(DIRECTIONS.values()), np.float32)[direction] * distance).astype(np.float32)
    radius = rng.uniform(*style.radius, (count, objects)).astype(np.float32)
    slots = np.array(style.onset_slots)[_shuffles(rng, count, len(style.onset_slots))[:, :objects]]
    onset = np.where(slots > 0, (slots - 0.5 + rng.uniform(-0.3, 0.3, slots.shape)) * FRAME_STEP, 0).astype(np.float32)
    scenes = Scenes(
        count=rng.integers(style.min_objects, objects + 1, count),
        color=_shuffles(rng, count, len(COLORS))[:, :objects],
        shape=_shuffles(rng, count, len(SHAPES))[:, :objects],
        direction=direction,
        onset=onset,
        radius=radius,
        start=np.zeros((count, objects, 2), np.float32),
        end=np.zeros((count, objects, 2), np.float32),
        seed=rng.integers(0, 2**62, count),
        style=style,
    )
    edge = radius[..., None] + _MARGIN
    lowest, highest = edge + np.maximum(-move, 0), 1 - edge - np.maximum(move, 0)
    candidates = lowest + rng.random((_PLACEMENTS, *move.shape), np.float32) * (highest - lowest)
    start = candidates[_clearest(scenes, candidates, move), np.arange(count)]
    return replace(scenes, start=start, end=start + move)


def _shuffles(rng: np.random.Generator, rows: int, length: int) -> IntArray:
    """int64 [rows, length]: a random order of ``range(length)`` in each row."""
    return np.argsort(rng.random((rows, length)), axis=1)


def _clearest(scenes: Scenes, start: FloatArray, move: FloatArray) -> IntArray:
    """Which of the placements ``start`` [K, B, N, 2] keeps the objects of each scene furthest apart: int64 [B]."""
    times = np.broadcast_to(np.linspace(0, 1, 8, dtype=np.float32), (len(scenes), 8))
    centres = _positions(times[:, None], scenes.onset, start, start + move)
    visible = scenes.visible(times)
    gaps = np.linalg.norm(centres[:, :, :, None] - centres[:, :, None], axis=-1)
    together = visible[:, :, None] & visible[:, None] & ~np.eye(visible.shape[1], dtype=bool)[None, :, :, None]
    clearest: IntArray = np.where(together, gaps, np.inf).min(axis=(2, 3, 4)).argmax(axis=0)
    return clearest


def random_scene(seed: int, style: SceneStyle = STANDARD) -> Scenes:
    """A single scene that follows from its seed alone."""
    return sample_scenes(np.random.default_rng(seed), 1, style)
