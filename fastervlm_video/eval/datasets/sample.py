"""What an evaluation data set is: questions about video files, and their answers."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fastervlm_video.errors import InvalidInputError, InvalidRequestError, VideoNotFoundError

__all__ = ["Coverage", "Dataset", "Sample"]

Coverage = Callable[[str, Sequence[float], tuple[int, int]], npt.NDArray[np.float32]]
"""(video's name in the data set, T presentation times, grid) to float32 [T, N], the share of each patch that objects
cover; known of synthetic videos only."""

_MAX_CHOICES = 26
_NAMES_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Sample:
    """One question about one video.

    Attributes:
        video: the file.
        question_id: unique in its data set.
        question: as a user would ask it, without the choices.
        answer: the right one; for multiple choice its letter, ``A`` being the first choice.
        kind: the question's type, by which accuracies are broken down.
        choices: texts of the choices, without letters; None for open questions.

    Raises:
        InvalidInputError: a text is empty, or the answer is not one of the choices.
    """

    video: Path
    question_id: str
    question: str
    answer: str
    kind: str
    choices: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        for name in ("question_id", "question", "answer", "kind"):
            if not getattr(self, name).strip():
                raise InvalidInputError(f"question {self.question_id!r} about {self.video.name}: its {name} is empty")
        if self.choices is None:
            return
        letters = self.letters
        if not 2 <= len(self.choices) <= _MAX_CHOICES or self.answer not in letters:
            raise InvalidInputError(
                f"question {self.question_id!r}: answer {self.answer!r} is none of its choices {list(self.choices)}"
            )

    @property
    def letters(self) -> str:
        """``ABC`` for three choices; empty for an open question."""
        return "".join(chr(ord("A") + index) for index in range(len(self.choices or ())))

    @property
    def prompt(self) -> str:
        """What the model is asked: the question, and for multiple choice the choices with their letters."""
        if self.choices is None:
            return self.question
        options = "\n".join(f"{letter}. {text}" for letter, text in zip(self.letters, self.choices, strict=True))
        return f"{self.question}\n{options}\nAnswer with the option's letter from the given choices directly."


@dataclass(frozen=True, slots=True, eq=False)
class Dataset:
    """Questions in a fixed order.

    Attributes:
        name: for reports.
        folder: what the videos' names are relative to.
        samples: at least one; ids are unique.
        source: where to get what is missing, for the error message.
        coverage: where the objects are, if that is known.

    Raises:
        InvalidInputError: there are no samples, or an id is there twice.
    """

    name: str
    folder: Path
    samples: tuple[Sample, ...]
    source: str = ""
    coverage: Coverage | None = None

    def __post_init__(self) -> None:
        if not self.samples:
            raise InvalidInputError(f"the data set {self.name} has no questions")
        seen: set[str] = set()
        for sample in self.samples:
            if sample.question_id in seen:
                raise InvalidInputError(f"the data set {self.name} has the question id {sample.question_id!r} twice")
            seen.add(sample.question_id)

    def video_name(self, sample: Sample) -> str:
        """The video's path relative to the data set's folder, with forward slashes."""
        try:
            return sample.video.relative_to(self.folder).as_posix()
        except ValueError:  # it is elsewhere
            return sample.video.as_posix()

    @property
    def videos(self) -> tuple[Path, ...]:
        """The videos in the order in which they first appear."""
        return tuple(dict.fromkeys(sample.video for sample in self.samples))

    def by_video(self) -> dict[Path, list[Sample]]:
        """Questions of each video, in order."""
        grouped: dict[Path, list[Sample]] = {}
        for sample in self.samples:
            grouped.setdefault(sample.video, []).append(sample)
        return grouped

    def limited(self, num_videos: int | None) -> "Dataset":
        """The same with the questions of the first ``num_videos`` videos only; all if None.

        Raises:
            InvalidRequestError: less than one is asked for.
        """
        if num_videos is None:
            return self
        if num_videos < 1:
            raise InvalidRequestError(f"the number of videos must be at least 1, got {num_videos}")
        chosen = set(self.videos[:num_videos])
        return replace(self, samples=tuple(sample for sample in self.samples if sample.video in chosen))

    def require_videos(self) -> "Dataset":
        """This data set, if all its videos are there.

        Raises:
            VideoNotFoundError: naming the first that are not, and where to get them.
        """
        missing = [path for path in self.videos if not path.is_file()]
        if missing:
            names = ", ".join(str(path) for path in missing[:_NAMES_SHOWN])
            more = ", …" if len(missing) > _NAMES_SHOWN else ""
            advice = f"; {self.source}" if self.source else ""
            raise VideoNotFoundError(
                f"{len(missing)} of the {len(self.videos)} videos of {self.name} are missing: {names}{more}{advice}"
            )
        return self

    @property
    def digest(self) -> str:
        """SHA-256, hex, over every question and the name and size of every video."""
        content = [
            [self.video_name(s), s.question_id, s.question, s.answer, s.kind, list(s.choices) if s.choices else None]
            for s in self.samples
        ]
        sizes = [path.stat().st_size if path.is_file() else None for path in self.videos]
        return hashlib.sha256(json.dumps([content, sizes]).encode()).hexdigest()

    def __repr__(self) -> str:
        return f"Dataset({self.name}, {len(self.samples)} questions about {len(self.videos)} videos)"
