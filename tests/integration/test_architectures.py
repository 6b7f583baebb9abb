"""Each architecture behind the real service: pictures and videos, cold and warm, streamed and not, on one Redis."""

import base64
import contextlib
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import OpenAI
from PIL import Image
from ray import serve

from fastervlm_video import VideoQA
from fastervlm_video.config import SamplingParams
from fastervlm_video.media import write_video
from fastervlm_video.pipeline import Answer
from services.app import build_app
from services.settings import load_settings
from tests.checkpoints import random_frames, save_random_checkpoint, save_random_llava, save_random_llava_next
from tests.integration.conftest import TIMEOUT_SECONDS, Service, read_events
from tests.integration.external_redis import RedisProcess
from tests.services.live import wait_until

QUESTION, ANSWER_TOKENS, NUM_FRAMES = "What color is the circle?", 8, 3
ARCHITECTURES: dict[str, Callable[[Path], Path]] = {
    "video_llava": save_random_checkpoint,
    "llava": save_random_llava,
    "llava_next": save_random_llava_next,
}
_SMALL: Any = {"num_cpus": 0.05, "max_replicas": 1}


@dataclass
class Architecture:
    """A service of one architecture, and the same checkpoint in this process."""

    name: str
    app: str
    model: str
    client: httpx.Client
    library: VideoQA
    redis: RedisProcess

    def ask(self, **fields: Any) -> httpx.Response:
        return self.client.post(
            f"/{self.app}/v1/ask", json={"question": QUESTION, "max_tokens": ANSWER_TOKENS, **fields}
        )

    def upload_and_ask(self, name: str, content: bytes) -> dict[str, Any]:
        form = {"question": QUESTION, "max_tokens": str(ANSWER_TOKENS)}
        answer = self.client.post(f"/{self.app}/v1/ask", data=form, files={"file": (name, content)})
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def expected(self, content: bytes) -> tuple[Answer, int]:
        """What the library says in this process, and how many visual tokens its prompt has."""
        encoded = self.library.encode(content)
        answer = self.library.ask(encoded, QUESTION, SamplingParams(max_tokens=ANSWER_TOKENS))
        return answer, len(self.library.facts.arrange(encoded.tokens))

    def entries(self) -> set[tuple[bytes, bytes]]:
        """All that is in the shared Redis, by video and variant."""
        client = self.redis.client
        return {(key, field) for key in client.keys("fastervlm:video:*") for field in client.hkeys(key)}


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisProcess]:
    server = RedisProcess()
    yield server
    server.close()


@contextlib.contextmanager
def deployed(
    name: str, service: Service, redis: RedisProcess, folder: Path, *, app: str = "architecture"
) -> Iterator[Architecture]:
    """Beside the service that all tests share, for as long as the block runs."""
    model = folder / name
    if not model.exists():
        ARCHITECTURES[name](model)
    settings = load_settings(
        model=str(model),
        runtime_dir=service.settings.runtime_dir,
        redis_url=redis.url,
        default_num_frames=NUM_FRAMES,
        api=_SMALL,
        decoder=_SMALL,
        encoder=_SMALL,
        generator=_SMALL,
    )
    serve.run(build_app(settings), name=app, route_prefix=f"/{app}")
    try:
        with VideoQA.from_pretrained(model, num_frames=NUM_FRAMES) as library:
            wait_until(lambda: service.client.get(f"/{app}/readyz").status_code == 200)
            yield Architecture(name, app, library.facts.name, service.client, library, redis)
    finally:
        serve.delete(app)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("architectures")


@pytest.fixture(scope="module", params=ARCHITECTURES)
def architecture(
    request: pytest.FixtureRequest, service: Service, redis: RedisProcess, folder: Path
) -> Iterator[Architecture]:
    with deployed(request.param, service, redis, folder) as found:
        yield found


def picture(kind: str, seed: int, *, height: int = 50, width: int = 120) -> bytes:
    file = io.BytesIO()
    Image.fromarray(random_frames(1, height, width, seed)[0]).save(file, kind)
    return file.getvalue()


def video(folder: Path, seed: int) -> bytes:
    path = folder / f"{seed}.mp4"
    write_video(path, random_frames(12, 48, 96, seed), fps=6)
    return path.read_bytes()


def check(architecture: Architecture, answer: dict[str, Any], content: bytes, medium: str) -> None:
    """An answer is the library's, to the word and to the token."""
    wanted, visual = architecture.expected(content)
    block = answer["video"]
    assert (answer["answer"], answer["usage"]["prompt_tokens"]) == (wanted.text, wanted.usage.prompt_tokens)
    assert wanted.text
    assert (block["medium"], block["tokens_kept"]) == (medium, visual)
    assert visual < answer["usage"]["prompt_tokens"]
    assert visual < block["tokens_full"]
    assert block["frames"] == len(block["frame_seconds"]) == (1 if medium == "image" else NUM_FRAMES)
    assert len(block["tokens_per_frame"]) == block["frames"] * block["views_per_picture"]
    assert (block["views_per_picture"] > 1) == (architecture.name == "llava_next")


