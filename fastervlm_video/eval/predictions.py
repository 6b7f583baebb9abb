"""A run's predictions on disk: written as they come, continued after whatever ended the run.

::

    RUN/run.json            what was run; a folder is only ever continued with the same
    RUN/predictions.jsonl   one line per question and arm

A line is appended whole, but the process may be killed inside it: what stands behind the last line break is dropped
when the folder is opened again, and computed anew.
"""

import fcntl
import json
import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from fastervlm_video.errors import InvalidInputError
from fastervlm_video.eval.arms import Arm

__all__ = ["MANIFEST_FILE", "PREDICTIONS_FILE", "Prediction", "PredictionStore", "read_manifest", "read_predictions"]

logger = logging.getLogger(__name__)

MANIFEST_FILE = "run.json"
PREDICTIONS_FILE = "predictions.jsonl"


@dataclass(frozen=True, slots=True)
class Prediction:
    """What the model answered to one question in one arm.

    Attributes:
        id: the question's.
        video: the video's name in its data set.
        question: the question.
        answer: the right answer.
        pred: the model's answer; empty if there is an ``error``.
        type: the question's type.
        choices: texts of multiple choice.
        method: the arm's method.
        keep: the arm's share of visual tokens.
        seed: the arm's seed.
        tokens: visual tokens that were kept, of all frames.
        mean_tokens: visual tokens per layer of the language model, on average.
        encode_seconds: the tower, the choice of tokens, and their way through storage, per video.
        prune_seconds: the choice of tokens alone, per video.
        generate_seconds: per question, of those that were answered together.
        error: why there is no answer.
    """

    id: str
    video: str
    question: str
    answer: str
    pred: str
    type: str
    choices: tuple[str, ...] | None
    method: str
    keep: float
    seed: int
    tokens: int
    mean_tokens: float
    encode_seconds: float
    prune_seconds: float
    generate_seconds: float
    error: str | None = None

    @property
    def arm(self) -> Arm:
        """What it was predicted with."""
        return Arm(self.method, self.keep, self.seed)


class PredictionStore:
    """A run's folder, open for writing by one process at a time.

    Args:
        folder: made if it does not exist.
        manifest: settings that every prediction in the folder depends on, as plain JSON values.
        resume: continue what is there; otherwise start over.

    Raises:
        InvalidInputError: the folder holds a run of other settings, is damaged, is being written to by another
            process, or cannot be written to.
    """

    def __init__(self, folder: Path, manifest: Mapping[str, Any], *, resume: bool = True) -> None:
        self.folder = folder
        self.manifest = dict(manifest)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file: IO[bytes] = (folder / PREDICTIONS_FILE).open("ab")
        except OSError as error:
            raise InvalidInputError(f"cannot write to {folder}: {error.strerror or error}") from error
        try:
            self._begin(resume)
        except BaseException:
            self._file.close()
            raise

    def _begin(self, resume: bool) -> None:
        self._lock()
        if not resume:
            self._file.truncate(0)
            (self.folder / MANIFEST_FILE).unlink(missing_ok=True)
        if (self.folder / MANIFEST_FILE).is_file():
            self._require_same(read_manifest(self.folder))
        else:
            self._write_manifest()
        predictions, size = _read(self.folder / PREDICTIONS_FILE)
        self._file.truncate(size)  # a line cut short
        self.predictions = predictions
        self._done = {(prediction.arm, prediction.id) for prediction in predictions}

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InvalidInputError(
                f"another run is writing to {self.folder}; wait for it, or give another folder"
            ) from error

    def _require_same(self, there: Mapping[str, Any]) -> None:
        differing = [name for name in {**there, **self.manifest} if there.get(name) != self.manifest.get(name)]
        if differing:
            details = "; ".join(f"{name} was {there.get(name)!r}, is {self.manifest.get(name)!r}" for name in differing)
            raise InvalidInputError(
                f"{self.folder} holds a run of other settings ({details}): give another folder, or --no-resume to "
                "start over"
            )

    def _write_manifest(self) -> None:
        scratch = self.folder / f"{MANIFEST_FILE}.part"
        scratch.write_text(json.dumps(self.manifest, indent=2) + "\n", encoding="utf-8")
        os.replace(scratch, self.folder / MANIFEST_FILE)

    def has(self, arm: Arm, question_id: str) -> bool:
        """Whether that prediction is there."""
        return (arm, question_id) in self._done

    def append(self, predictions: Iterable[Prediction]) -> None:
        """Write predictions down; they are on disk when this returns."""
        batch = list(predictions)
        lines = [json.dumps(asdict(prediction), ensure_ascii=False) + "\n" for prediction in batch]
        self._file.write("".join(lines).encode())
        self._file.flush()
        os.fsync(self._file.fileno())
        self.predictions += batch
        self._done |= {(prediction.arm, prediction.id) for prediction in batch}

    def close(self) -> None:
        """Let another process have the folder."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def read_manifest(folder: Path) -> dict[str, Any]:
    """What was run in a folder.

    Raises:
        InvalidInputError: the folder holds no run, or a damaged one.
    """
    path = folder / MANIFEST_FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InvalidInputError(f"{folder} holds no run: there is no {MANIFEST_FILE} in it") from error
    except (OSError, ValueError) as error:
        raise InvalidInputError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise InvalidInputError(f"{path} must hold a JSON object, got {type(content).__name__}")
    return content


def read_predictions(folder: Path) -> list[Prediction]:
    """All whole predictions of a run, without changing anything.

    Raises:
        InvalidInputError: the folder holds no run, or a damaged one.
    """
    read_manifest(folder)
    return _read(folder / PREDICTIONS_FILE)[0]


def _read(path: Path) -> tuple[list[Prediction], int]:
    """The predictions, and how many bytes of the file are whole lines."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InvalidInputError(f"cannot read {path}: {error.strerror or error}") from error
    size = content.rfind(b"\n") + 1
    if size < len(content):
        logger.warning("%s: the last %d bytes are no whole line and are left out", path, len(content) - size)
    predictions: list[Prediction] = []
    for number, line in enumerate(content[:size].split(b"\n")[:-1], start=1):
        try:
            values = json.loads(line)
            choices = values.pop("choices")
            predictions.append(Prediction(**values, choices=None if choices is None else tuple(choices)))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise InvalidInputError(f"{path}, line {number}, is damaged: {error}") from error
    return predictions, size
