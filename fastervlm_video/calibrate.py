"""What the stages of a running service take, measured by asking it. The service should have nothing else to do."""

import re
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx

from fastervlm_video.errors import FasterVLMError, InvalidRequestError
from fastervlm_video.media import write_video
from fastervlm_video.mini import random_scene, render_scene
from fastervlm_video.sizing import Calibration

__all__ = ["measure", "with_metrics"]

_PROMPT = "Describe the video in detail."
_FEW, _ALL = 0.05, 1.0
_LONGEST_ANSWER = 48
_HOT = 2.0  # makes answers of any model long
_TIMEOUT_SECONDS = 300.0
_FIRST_SEED = 900
_LEAST_SECONDS = 1e-7
_PREFIX = "ray_fastervlm_"


@dataclass(frozen=True, slots=True)
class _Answer:
    """What the service said of one answer."""

    seconds: dict[str, float]
    frames: int
    prompt_tokens: int
    computed_tokens: int
    answer_tokens: int

    @property
    def step_seconds(self) -> float | None:
        """Time of a step; None if there was none after the first token."""
        if self.answer_tokens < 3:
            return None
        return (self.seconds["generate"] - self.seconds["first_token"]) / (self.answer_tokens - 1)


class _Client:
    """Asks the service about videos of its own."""

    def __init__(self, http: httpx.Client) -> None:
        self._http = http
        self._made = time.time_ns() % 10**6
        self.model: dict[str, Any] = self._checked(http.get("/v1/models"))["data"][0]

    def upload(self) -> str:
        """A video that it has not seen; gives its id."""
        self._made += 1
        with tempfile.TemporaryDirectory(prefix="fastervlm-size-") as folder:
            path = Path(folder) / "clip.mp4"
            write_video(path, render_scene(random_scene(_FIRST_SEED + self._made)), fps=12)
            response = self._http.post("/v1/files", files={"file": (path.name, path.read_bytes())})
        file_id: str = self._checked(response)["id"]
        return file_id

    def ask(self, file_id: str, keep_ratio: float, max_tokens: int) -> _Answer:
        """One question."""
        body = {"file_id": file_id, "question": _PROMPT, "keep_ratio": keep_ratio, "max_tokens": max_tokens}
        if max_tokens > 1:
            body["temperature"] = _HOT
        found = self._checked(self._http.post("/v1/ask", json=body))
        usage, video = found["usage"], found["video"]
        return _Answer(
            seconds=video["seconds"],
            frames=video["frames"],
            prompt_tokens=usage["prompt_tokens"],
            computed_tokens=usage["prompt_tokens"] - usage["prompt_tokens_details"]["cached_tokens"],
            answer_tokens=usage["completion_tokens"],
        )

    def delete(self, file_id: str) -> None:
        """A video, with its tokens."""
        self._checked(self._http.delete(f"/v1/files/{file_id}"))

    @staticmethod
    def _checked(response: httpx.Response) -> Any:
        if response.is_error:
            raise FasterVLMError(f"the service answered {response.status_code}: {response.text[:300]}")
        return response.json()


