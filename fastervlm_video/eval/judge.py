"""A language model's opinion on open answers, as the Video-LLaVA tables report it: yes or no, and a grade from 0 to 5.

Any server with OpenAI's chat completions will do. Opinions are kept beside the predictions and asked for once; a
question, its answer and an equal prediction are the same whatever arm they are from.
"""

import importlib.util
import json
import logging
import re
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from fastervlm_video.errors import InvalidInputError, UnavailableError
from fastervlm_video.eval.predictions import Prediction
from fastervlm_video.eval.scoring import Score

if TYPE_CHECKING:
    import httpx

__all__ = ["JUDGEMENTS_FILE", "Judge", "Judgement", "judge_predictions", "parse_judgement"]

logger = logging.getLogger(__name__)

JUDGEMENTS_FILE = "judgements.jsonl"
_MAX_GRADE = 5
_RETRIED_STATUSES = {408, 409, 425, 429, 500, 502, 503, 504}
_LONGEST_PAUSE_SECONDS = 30.0
_OBJECT = re.compile(r"\{[^{}]*\}")
_INSTRUCTIONS = (
    "You grade a model's answers to questions about videos. You are given a question, the correct answer and the "
    "predicted answer. Decide whether the prediction means the same as the correct answer: synonyms and paraphrases "
    "are matches, contradictions and missing content are not. Reply with one JSON object and nothing else: "
    '{"pred": "yes" or "no", "score": an integer from 0 (entirely wrong) to 5 (a perfect match)}.'
)

Key = tuple[str, str, str]


@dataclass(frozen=True, slots=True)
class Judgement:
    """A judge's opinion.

    Attributes:
        correct: whether the prediction means the answer.
        grade: 0 to 5.
    """

    correct: bool
    grade: float


def parse_judgement(reply: str) -> Judgement | None:
    """Read a judge's reply: the first JSON object with ``pred`` and ``score``; None if there is none to be made out."""
    for match in _OBJECT.finditer(reply):
        try:
            values = json.loads(match[0])
        except ValueError:
            try:  # a Python dictionary, as the original protocol asks for
                values = json.loads(match[0].replace("'", '"'))
            except ValueError:
                continue
        verdict = str(values.get("pred", "")).strip().casefold()
        try:
            grade = float(values.get("score", ""))
        except (TypeError, ValueError):
            continue
        if verdict in {"yes", "no"} and 0 <= grade <= _MAX_GRADE:
            return Judgement(verdict == "yes", grade)
    return None


