"""Scenes to test with, and what they look like and tell, worked out the slow way."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from fastervlm_video.mini.scenes import COLORS, DIRECTIONS, SHAPES, STANDARD, Scenes, SceneStyle, sample_scenes

FloatArray = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]
Point = tuple[float, float]

QUIET = SceneStyle(jitter=0.0, noise=0.0, light_drift=0.0, occluder_share=0.0, max_distractors=0)
"""Nothing but a background and objects."""

NUMBERS = ("zero", "one", "two", "three", "four")
CLEAR_OF_THE_MIDDLE = 0.06
SEEN_TO_MOVE = 0.1
SEEN_TO_STAY = _ROUNDING = 1e-6


def draw(seed: int, count: int = 1, style: SceneStyle = STANDARD) -> Scenes:
    return sample_scenes(np.random.default_rng(seed), count, style)


def every(scenes: Scenes, times: FloatArray | Sequence[float]) -> FloatArray:
    """The same times for each scene: [B, F]."""
    return np.tile(np.asarray(times, np.float32), (len(scenes), 1))


def same(first: Scenes, second: Scenes) -> bool:
    names = [field.name for field in fields(Scenes) if field.name != "style"]
    return first.style == second.style and all(
        np.array_equal(getattr(first, name), getattr(second, name)) for name in names
    )


@dataclass(frozen=True)
class Seen:
    """An object that is to be seen in some of the frames, and where it is in those: (frame, x, y)."""

    color: str
    shape: str
    sightings: tuple[tuple[int, float, float], ...]

    @property
    def first(self) -> int:
        return self.sightings[0][0]


def seen_objects(
    scenes: Scenes, index: int, times: FloatArray | Sequence[float], moved: FloatArray | None = None
) -> list[Seen]:
    """What the frames at these times show of a scene; nothing else of it may be needed for an answer.

    With ``moved`` [F, 2], everything in a frame has moved by so much.
    """
    seen = []
    for item in range(int(scenes.count[index])):
        onset = float(scenes.onset[index, item])
        sightings = []
        for frame, time in enumerate(np.asarray(times, np.float32).tolist()):
            if time >= onset:
                done = (time - onset) / (1 - onset)
                begin, end = scenes.start[index, item].tolist(), scenes.end[index, item].tolist()
                at = (0.0, 0.0) if moved is None else moved[frame].tolist()
                x, y = (b + (e - b) * done + m for b, e, m in zip(begin, end, at, strict=True))
                sightings.append((frame, x, y))
        if sightings:
            color, shape = list(COLORS)[scenes.color[index, item]], SHAPES[scenes.shape[index, item]]
            seen.append(Seen(color, shape, tuple(sightings)))
    return seen


def direction(item: Seen) -> str:
    """Which way it is seen to go."""
    assert len(item.sightings) > 1, "movement is asked for, but a single frame shows the object"
    (_, x0, y0), (_, x1, y1) = item.sightings[0], item.sightings[-1]
    dx, dy = x1 - x0, y1 - y0
    if max(abs(dx), abs(dy)) < SEEN_TO_STAY:
        return "still"
    assert max(abs(dx), abs(dy)) > SEEN_TO_MOVE - _ROUNDING, "movement is asked for, but hardly any is seen"
    assert min(abs(dx), abs(dy)) < SEEN_TO_STAY, "objects move straight"
    return ("left" if dx < 0 else "right") if abs(dx) > abs(dy) else ("up" if dy < 0 else "down")


def place(sighting: tuple[int, float, float]) -> str:
    """Which quarter of the picture it is in."""
    _, x, y = sighting
    assert min(abs(x - 0.5), abs(y - 0.5)) > CLEAR_OF_THE_MIDDLE - _ROUNDING, "a place is asked for, but is unclear"
    return f"{'top' if y < 0.5 else 'bottom'} {'left' if x < 0.5 else 'right'}"


def read(text: str, seen: Sequence[Seen], num_frames: int) -> tuple[str, str]:
    """Kind and answer of a question, from its words and from what is to be seen."""
    words = re.findall(r"[a-z]+", text.lower())
    asks = set(words).intersection
    if asks({"many", "number"}):
        return "count", NUMBERS[len(seen)]
    if asks({"first", "last"}):
        return "order", _order(seen, words)
    named = [item for item in seen if item.color in words or item.shape in words]
    if not set(words) & {*COLORS, *SHAPES}:
        return "describe", " then ".join(_act(item) for item in sorted(seen, key=lambda item: item.first))
    assert len(named) == 1, f"{text!r} must name one thing that is to be seen"
    return _about(named[0], words, num_frames)


def _about(item: Seen, words: Sequence[str], num_frames: int) -> tuple[str, str]:
    asks = set(words).intersection
    if asks({"way", "direction", "move", "go"}):
        return "motion", direction(item)
    if words[0] == "where" or asks({"position"}):
        if asks({"start", "beginning", "appear"}):
            return "position", place(item.sightings[0])
        assert asks({"end", "final"}) or num_frames == 1, f"the question must say when: {words}"
        return "position", place(item.sightings[-1])
    return ("shape", item.shape) if item.color in words else ("color", item.color)


def _order(seen: Sequence[Seen], words: Sequence[str]) -> str:
    """The first or last that appears; there must be one that does so alone, among others."""
    assert len(seen) > 1, "order is asked for, but a single object is to be seen"
    ends = sorted(item.first for item in seen)
    wanted, rival = (ends[0], ends[1]) if "first" in words else (ends[-1], ends[-2])
    assert wanted != rival, "order is asked for, but two objects appear in the same frame"
    (item,) = [item for item in seen if item.first == wanted]
    if "color" in words:
        return item.color
    return item.shape if "shape" in words else f"{item.color} {item.shape}"


def _act(item: Seen) -> str:
    way = direction(item)
    return f"a {item.color} {item.shape} {'stays still' if way == 'still' else f'moves {way}'}"


def corners(shape: str, radius: float) -> list[Point]:
    """Outline of a shape around the origin, in order; a circle has very many."""
    if shape == "circle":
        angles = np.linspace(0, 2 * np.pi, 720, endpoint=False)
        return [(radius * float(np.cos(angle)), radius * float(np.sin(angle))) for angle in angles]
    if shape == "square":
        half = 0.86 * radius
        return [(-half, -half), (half, -half), (half, half), (-half, half)]
    if shape == "triangle":
        return [(0, -radius), (radius, 0.85 * radius), (-radius, 0.85 * radius)]
    a, r = 0.34 * radius, radius
    quarter = [(a, -r), (a, -a), (r, -a)]  # the others are this one turned by 90, 180 and 270 degrees
    turns = [quarter]
    for _ in range(3):
        turns.append([(-y, x) for x, y in turns[-1]])
    return [corner for turn in turns for corner in turn]


def in_polygon(outline: Sequence[Point], x: npt.NDArray[np.floating], y: npt.NDArray[np.floating]) -> BoolArray:
    """Whether a line from each point to the right crosses the outline an odd number of times."""
    odd = np.zeros(x.shape, bool)
    for (x0, y0), (x1, y1) in zip(outline, [*outline[1:], outline[0]], strict=True):
        if y0 != y1:
            odd ^= ((y0 > y) != (y1 > y)) & (x < (x1 - x0) * (y - y0) / (y1 - y0) + x0)
    return odd


def outline_distance(
    outline: Sequence[Point], x: npt.NDArray[np.floating], y: npt.NDArray[np.floating]
) -> npt.NDArray[np.floating]:
    """From each point to the nearest point of the outline."""
    nearest = np.full(x.shape, np.inf)
    for (x0, y0), (x1, y1) in zip(outline, [*outline[1:], outline[0]], strict=True):
        along = ((x - x0) * (x1 - x0) + (y - y0) * (y1 - y0)) / ((x1 - x0) ** 2 + (y1 - y0) ** 2)
        along = np.clip(along, 0, 1)
        nearest = np.minimum(nearest, np.hypot(x - x0 - along * (x1 - x0), y - y0 - along * (y1 - y0)))
    return nearest


def nearest_color(pixel: npt.NDArray[np.floating]) -> str:
    """Name of the colour that a pixel is most like."""
    return min(COLORS, key=lambda name: float(np.linalg.norm(pixel - np.array(COLORS[name]))))


UNIT_VECTORS = {name: np.array(step, np.float32) for name, step in DIRECTIONS.items()}
