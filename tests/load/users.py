"""Who loads the service: one class for each kind of traffic."""

import itertools
import json
import random
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, cast

from locust import HttpUser, between, events, task

from tests.load.media import Media
from tests.load.results import Results

__all__ = ["USERS", "World"]

_QUESTIONS = (
    "What color is the square?",
    "How many objects are there?",
    "Which object appears last?",
    "Which way does the circle move?",
)
_OK = 200
_TOO_MANY_REQUESTS = 429
_TIMEOUT_SECONDS = 60.0
_ANSWER_TOKENS = 12
_TOO_LARGE_BYTES = 2 * 1024**2


@dataclass
class World:
    """What all users of a process share.

    Attributes:
        media: what is sent.
        results: what is seen.
        known: ids of files that are uploaded before the test begins, by the field of a chat message that names each.
        model: name of the served model.
        headers: sent with every request.
    """

    media: Media
    results: Results
    known: dict[str, str]
    model: str
    headers: dict[str, str]


class _ServiceUser(HttpUser):
    abstract = True
    wait_time = between(0.2, 1.0)
    world: ClassVar[World]

    def on_start(self) -> None:
        self.client.headers.update(self.world.headers)

    @contextmanager
    def expecting(
        self, name: str, path: str, statuses: Collection[int] = (_OK,), *, method: str = "POST", **sent: Any
    ) -> Iterator[Any]:
        """A request that succeeds with one of these statuses, or if it is refused as one too many.

        Yields:
            The response if it is a 200, else None; a block that cannot read it raises a KeyError or ValueError.
        """
        begin, failure = time.perf_counter(), None
        with self.client.request(
            method, path, name=name, catch_response=True, timeout=_TIMEOUT_SECONDS, **sent
        ) as response:
            status = response.status_code or 0
            if status not in {*statuses, _TOO_MANY_REQUESTS}:
                failure = f"answered {status} ({_code(response) if status else response.error})"
            try:
                yield response if status == _OK and failure is None else None
            except (KeyError, ValueError) as exc:
                failure = f"not an answer: {type(exc).__name__}: {exc}"
            if failure is None:
                response.success()
            else:
                response.failure(failure)
        self.world.results.add(name, time.perf_counter() - begin, status, failure)

    def question(self, **more: Any) -> dict[str, Any]:
        return {"question": random.choice(_QUESTIONS), "max_tokens": _ANSWER_TOKENS, **more}

    def known_file(self) -> str:
        return random.choice(list(self.world.known))

    def note_cache(self, video: dict[str, Any]) -> None:
        self.world.results.cache[video["cache"]] += 1


class ColdUser(_ServiceUser):
    """Asks about videos that nobody has asked about before, which come with the question."""

    @task
    def ask(self) -> None:
        """One new video, or picture, one question."""
        content = self.world.media.new_picture() if random.random() < 0.2 else self.world.media.new_video()
        with self.expecting("cold", "/v1/ask", files={"file": ("new", content)}, data=self.question()) as response:
            if response:
                self.note_cache(response.json()["video"])


class WarmUser(_ServiceUser):
    """Asks about a few videos again and again."""

    @task
    def ask(self) -> None:
        """One known file, one question."""
        with self.expecting("warm", "/v1/ask", json=self.question(file_id=self.known_file())) as response:
            if response:
                self.note_cache(response.json()["video"])


class StreamUser(_ServiceUser):
    """Reads answers as they are made."""

    @task
    def ask(self) -> None:
        """One known file, one question, in pieces."""
        body, begin = self.question(file_id=self.known_file(), stream=True), time.perf_counter()
        with self.expecting("stream", "/v1/ask", json=body, stream=True) as response:
            if not response:
                return
            seen = set()
            for event, data in _events(response):
                if event == "error":
                    raise ValueError(data["error"]["code"])
                if event == "video":
                    self.note_cache(data)
                if event == "delta" and event not in seen:
                    self._note_first_text(time.perf_counter() - begin)
                seen.add(event)
            if "done" not in seen:
                raise ValueError(f"the stream ended after {sorted(seen)}")

    def _note_first_text(self, seconds: float) -> None:
        self.world.results.ttft_seconds.append(seconds)
        # A row of its own in Locust's reports; it is no request.
        cast("Any", events.request).fire(
            request_type="TTFT",
            name="time to first text",
            response_time=1000 * seconds,
            response_length=0,
            exception=None,
            context={},
        )