class Judge:
    """Asks an OpenAI-compatible server.

    Args:
        url: up to and including the version, such as ``http://localhost:8000/v1``.
        model: the judge's name there.
        api_key: sent as a bearer token, if there is one.
        timeout_seconds: for one reply.
        attempts: how often a question is asked, if the server fails or its reply makes no sense.
        pause_seconds: before the second attempt; doubled before each further one.

    Raises:
        InvalidInputError: the URL is none, or httpx is not installed.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        api_key: str | None = None,
        timeout_seconds: float = 60.0,
        attempts: int = 4,
        pause_seconds: float = 1.0,
    ) -> None:
        if not url.startswith(("http://", "https://")):
            raise InvalidInputError(f"the judge's URL must begin with http:// or https://, got {url!r}")
        self.model = model
        self._url = f"{url.rstrip('/')}/chat/completions"
        self._attempts, self._pause_seconds = attempts, pause_seconds
        if importlib.util.find_spec("httpx") is None:
            raise InvalidInputError("a judge needs httpx: pip install 'fastervlm-video[eval]'")
        import httpx

        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._client = httpx.Client(headers=headers, timeout=timeout_seconds)
        self._failures = httpx.HTTPError

    def judge(self, question: str, answer: str, prediction: str) -> Judgement | None:
        """One opinion; None if no reply made sense. Safe to call from several threads.

        Raises:
            UnavailableError: the server cannot be reached, or fails all the time.
            InvalidInputError: the server refuses: wrong URL, model or key.
        """
        body = {
            "model": self.model,
            "temperature": 0,
            "messages": [
                {"role": "system", "content": _INSTRUCTIONS},
                {
                    "role": "user",
                    "content": f"Question: {question}\nCorrect answer: {answer}\nPredicted answer: {prediction}",
                },
            ],
        }
        problem = ""
        for attempt in range(self._attempts):
            if attempt:
                time.sleep(min(self._pause_seconds * 2 ** (attempt - 1), _LONGEST_PAUSE_SECONDS))
            try:
                reply = self._client.post(self._url, json=body)
            except self._failures as error:
                problem = f"{type(error).__name__}: {error}"
                continue
            if reply.status_code in _RETRIED_STATUSES:
                problem = f"status {reply.status_code}: {reply.text[:200]}"
                continue
            if not reply.is_success:
                raise InvalidInputError(f"the judge at {self._url} refuses: {reply.status_code} {reply.text[:200]}")
            problem = ""
            judgement = parse_judgement(_content(reply))
            if judgement is not None:
                return judgement
        if problem:
            raise UnavailableError(f"the judge at {self._url} failed {self._attempts} times, at last with {problem}")
        return None

    def check(self) -> None:
        """Ask something trivial, so that a judge that cannot be used is found before there is anything to judge.

        Raises:
            UnavailableError: the server cannot be reached, or fails all the time.
            InvalidInputError: the server refuses, or no reply makes sense.
        """
        if self.judge("What color is the sky on a clear day?", "blue", "It is blue.") is None:
            raise InvalidInputError(
                f"the judge {self.model!r} at {self._url} does not reply as it is told to; take another"
            )

    def close(self) -> None:
        """End its connections."""
        self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _content(reply: "httpx.Response") -> str:
    """What the assistant said; empty if the reply is not of the form that was promised."""
    try:
        return str(reply.json()["choices"][0]["message"]["content"])
    except (ValueError, KeyError, IndexError, TypeError):
        logger.warning("the judge's reply is no chat completion: %.200s", reply.text)
        return ""


def judge_predictions(
    judge: Judge, predictions: Iterable[Prediction], folder: Path, *, workers: int = 4
) -> dict[Key, Score]:
    """Opinions on all open answers, keyed by (question, answer, prediction).

    Args:
        judge: whom to ask; those of another model are not reused.
        predictions: multiple choice and questions without a prediction among them are left alone.
        folder: where opinions are kept, and taken from.
        workers: requests under way at once.

    Returns:
        a score without value where no reply made sense; those are asked about again next time.

    Raises:
        UnavailableError: the server cannot be reached; what it said before is kept.
        InvalidInputError: the server refuses, or the kept opinions are damaged.
    """
    wanted = {_key(p) for p in predictions if p.choices is None and p.error is None}
    path = folder / JUDGEMENTS_FILE
    known = _read_judgements(path, judge.model)
    asked = sorted(wanted - known.keys())
    with path.open("a", encoding="utf-8") as file, ThreadPoolExecutor(workers) as pool:
        try:
            for key, judgement in zip(asked, pool.map(lambda key: judge.judge(*key), asked), strict=True):
                if judgement is not None:
                    known[key] = judgement
                    record = {"model": judge.model, "key": list(key), **asdict(judgement)}
                    file.write(json.dumps(record) + "\n")
                    file.flush()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return {key: _score(known.get(key)) for key in wanted}


def _key(prediction: Prediction) -> Key:
    return prediction.question, prediction.answer, prediction.pred


def _score(judgement: Judgement | None) -> Score:
    if judgement is None:
        return Score(None, parsed=False)
    return Score(float(judgement.correct), grade=judgement.grade)


def _read_judgements(path: Path, model: str) -> dict[Key, Judgement]:
    """Those of this judge; a last line that was cut short is left out."""
    if not path.is_file():
        return {}
    text = path.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    if len(whole) < len(text):
        path.write_text(whole, encoding="utf-8")
    known: dict[Key, Judgement] = {}
    for number, line in enumerate(whole.split("\n")[:-1], start=1):
        try:
            record: Mapping[str, Any] = json.loads(line)
            question, answer, prediction = record["key"]
            if record["model"] == model:
                known[question, answer, prediction] = Judgement(bool(record["correct"]), float(record["grade"]))
        except (ValueError, KeyError, TypeError) as error:
            raise InvalidInputError(f"{path}, line {number}, is damaged: {error}") from error
    return known