def measure(
    url: str,
    *,
    machine: str,
    repeats: int = 5,
    batch_size: int = 8,
    api_key: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Calibration:
    """Ask a service about new videos, alone and side by side, and see what each stage takes.

    Its files are deleted afterwards.

    Args:
        url: of the service.
        machine: what it runs on, in words.
        repeats: questions of each kind; the median counts.
        batch_size: answers side by side.
        api_key: if it asks for one.
        progress: told (done, total).

    Raises:
        InvalidRequestError: the URL cannot be used.
        FasterVLMError: the service refuses or fails.
    """
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    files: list[str] = []
    try:
        with httpx.Client(base_url=url, timeout=_TIMEOUT_SECONDS, headers=headers) as http:
            client = _Client(http)
            try:
                asked = _ask_all(client, files, repeats, batch_size, progress or (lambda _done, _total: None))
            finally:
                for file_id in files:
                    client.delete(file_id)
        return _calibration(client.model, machine, asked, batch_size)
    except (httpx.HTTPError, httpx.InvalidURL) as exc:
        raise InvalidRequestError(f"no service at {url}: {type(exc).__name__}: {exc}") from exc


@dataclass(frozen=True, slots=True)
class _Asked:
    """All answers: about new videos, by how much was kept; about a known one, alone and so many side by side."""

    cold: dict[float, list[_Answer]]
    alone: list[_Answer]
    together: list[_Answer]


def _ask_all(
    client: _Client, files: list[str], repeats: int, batch_size: int, progress: Callable[[int, int], None]
) -> _Asked:
    cold: dict[float, list[_Answer]] = {_FEW: [], _ALL: []}
    total = 2 * repeats + 2 * repeats
    client.ask(_new(client, files), _FEW, 1)  # whatever is done once only
    for done in range(2 * repeats):
        keep = (_FEW, _ALL)[done % 2]
        cold[keep].append(client.ask(_new(client, files), keep, 1))
        progress(done + 1, total)
    alone: list[_Answer] = []
    together: list[_Answer] = []
    with ThreadPoolExecutor(batch_size) as pool:
        for done in range(repeats):
            alone.append(client.ask(files[-1], _ALL, _LONGEST_ANSWER))
            together += pool.map(lambda _: client.ask(files[-1], _ALL, _LONGEST_ANSWER), range(batch_size))
            progress(2 * repeats + 2 * (done + 1), total)
    return _Asked(cold, alone, together)


def _new(client: _Client, files: list[str]) -> str:
    files.append(client.upload())
    return files[-1]


def _calibration(model: dict[str, Any], machine: str, asked: _Asked, batch_size: int) -> Calibration:
    cold = asked.cold
    every = [*cold[_FEW], *cold[_ALL]]
    few, many = (_median([one.seconds["first_token"] for one in cold[keep]]) for keep in (_FEW, _ALL))
    few_tokens, many_tokens = (_median([one.computed_tokens for one in cold[keep]]) for keep in (_FEW, _ALL))
    token_seconds = max(0.0, (many - few) / max(1.0, many_tokens - few_tokens))
    one, full = _step_seconds(asked.alone), _step_seconds(asked.together)
    growth = max(0.0, (full - one) / max(1, batch_size - 1))
    return Calibration(
        model=str(model["id"]),
        machine=machine,
        patches_per_frame=int(model["patches_per_frame"]),
        decode_frame_seconds=_rounded(_median([a.seconds["decode"] / a.frames for a in every])),
        encode_frame_seconds=_rounded(_median([a.seconds["encode"] / a.frames for a in every])),
        question_seconds=_rounded(max(0.0, few - few_tokens * token_seconds)),
        prompt_token_seconds=_rounded(token_seconds),
        step_base_seconds=_rounded(max(0.0, one - growth)),
        step_answer_seconds=_rounded(growth),
    )


def _step_seconds(answers: Sequence[_Answer]) -> float:
    steps = [step for step in (answer.step_seconds for answer in answers) if step is not None]
    if not steps:
        raise FasterVLMError("no answer was long enough to see what a token takes")
    return max(_median(steps), _LEAST_SECONDS)


def _median(values: Sequence[float]) -> float:
    return float(statistics.median(values))


def _rounded(seconds: float) -> float:
    """Four digits are more than repeat themselves."""
    return float(f"{seconds:.4g}")


def with_metrics(calibration: Calibration, *pages: str) -> Calibration:
    """The same with the times per frame of what a service has really decoded and encoded: its users' videos.

    Args:
        calibration: of the same model on the same machines.
        pages: of the service's metrics, in Prometheus' text format: one of each machine, for the stages that run there.

    Raises:
        InvalidRequestError: nothing was decoded or encoded yet, as far as these pages say.
    """
    decode, encode = (_frame_seconds(pages, verb) for verb in ("decode", "encode"))
    return replace(calibration, decode_frame_seconds=decode, encode_frame_seconds=encode)


def _frame_seconds(pages: Sequence[str], verb: str) -> float:
    seconds, frames = _total(pages, f"{verb}_seconds_sum"), _total(pages, f"{verb}d_frames_total")
    if not frames or not seconds:
        raise InvalidRequestError(
            f"the metrics do not say that anything was {verb}d; give the pages of all machines where stages run"
        )
    return _rounded(seconds / frames)


def _total(pages: Sequence[str], name: str) -> float:
    """Sum of all series of a metric on all pages."""
    series = re.compile(rf"^{_PREFIX}{name}(?:{{[^\n]*}})? (\S+)", re.MULTILINE)
    return sum(float(value) for page in pages for value in series.findall(page))
