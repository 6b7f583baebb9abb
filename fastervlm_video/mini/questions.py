"""Questions about synthetic scenes, and their answers.

Every question needs the video: which colour, shape, direction or place is asked for is drawn anew in each scene,
and objects are named by the colour or the shape that the answer does not give away.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fastervlm_video.mini.scenes import COLORS, DIRECTIONS, SHAPES, Scenes

__all__ = ["NUMBERS", "QUESTION_TYPES", "Question", "ask_about"]

QUESTION_TYPES = ("color", "shape", "count", "position", "motion", "order")
"""What the benchmark reports on. ``describe`` is asked in training besides."""

NUMBERS = ("zero", "one", "two", "three", "four", "five")
_CLEARLY = 0.06  # a place is asked for only if it is this far from the middle lines: further than a camera moves
_VISIBLY = 0.1  # a direction is asked for only if the object is seen to move this far, or to stay

# The first phrase of each is the benchmark's; the others are there so that people may ask in their own words.
_PHRASES = {
    "color": (
        "What color is the {0}?",
        "Which color is the {0}?",
        "What is the color of the {0}?",
        "What colour is the {0}?",
        "Which color does the {0} have?",
    ),
    "shape": (
        "What shape is the {0} object?",
        "Which shape is the {0} object?",
        "What is the shape of the {0} object?",
        "What is the {0} object?",
        "What shape does the {0} thing have?",
    ),
    "count": (
        "How many objects are there?",
        "How many objects appear in the video?",
        "How many shapes are in the video?",
        "What is the number of objects?",
        "How many things can you see?",
    ),
    "start": (
        "Where is the {0} at the start?",
        "Where does the {0} start?",
        "Where does the {0} appear?",
        "Where is the {0} at the beginning?",
    ),
    "end": (
        "Where is the {0} at the end?",
        "Where does the {0} end?",
        "What is the final position of the {0}?",
    ),
    "where": ("Where is the {0}?", "Where is the {0} located?"),
    "motion": (
        "Which way does the {0} move?",
        "Where does the {0} move?",
        "In which direction does the {0} move?",
        "Which way is the {0} moving?",
        "Where does the {0} go?",
    ),
    "order_color": ("What color is the object that appears {0}?", "Which color appears {0}?", "What color comes {0}?"),
    "order_shape": ("What shape is the object that appears {0}?", "Which shape appears {0}?", "What shape comes {0}?"),
    "order_object": ("Which object appears {0}?", "What appears {0}?", "Which object comes {0}?"),
    "describe": (
        "Describe the video.",
        "What happens in the video?",
        "What happens?",
        "What do you see?",
        "What is happening in this video?",
        "What is in the video?",
    ),
}
_COLOR, _SHAPE, _DIRECTION = tuple(COLORS), tuple(SHAPES), tuple(DIRECTIONS)


@dataclass(frozen=True, slots=True)
class Question:
    """One question with its answer.

    Attributes:
        kind: one of :data:`QUESTION_TYPES`, or ``describe``.
        text: what is asked.
        answer: lower case, a few words.
    """

    kind: str
    text: str
    answer: str


class _Asker:
    """Words the questions about one scene. ``paraphrase`` draws phrases; otherwise the benchmark's are used."""

    def __init__(self, scenes: Scenes, index: int, rng: np.random.Generator, *, paraphrase: bool) -> None:
        self.rng, self._paraphrase = rng, paraphrase
        self.colors = [_COLOR[i] for i in scenes.color[index]]
        self.shapes = [_SHAPE[i] for i in scenes.shape[index]]

    def say(self, phrase: str, *names: str) -> str:
        phrases = _PHRASES[phrase]
        return phrases[int(self.rng.integers(len(phrases))) if self._paraphrase else 0].format(*names)

    def name(self, item: int) -> str:
        """The object by its colour or by its shape."""
        return f"{self.colors[item]} object" if self.rng.random() < 0.5 else self.shapes[item]

    def looks(self, item: int) -> Iterator[Question]:
        yield Question("color", self.say("color", self.shapes[item]), self.colors[item])
        yield Question("shape", self.say("shape", self.colors[item]), self.shapes[item])

    def place(self, phrase: str, item: int, centre: npt.NDArray[np.float32]) -> Iterator[Question]:
        x, y = (float(value) - 0.5 for value in centre)
        if min(abs(x), abs(y)) >= _CLEARLY:
            answer = f"{'top' if y < 0 else 'bottom'} {'left' if x < 0 else 'right'}"
            yield Question("position", self.say(phrase, self.name(item)), answer)

    def order(self, word: str, item: int) -> Iterator[Question]:
        color, shape = self.colors[item], self.shapes[item]
        yield Question("order", self.say("order_color", word), color)
        yield Question("order", self.say("order_shape", word), shape)
        yield Question("order", self.say("order_object", word), f"{color} {shape}")


def ask_about(
    scenes: Scenes, index: int, times: npt.NDArray[np.float32], rng: np.random.Generator, *, training: bool = False
) -> list[Question]:
    """Every question about one scene that the frames shown can answer.

    Args:
        scenes: the scenes.
        index: which of them.
        times: float32 [F], ascending, of the frames that are shown.
        rng: draws how objects are named.
        training: draw phrases too, and ask for descriptions.

    Returns:
        The questions; none if no object is to be seen.
    """
    asker = _Asker(scenes, index, rng, paraphrase=training)
    one = scenes[index : index + 1]
    visible, centres = one.visible(times[None])[0], one.positions(times[None])[0]
    seen = [int(item) for item in np.flatnonzero(visible.any(axis=1))]
    if not seen:
        return []
    first = visible.argmax(axis=1)
    directions: dict[int, str] = {}
    questions = [Question("count", asker.say("count"), NUMBERS[len(seen)])]
    for item in seen:
        begin, end = centres[item, first[item]], centres[item, -1]
        questions += asker.looks(item)
        if len(times) == 1:
            questions += asker.place("where", item, end)
        questions += asker.place("start", item, begin)
        questions += asker.place("end", item, end)
        direction = _DIRECTION[scenes.direction[index, item]]
        if first[item] < len(times) - 1 and (direction == "still" or np.linalg.norm(end - begin) >= _VISIBLY):
            directions[item] = direction
            questions.append(Question("motion", asker.say("motion", asker.name(item)), direction))
    seen.sort(key=lambda item: first[item])
    if len(seen) > 1 and first[seen[0]] < first[seen[1]]:
        questions += asker.order("first", seen[0])
    if len(seen) > 1 and first[seen[-2]] < first[seen[-1]]:
        questions += asker.order("last", seen[-1])
    if training and len(directions) == len(seen) == len({int(first[item]) for item in seen}):
        acts = [_act(asker, item, directions[item]) for item in seen]
        questions.append(Question("describe", asker.say("describe"), " then ".join(acts)))
    return questions


def _act(asker: _Asker, item: int, direction: str) -> str:
    what = f"a {asker.colors[item]} {asker.shapes[item]}"
    return f"{what} stays still" if direction == "still" else f"{what} moves {direction}"
