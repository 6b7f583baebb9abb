"""The order in which a question is checked: what can be refused is refused before its file is stored, or fetched."""

import base64
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import httpx
import pytest

from fastervlm_video.cache import MemoryStore, TokenCache
from fastervlm_video.config import Medium
from fastervlm_video.errors import ContextLengthError
from fastervlm_video.plan import ModelFacts
from services.answering import Answering
from services.api import create_http_app
from services.handles import Stages
from services.live import LiveConfig
from services.readiness import ReadinessProbe
from services.requests import FileIntake
from services.service import VideoService
from services.settings import load_settings
from services.stages import AnswerDone, AnswerText, DecodeOrder, EncodeOrder, StageEvent, TokensReady
from services.stores import open_blob_store
from tests.checkpoints import save_random_checkpoint, save_random_llava_next
from tests.services.kit import picture_bytes
from tests.services.live import serve_asgi
from tests.services.test_answering import ScriptedStages, Work

READY = TokensReady((0.0,), "cls_attention", (3, 3), 32, 8, {}, Medium.IMAGE, 2)
ANSWER: list[StageEvent | BaseException] = [READY, AnswerText("a"), AnswerDone("stop", 10, 1, 0, {})]
VIDEO = b"\0\0\0\x18ftypmp42" + bytes(100)  # as far as its first bytes go
PNG = picture_bytes()


class Recorder(ScriptedStages):
    """Remembers what is to be decoded and encoded."""

    def __init__(self, *scripts: list[StageEvent | BaseException]) -> None:
        super().__init__(*scripts)
        self.orders: list[tuple[DecodeOrder, EncodeOrder]] = []

    def begin_encoding(self, *orders: object, request_id: str) -> Work:
        self.orders.append(cast("tuple[DecodeOrder, EncodeOrder]", orders))
        return super().begin_encoding(*orders, request_id=request_id)


@dataclass
class Front:
    """An Api without a cluster behind it."""

    url: str
    service: VideoService
    stages: Recorder

    def ask(self, **fields: Any) -> httpx.Response:
        return httpx.post(f"{self.url}/v1/ask", json={"question": "What is it?", **fields})

    def upload(self, content: bytes, **fields: str) -> httpx.Response:
        form = {"question": "What is it?", **fields}
        return httpx.post(f"{self.url}/v1/ask", data=form, files={"file": ("a", content)})

    def chat(self, *parts: dict[str, Any], **fields: Any) -> httpx.Response:
        content = [*parts, {"type": "text", "text": "What is it?"}]
        body = {"model": self.service.facts.name, "messages": [{"role": "user", "content": content}], **fields}
        return httpx.post(f"{self.url}/v1/chat/completions", json=body)

    def store(self, content: bytes) -> str:
        answer = httpx.post(f"{self.url}/v1/files", files={"file": ("a", content)})
        return str(answer.json()["id"])


def part(kind: str, url: str) -> dict[str, Any]:
    return {"type": kind, kind: {"url": url}}


def data_url(content: bytes, kind: str) -> str:
    return f"data:{kind};base64," + base64.b64encode(content).decode()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ModelFacts]:
    makers: dict[str, Callable[[Path], Path]] = {
        "video_llava": save_random_checkpoint,
        "llava_next": save_random_llava_next,
    }
    folder = tmp_path_factory.mktemp("models")
    return {name: ModelFacts.open(make(folder / name)) for name, make in makers.items()}


@pytest.fixture
def fronts(models: dict[str, ModelFacts], tmp_path: Path) -> Iterator[Callable[..., Front]]:
    running = []

    def start(model: str = "video_llava", *script: StageEvent | BaseException) -> Front:
        facts, stages = models[model], Recorder(list(script) or ANSWER)
        settings = load_settings(runtime_dir=tmp_path / "run", request_timeout_seconds=30, max_inline_bytes=10**5)
        cache, blobs = TokenCache(MemoryStore(10**7)), open_blob_store(settings)
        probe = ReadinessProbe("app", {})
        probe._was_ready = True
        service = VideoService(
            settings=settings,
            live=LiveConfig.from_settings(settings),
            facts=facts,
            cache=cache,
            blobs=blobs,
            intake=FileIntake(settings, blobs),
            answering=Answering(facts, cache, cast("Stages", stages)),
            readiness=probe,
            keyring=settings.keyring(),
            started_at=0,
        )
        app = serve_asgi(create_http_app(service))
        running.append(app)
        return Front(app.__enter__(), service, stages)

    yield start
    for app in running:
        app.__exit__(None, None, None)