def test_two_architectures_on_one_redis_never_mix(service: Service, redis: RedisProcess, folder: Path) -> None:
    jpeg = picture("JPEG", seed=5)
    with (
        deployed("llava", service, redis, folder, app="first") as first,
        deployed("llava_next", service, redis, folder, app="second") as second,
    ):
        seen, texts = first.entries(), []
        for one in (first, second):
            cold = one.upload_and_ask("a.jpg", jpeg)
            assert cold["video"]["cache"] == "miss"
            check(one, cold, jpeg, "image")
            fresh = one.entries() - seen
            assert len({field.rpartition(b".")[0] for _, field in fresh}) == 1  # one entry: its header and its body
            texts.append(fresh)
            seen |= fresh
        assert not texts[0] & texts[1]
        assert {key for key, _ in texts[0]} == {key for key, _ in texts[1]}  # one video, two variants
        for one in (first, second):
            warm = one.ask(file_id=cold["video"]["file_id"])
            assert warm.json()["video"]["cache"] == "hit"
            check(one, warm.json(), jpeg, "image")
        assert first.entries() == seen


def test_a_picture_uploaded_then_in_chat(architecture: Architecture, service: Service) -> None:
    jpeg = picture("JPEG", seed=1)
    check(architecture, architecture.upload_and_ask("a.jpg", jpeg), jpeg, "image")
    png = picture("PNG", seed=2, height=90, width=40)
    url = "data:image/png;base64," + base64.b64encode(png).decode()
    parts: Any = [
        {"type": "image_url", "image_url": {"url": url, "detail": "low"}},
        {"type": "text", "text": QUESTION},
    ]
    options: Any = {
        "model": architecture.model,
        "messages": [{"role": "user", "content": parts}],
        "temperature": 0,
        "max_completion_tokens": ANSWER_TOKENS,
    }
    with OpenAI(
        base_url=f"{service.url}/{architecture.app}/v1", api_key="none", timeout=TIMEOUT_SECONDS, max_retries=0
    ) as client:
        cold, warm = (client.chat.completions.create(**options) for _ in range(2))
        chunks = list(client.chat.completions.create(stream=True, **options))
    for answer, cache in ((cold, "miss"), (warm, "hit")):
        found = answer.model_dump()
        assert found["video"]["cache"] == cache
        check(architecture, {**found, "answer": found["choices"][0]["message"]["content"]}, png, "image")
    text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert text == cold.choices[0].message.content


def test_a_video_streamed_and_not(architecture: Architecture, folder: Path) -> None:
    content = video(folder, seed=3)
    whole = architecture.upload_and_ask("a.mp4", content)
    assert whole["video"]["cache"] == "miss"
    check(architecture, whole, content, "video")
    body = {"file_id": whole["video"]["file_id"], "question": QUESTION, "max_tokens": ANSWER_TOKENS, "stream": True}
    with architecture.client.stream("POST", f"/{architecture.app}/v1/ask", json=body) as response:
        assert response.status_code == 200
        events = read_events(response)
    assert "".join(data["text"] for name, data in events if name == "delta") == whole["answer"]
    assert events[0][1]["cache"] == "hit"
    check(architecture, events[-1][1], content, "video")


def test_refusals_reach_the_client_as_what_they_are(architecture: Architecture) -> None:
    jpeg = picture("JPEG", seed=4, height=64, width=64)
    answer = architecture.upload_and_ask("a.jpg", jpeg)
    file_id, context = answer["video"]["file_id"], architecture.library.facts.context_length
    room = context - answer["usage"]["prompt_tokens"]
    for stream in (False, True):
        refused = architecture.ask(file_id=file_id, max_tokens=room + 1, stream=stream)
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, "context_length_exceeded"), refused.text
    frames = architecture.ask(file_id=file_id, num_frames=2)
    assert (frames.status_code, frames.json()["error"]["param"]) == (400, "num_frames")
    cut = architecture.client.post("/v1/files", files={"file": ("a.jpg", jpeg[: len(jpeg) // 2])}).json()
    assert cut["medium"] == "image"
    damaged = architecture.ask(file_id=cut["id"])
    assert (damaged.status_code, damaged.json()["error"]["code"]) == (422, "corrupt_media"), damaged.text


def test_what_is_served_is_said(architecture: Architecture) -> None:
    (model,) = architecture.client.get(f"/{architecture.app}/v1/models").json()["data"]
    views = 5 if architecture.name == "llava_next" else 1
    assert (model["media"], model["max_views_per_picture"]) == (["image", "video"], views)
