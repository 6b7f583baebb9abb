"""Reading JSON records whose fields are checked as they are taken out."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastervlm_video.errors import InvalidInputError

__all__ = ["Record", "letter_of", "read_records"]


@dataclass(frozen=True, slots=True)
class Record:
    """One JSON object of a file, and where it stands in it, for error messages."""

    values: Mapping[str, Any]
    place: str

    def has(self, name: str) -> bool:
        """Whether the field is there and not null."""
        return self.values.get(name) is not None

    def text(self, name: str, default: str | None = None) -> str:
        """A text, or a number as text.

        Raises:
            InvalidInputError: it is missing and there is no default, or it is something else.
        """
        value = self.values[name] if self.has(name) else default
        if value is None:
            raise InvalidInputError(f"{self.place}: the field {name!r} is missing (there are {sorted(self.values)})")
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise InvalidInputError(f"{self.place}: {name} must be a text, got {value!r}")
        return str(value)

    def texts(self, name: str) -> list[str]:
        """A list of texts.

        Raises:
            InvalidInputError: it is missing or something else.
        """
        value = self.values.get(name)
        if not isinstance(value, list) or not all(isinstance(item, str | int | float) for item in value):
            raise InvalidInputError(f"{self.place}: {name} must be a list of texts, got {value!r}")
        return [str(item) for item in value]

    def choices(self, name: str, answer: str) -> tuple[str, tuple[str, ...]]:
        """Right letter and texts of multiple choice.

        Args:
            name: of the field with the choices; letters in front of all of them (``A.``, ``(A)``) are taken off.
            answer: of the field with the right one: its letter or its text.

        Raises:
            InvalidInputError: a field is missing, or the answer is none of the choices.
        """
        texts = _without_letters(self.texts(name))
        letter = letter_of(self.text(answer), texts)
        if letter is None:
            raise InvalidInputError(
                f"{self.place}: {answer} {self.values[answer]!r} is neither a letter nor a text of {name} {texts}"
            )
        return letter, tuple(texts)


def letter_of(answer: str, choices: Sequence[str]) -> str | None:
    """The letter of the right choice, given as text (which goes first) or as a letter; None if it is neither."""
    wanted = answer.strip()
    if wanted in choices:
        return chr(ord("A") + list(choices).index(wanted))
    bare = wanted.strip("().: ").upper()
    return bare if len(bare) == 1 and 0 <= ord(bare) - ord("A") < len(choices) else None


def _without_letters(options: Sequence[str]) -> list[str]:
    """``["A. red", "B. blue"]`` to ``["red", "blue"]``; options without letters stay as they are."""
    texts = [option.strip() for option in options]
    for opening, closing in (("", "."), ("(", ")"), ("", ")"), ("", ":")):
        heads = [f"{opening}{chr(ord('A') + index)}{closing}" for index in range(len(texts))]
        if all(text.startswith(head) for text, head in zip(texts, heads, strict=True)):
            return [text.removeprefix(head).strip() for text, head in zip(texts, heads, strict=True)]
    return texts


def read_records(path: Path, source: str = "") -> list[Record]:
    """All objects of a JSON Lines file, or of a JSON file that holds a list of them.

    Args:
        path: the file.
        source: where to get it, for the error message.

    Raises:
        InvalidInputError: the file is missing, or something in it is no JSON object.
    """
    advice = f"; {source}" if source else ""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else str(error)
        raise InvalidInputError(f"cannot read {path}: {reason}{advice}") from error
    if text.lstrip().startswith("["):
        return [_record(value, f"{path}, entry {i}") for i, value in enumerate(_parse(text, str(path)))]
    lines = [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    places = [f"{path}, line {number}" for number, _ in lines]
    return [_record(_parse(line, place), place) for place, (_, line) in zip(places, lines, strict=True)]


def _parse(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise InvalidInputError(f"{place} is not JSON: {error}") from error


def _record(value: object, place: str) -> Record:
    if not isinstance(value, dict):
        raise InvalidInputError(f"{place} must be a JSON object, got {type(value).__name__}")
    return Record(value, place)