def detail(response: httpx.Response, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    found: dict[str, Any] = response.json()["error"]
    return found


def test_what_an_upload_is_decides_what_is_done_with_it(fronts: Callable[..., Front]) -> None:
    front = fronts("llava_next")
    facts = front.service.facts
    for content, medium in ((PNG, Medium.IMAGE), (VIDEO, Medium.VIDEO)):
        front.stages.scripts[0] = list(ANSWER)
        answer = front.upload(content)
        assert answer.status_code == 200, answer.text
        decode, encode = front.stages.orders[-1]
        steps = facts.preprocessing(medium)
        assert (decode.medium, decode.resize, decode.tiling) == (medium, steps.resize, steps.tiling)
        assert (encode.medium, encode.fingerprint) == (medium, facts.fingerprint(medium))
        order, _ = front.stages.calls[-1]
        assert (order.medium, order.key) == (medium, encode.key)
        file = httpx.get(f"{front.url}/v1/files/{answer.json()['video']['file_id']}").json()
        assert file["medium"] == medium.value


def test_the_block_says_what_the_generator_said(fronts: Callable[..., Front]) -> None:
    block = fronts().upload(PNG).json()["video"]
    assert (block["medium"], block["frames"], block["frame_seconds"], block["views_per_picture"]) == (
        "image",
        1,
        [0],
        2,
    )
    assert (block["tokens_kept"], block["tokens_full"], block["tokens_per_frame"]) == (8, 32, [3, 3])


@pytest.mark.parametrize(
    ("model", "content", "fields", "hint"),
    [
        ("video_llava", PNG, {"num_frames": "3"}, "num_frames is for videos"),
        ("video_llava", VIDEO, {"max_tokens": "490"}, "answer tokens"),
        ("video_llava", PNG, {"max_tokens": "505"}, "answer tokens"),
        ("llava_next", PNG, {"keep_cls": "true"}, "keep_cls"),
        ("llava_next", VIDEO, {"keep_cls": "true"}, "keep_cls"),
        ("llava_next", VIDEO, {"max_tokens": "490"}, "answer tokens"),
        ("video_llava", PNG, {"question": "a <image> b"}, "<image>"),
    ],
)
def test_what_is_refused_is_not_stored(
    fronts: Callable[..., Front], model: str, content: bytes, fields: dict[str, str], hint: str
) -> None:
    front = fronts(model)
    assert hint in detail(front.upload(content, **fields), 400)["message"]
    kind, mime = ("image_url", "image/png") if content is PNG else ("video_url", "video/mp4")
    if "question" not in fields:
        options = {name: json.loads(value) for name, value in fields.items()}
        assert hint in detail(front.chat(part(kind, data_url(content, mime)), **options), 400)["message"]
        # A host that may not be asked: the request is refused before that is noticed.
        assert hint in detail(front.ask(**{kind: "http://127.0.0.1:9/a"}, **options), 400)["message"]
    assert front.service.blobs.used_bytes() == 0
    assert not front.stages.calls


def test_a_file_in_the_others_part_is_refused_whichever_way_it_comes(fronts: Callable[..., Front]) -> None:
    front = fronts()
    picture, video = front.store(PNG), front.store(VIDEO)
    stored = front.service.blobs.used_bytes()
    for url in (picture, data_url(PNG + b"other", "application/octet-stream")):
        found = detail(front.chat(part("video_url", url)), 415)
        assert (found["code"], found["param"]) == ("unsupported_media", "video_url")
        assert "name it in `image_url`" in found["message"]
    for url in (video, data_url(VIDEO + b"other", "image/png")):
        found = detail(front.chat(part("image_url", url)), 415)
        assert (found["code"], found["param"]) == ("unsupported_media", "image_url")
        assert "name it in `video_url`" in found["message"]
    assert front.service.blobs.used_bytes() == stored
    assert not front.stages.calls
    for url in (picture, data_url(PNG, "image/png")):
        front.stages.scripts[0] = list(ANSWER)
        assert front.chat(part("image_url", url)).status_code == 200
    front.stages.scripts[0] = list(ANSWER)
    assert front.ask(file_id=picture).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
def test_what_only_the_generator_knows_is_refused_with_the_same_status(
    fronts: Callable[..., Front], stream: bool
) -> None:
    front = fronts("llava_next", ContextLengthError("3 prompt tokens + 999 visual tokens are too many"))
    for answer in (front.ask(file_id=front.store(PNG), stream=stream), front.upload(PNG, stream=str(stream).lower())):
        found = detail(answer, 400)
        assert (found["code"], "999" in found["message"]) == ("context_length_exceeded", True)
        assert answer.headers["content-type"] == "application/json"
        front.stages.scripts[0] = [ContextLengthError("999")]
    assert len(front.stages.calls) == 2  # nothing that time would mend


@pytest.mark.parametrize(("model", "views"), [("video_llava", 1), ("llava_next", 5)])
def test_what_is_served_is_said(fronts: Callable[..., Front], model: str, views: int) -> None:
    (found,) = httpx.get(f"{fronts(model).url}/v1/models").json()["data"]
    assert (found["media"], found["max_views_per_picture"]) == (["image", "video"], views)