def _code(response: Any) -> str:
    """The code of an error, which unlike its message is one of a few."""
    try:
        return str(response.json()["error"]["code"])
    except (KeyError, TypeError, ValueError):
        return "no code"


def _events(response: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    name = ""
    for line in (line.decode() for line in response.iter_lines()):
        if line.startswith("event: "):
            name = line.removeprefix("event: ")
        elif line.startswith("data: "):
            yield name, json.loads(line.removeprefix("data: "))


class ChatUser(_ServiceUser):
    """Has conversations of two turns, in OpenAI's words."""

    @task
    def chat(self) -> None:
        """A question and another one about its answer."""
        file_id = self.known_file()
        kind = self.world.known[file_id]
        video = {"type": kind, kind: {"url": file_id}}
        messages: list[dict[str, Any]] = [
            {"role": "user", "content": [video, {"type": "text", "text": random.choice(_QUESTIONS)}]}
        ]
        for _ in range(2):
            body = {
                "model": self.world.model,
                "messages": messages,
                "max_completion_tokens": _ANSWER_TOKENS,
                "temperature": 0,
            }
            with self.expecting("chat", "/v1/chat/completions", json=body) as response:
                if not response:
                    return
                found = response.json()
                self.note_cache(found["video"])
                said = found["choices"][0]["message"]["content"]
            messages += [{"role": "assistant", "content": said or "?"}, {"role": "user", "content": "And then?"}]


class UploadUser(_ServiceUser):
    """Uploads files and deletes them again."""

    @task
    def upload(self) -> None:
        """There and gone."""
        content = random.choice((self.world.media.new_video, self.world.media.new_picture))()
        with self.expecting("upload", "/v1/files", files={"file": ("new", content)}) as response:
            file_id = response.json()["id"] if response else None
        if file_id:
            with self.expecting("delete", f"/v1/files/{file_id}", method="DELETE"):
                pass


_JSON = {"Content-Type": "application/json"}
_ABUSE: tuple[tuple[str, dict[str, Any], tuple[int, ...]], ...] = (
    ("/v1/ask", {"data": b"{", "headers": _JSON}, (400,)),
    ("/v1/ask", {"data": b"[" * 50_000, "headers": _JSON}, (400,)),
    ("/v1/ask", {"data": bytes(_TOO_LARGE_BYTES), "headers": _JSON}, (413,)),
    ("/v1/ask", {"data": b"\xff\x00garbage", "headers": {"Content-Type": "text/plain"}}, (415,)),
    ("/v1/ask", {"data": b"--x\r\nbroken", "headers": {"Content-Type": "multipart/form-data; boundary=x"}}, (400,)),
    ("/v1/ask", {"json": {"question": "?", "file_id": "file-" + "0" * 64}}, (404,)),
    ("/v1/ask", {"json": {"question": "?", "file_id": "../../etc/passwd"}}, (404,)),
    ("/v1/ask", {"json": {"question": "w" * 100_000, "file_id": "file-" + "0" * 64}}, (400,)),
    ("/v1/ask", {"json": {"question": "?", "video_url": "http://127.0.0.1:1/x.mp4"}}, (400,)),
    ("/v1/ask", {"json": {"question": "?", "file_id": "file-" + "0" * 64, "keep_ratio": 9}}, (400,)),
    ("/v1/ask", {"files": {"file": ("clip.mp4", b"RIFF but not really" * 50)}, "data": {"question": "?"}}, (415, 422)),
    ("/v1/chat/completions", {"json": {"model": "another", "messages": "none"}}, (400, 404)),
    ("/v1/chat/completions", {"json": []}, (400,)),
)


class AbusiveUser(_ServiceUser):
    """Sends what must be refused, and is content if it is."""

    _next = itertools.cycle(_ABUSE)

    @task
    def abuse(self) -> None:
        """The next piece of nonsense."""
        path, sent, statuses = next(self._next)
        with self.expecting("abuse", path, statuses, **sent):
            pass


USERS: dict[str, type[_ServiceUser]] = {
    "cold": ColdUser,
    "warm": WarmUser,
    "stream": StreamUser,
    "chat": ChatUser,
    "upload": UploadUser,
    "abuse": AbusiveUser,
}
"""By the names that mixes give them."""
