"""Whether an answer is right: exact match for open questions, the chosen letter for multiple choice.

Both look at the words only. What the papers report for open questions is a language model's opinion, see
:mod:`fastervlm_video.eval.judge`.
"""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from fastervlm_video.eval.predictions import Prediction

__all__ = ["Score", "exact_match", "normalise", "parse_choice", "score_prediction"]

_ARTICLES = {"a", "an", "the"}
_LETTER_ALONE = re.compile(r"[(\[]?([A-Z])[)\].:,]*")
_LETTER_FIRST = re.compile(r"(?:\(([A-Z])\)|\[([A-Z])\]|([A-Z])[).:,])(?=\s|$)")
_LETTER_NAMED = re.compile(
    r"(?i:\b(?:answer|option|choice)(?:\s+is)?\s*:?\s*)[(\[]?(?:([A-Z])(?=[)\].:,\s]|$)|([a-z])(?=[)\].:,]*$))"
)


@dataclass(frozen=True, slots=True)
class Score:
    """What an answer is worth.

    Attributes:
        value: 1 if it is right, 0 if not; None if that could not be found out.
        parsed: False if the answer to a multiple choice names none of the choices.
        grade: a judge's 0 to 5.
    """

    value: float | None
    parsed: bool = True
    grade: float | None = None


def normalise(text: str) -> str:
    """Words in lower case, without punctuation, articles and surplus blanks: ``"The red ball."`` to ``"red ball"``."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    words = "".join(char for char in folded if not unicodedata.category(char).startswith("P")).split()
    return " ".join([word for word in words if word not in _ARTICLES] or words)


def exact_match(prediction: str, answer: str) -> bool:
    """Whether two answers are the same but for case, punctuation, articles and blanks; an empty one never is."""
    found = normalise(prediction)
    return bool(found) and found == normalise(answer)


def parse_choice(prediction: str, choices: Sequence[str]) -> int | None:
    """Which choice an answer means.

    Understood are, in this order: a choice's text; a letter alone (``B``, ``(B)``, ``B.``); a letter in brackets or
    before punctuation at the start (``B. red``); ``the answer is B``; a letter in front of its own choice's text
    (``B red``); exactly one choice's text among the words, ``dark blue`` not being ``blue``. ``A`` before other words
    is taken for an article.

    Returns:
        the choice's index, or None if it cannot be told.
    """
    answer = prediction.strip()
    texts = [normalise(choice) for choice in choices]
    words = normalise(answer)
    if words in texts:
        return texts.index(words)
    alone, first = _LETTER_ALONE.fullmatch(answer.upper()), _LETTER_FIRST.match(answer)
    named = _LETTER_NAMED.search(answer)
    for match in (alone, first, named):
        if match is not None:
            letter = next(group for group in match.groups() if group)
            index = ord(letter.upper()) - ord("A")
            return index if index < len(texts) else None
    for index, text in enumerate(texts):
        letter = chr(ord("A") + index)
        if answer[:1] == letter and normalise(answer[1:]) == text:
            return index
    mentioned = [text for text in texts if text and f" {text} " in f" {words} "]
    longest = [text for text in mentioned if not any(text in other and text != other for other in mentioned)]
    return texts.index(longest[0]) if len(longest) == 1 else None


def score_prediction(prediction: Prediction) -> Score:
    """Exact match, or the chosen letter for multiple choice; a question that could not be asked is not answered."""
    if prediction.error is not None:
        return Score(0.0)
    if prediction.choices is None:
        return Score(float(exact_match(prediction.pred, prediction.answer)))
    chosen = parse_choice(prediction.pred, prediction.choices)
    if chosen is None:
        return Score(0.0, parsed=False)
    return Score(float(chr(ord("A") + chosen) == prediction.answer))
