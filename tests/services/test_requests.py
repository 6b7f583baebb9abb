import base64
import dataclasses
import hashlib
import io
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from fastapi import FastAPI, Request

from fastervlm_video.config import DEFAULT_METHOD, FrameSampling, PruneSpec, SamplingParams
from fastervlm_video.errors import InvalidRequestError, PayloadTooLargeError, UrlNotAllowedError, VideoNotFoundError
from fastervlm_video.language import Message
from fastervlm_video.prune import get_method, method_names, registry
from services.http_errors import install_error_handlers
from services.inquiry import Choices, InlineVideo, Inquiry, RemoteVideo, StoredVideo, choose
from services.live import LiveConfig
from services.requests import VideoIntake, read_ask
from services.settings import Settings, load_settings
from services.stores import open_blob_store
from services.tenants import Tenant
from services.uploads import SpooledFile
from tests.services.live import QuietHandler, serve_asgi, serve_http

PATCHES = 64
MAX_FILE = 1024**2
DEFAULTS = {field.name: field.default for field in dataclasses.fields(Inquiry)}
ME = Tenant("me", b"")
DIGEST = hashlib.sha256(b"video").hexdigest()
LIVE = LiveConfig(
    default_keep_ratio=0.25,
    min_keep_ratio=0.125,
    default_num_frames=4,
    max_num_frames=16,
    max_question_chars=20,
    default_answer_tokens=10,
    max_answer_tokens=100,
)


def chosen(live: LiveConfig = LIVE, question: str = "What?", **fields: Any) -> Choices:
    return choose(Inquiry((Message("user", question),), StoredVideo(f"file-{DIGEST}"), **fields), live, PATCHES)


def test_defaults_are_the_servers() -> None:
    assert chosen() == Choices(FrameSampling(4), PruneSpec(keep_ratio=0.25), SamplingParams(max_tokens=10))


def test_what_a_request_says_is_taken() -> None:
    found = chosen(
        num_frames=2,
        method="random",
        keep_tokens=9,
        keep_cls=True,
        max_tokens=5,
        temperature=0.5,
        top_p=0.9,
        seed=7,
    )
    assert found.sampling == FrameSampling(2)
    assert found.prune == PruneSpec(method="random", keep_tokens=9, keep_cls=True)
    assert found.params == SamplingParams(max_tokens=5, temperature=0.5, top_p=0.9, seed=7)


def test_a_ratio_is_taken_and_a_count_replaces_the_default_ratio() -> None:
    assert chosen(keep_ratio=1.0).prune.tokens_per_frame(PATCHES) == PATCHES
    assert chosen(keep_tokens=8).prune.keep_ratio is None


def test_the_default_method_may_be_changed_while_running() -> None:
    assert chosen().prune.method == DEFAULT_METHOD
    assert chosen(LIVE.model_copy(update={"default_method": "uniform_grid"})).prune.method == "uniform_grid"


@pytest.mark.parametrize("method", method_names())
def test_every_method_is_on_offer(method: str) -> None:
    """Also those whose frames keep different numbers: the video's total is known."""
    assert chosen(method=method).prune.method == method


def test_a_number_of_tokens_that_nobody_knows_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    unbounded = replace(get_method("evs"), name="unbounded", fixed_total=False)
    monkeypatch.setitem(registry._METHODS, "unbounded", unbounded)
    with pytest.raises(InvalidRequestError, match="'unbounded' keeps a number of tokens that depends on the video"):
        chosen(method="unbounded")


@pytest.mark.parametrize(
    "fields",
    [
        {"question": "x" * 20},
        {"num_frames": 16},
        {"max_tokens": 100},
        {"keep_ratio": 0.125},
        {"keep_tokens": 8},
        {"keep_tokens": PATCHES},
        {"seed": 2**63 - 1},
    ],
)
def test_a_bound_itself_is_allowed(fields: dict[str, Any]) -> None:
    chosen(**fields)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"question": "x" * 21}, "21 characters, more than the 20"),
        ({"num_frames": 17}, "num_frames=17 is more than the 16"),
        ({"num_frames": 10**30}, "more than the 16"),
        ({"max_tokens": 101}, "max_tokens=101 is more than the 100"),
        ({"keep_ratio": 0.11}, "7 tokens per frame are fewer than the 8 .* keep_ratio of 0.125"),
        ({"keep_tokens": 7}, "7 tokens per frame are fewer than the 8"),
        ({"keep_tokens": PATCHES + 1}, "keep_tokens=65 is more than the 64"),
        ({"keep_ratio": 0.5, "keep_tokens": 32}, "keep_ratio or keep_tokens, not both"),
        ({"method": "nonsense"}, "'nonsense'"),
        ({"seed": 2**63}, "seed"),
    ],
)
def test_beyond_a_bound_is_refused_with_the_value(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidRequestError, match=words):
        chosen(**fields)


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return load_settings(
        runtime_dir=tmp_path_factory.mktemp("requests") / "run", max_upload_bytes=MAX_FILE, request_timeout_seconds=30
    )


def make_app(settings: Settings) -> FastAPI:
    app = FastAPI()
    install_error_handlers(app)

    @app.post("/")
    async def ask(request: Request) -> dict[str, object]:
        async with read_ask(request, settings) as inquiry:
            found = {field.name: getattr(inquiry, field.name) for field in dataclasses.fields(Inquiry)}
            video, (message,) = found.pop("video"), found.pop("messages")
            said = {name: value for name, value in found.items() if value != DEFAULTS[name]}
            content = video.file.read().decode("latin-1") if isinstance(video, SpooledFile) else str(video)
            return {"asked": message.text, **said, "video": content}

    return app


@pytest.fixture(scope="module")
def url(settings: Settings) -> Iterator[str]:
    with serve_asgi(make_app(settings)) as url:
        yield url


def error_of(response: httpx.Response, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    detail: dict[str, Any] = response.json()["error"]
    return detail


def test_json(url: str) -> None:
    body = {"question": "  Où? ", "file_id": "file-x", "keep_tokens": 3, "stream": True}
    assert httpx.post(url, json=body).json() == {
        "asked": "Où?",
        "keep_tokens": 3,
        "stream": True,
        "video": "StoredVideo(file_id='file-x')",
    }


def test_the_content_type_may_have_parameters_and_any_case(url: str) -> None:
    headers = {"content-type": "Application/JSON; charset=utf-8"}
    answer = httpx.post(url, content=b'{"question": "q", "video_url": "http://x/"}', headers=headers)
    assert answer.json() == {"asked": "q", "video": "RemoteVideo(url='http://x/')"}


def test_multipart_with_and_without_a_file(url: str) -> None:
    fields = {"question": "Où?", "keep_ratio": "0.5", "num_frames": "4", "stream": "true"}
    parsed = {"asked": "Où?", "keep_ratio": 0.5, "num_frames": 4, "stream": True}
    uploaded = httpx.post(url, data=fields, files={"file": ("a.mp4", b"the video")})
    assert uploaded.json() == {**parsed, "video": "the video"}
    named = httpx.post(url, data={**fields, "file_id": "file-x"}, files={"file": ("", b"")})
    assert named.json() == {**parsed, "video": "StoredVideo(file_id='file-x')"}


def test_form_fields_left_empty_count_as_not_given(url: str) -> None:
    answer = httpx.post(url, data={"question": "q", "keep_ratio": "", "file_id": ""}, files={"file": ("a", b"v")})
    assert answer.json() == {"asked": "q", "video": "v"}


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"file_id": "x"}, "question"),
        ({"question": " \n", "file_id": "x"}, "question"),
        ({"question": 3, "file_id": "x"}, "question"),
        ({"question": "q", "file_id": "x", "keep_ratio": 0}, "keep_ratio"),
        ({"question": "q", "file_id": "x", "keep_ratio": 1.01}, "keep_ratio"),
        ({"question": "q", "file_id": "x", "num_frames": 0}, "num_frames"),
        ({"question": "q", "file_id": "x", "num_frames": 1.5}, "num_frames"),
        ({"question": "q", "file_id": "x", "temperature": 2.5}, "temperature"),
        ({"question": "q", "file_id": "x", "seed": -1}, "seed"),
        ({"question": "q", "file_id": "x", "colour": "red"}, "colour"),
        ([], None),
        (None, None),
    ],
)
def test_a_field_at_fault_is_named(url: str, body: object, param: str | None) -> None:
    content, headers = json.dumps(body), {"content-type": "application/json"}
    detail = error_of(httpx.post(url, content=content, headers=headers), 400)
    assert (detail["code"], detail["param"]) == ("invalid_request", param)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b'{"question": "q", "file_id": "x"} {}',
        b"[" * 100_000,
        b'{"seed": ' + b"9" * 5000 + b"}",
        b'{"question": "\\ud800", "file_id": "x"}',
        b'{"question": "q", "file_id": "x", "\\ud800": 1}',
        b'{"question": "q", "file_id": "x", "temperature": NaN}',
        b'{"question": "q", "file_id": "x", "num_frames": Infinity}',
    ],
)
def test_bad_json_is_refused_with_the_reason(url: str, content: bytes) -> None:
    detail = error_of(httpx.post(url, content=content, headers={"content-type": "application/json"}), 400)
    assert detail["code"] == "invalid_request"
    assert len(detail["message"]) < 500


@pytest.mark.parametrize(
    ("body", "got"),
    [
        ({}, "none"),
        ({"file_id": ""}, "none"),
        ({"file_id": "x", "video_url": "http://x/"}, "file_id and video_url"),
    ],
)
def test_json_must_name_one_video(url: str, body: dict[str, str], got: str) -> None:
    detail = error_of(httpx.post(url, json={"question": "q", **body}), 400)
    assert detail["message"].startswith("name one video")
    assert detail["message"].endswith(f"got {got}")


def test_a_form_must_name_one_video(url: str) -> None:
    both = httpx.post(url, data={"question": "q", "file_id": "x"}, files={"file": ("a", b"v")})
    assert "got file and file_id" in error_of(both, 400)["message"]
    neither = httpx.post(url, data={"question": "q"}, files={"file": ("", b"")})
    assert "got none" in error_of(neither, 400)["message"]


@pytest.mark.parametrize("kind", ["text/plain", "", "application/x-www-form-urlencoded"])
def test_other_kinds_of_bodies_are_refused(url: str, kind: str) -> None:
    detail = error_of(httpx.post(url, content=b"question=q", headers={"content-type": kind}), 415)
    assert "application/json or multipart/form-data" in detail["message"]


def test_a_file_that_is_too_large_is_refused(url: str) -> None:
    answer = httpx.post(url, data={"question": "q"}, files={"file": ("a", b"x" * (MAX_FILE + 1))})
    assert error_of(answer, 413)["code"] == "payload_too_large"


def intake(settings: Settings) -> VideoIntake:
    return VideoIntake(settings, open_blob_store(settings))


async def test_a_stored_video_is_found_again_by_its_id(settings: Settings) -> None:
    desk = intake(settings)
    stored = await desk.put(io.BytesIO(b"video"), "a.mp4", ME)
    assert (stored.digest, stored.size_bytes, stored.filename, stored.owner) == (DIGEST, 5, "a.mp4", "me")
    assert await desk.store(StoredVideo(f"file-{DIGEST}"), ME) == stored
    with pytest.raises(VideoNotFoundError):
        await desk.store(StoredVideo(f"file-{DIGEST}"), Tenant("you", b""))


@pytest.mark.parametrize("file_id", [f"file-{'0' * 64}", DIGEST, "file-../../etc/passwd", "x"])
async def test_ids_of_nothing(settings: Settings, file_id: str) -> None:
    with pytest.raises(VideoNotFoundError):
        await intake(settings).store(StoredVideo(file_id), ME)


async def test_a_video_inside_the_request_is_stored_like_an_upload(settings: Settings) -> None:
    url = "data:video/mp4;base64," + base64.b64encode(b"video").decode()
    stored = await intake(settings).store(InlineVideo(url), ME)
    assert (stored.digest, stored.size_bytes, stored.owner) == (DIGEST, 5, "me")
    with pytest.raises(InvalidRequestError, match="base64"):
        await intake(settings).store(InlineVideo(url[:-1]), ME)
    large = "data:video/mp4;base64," + base64.b64encode(bytes(MAX_FILE + 1)).decode()
    with pytest.raises(PayloadTooLargeError, match=str(MAX_FILE)):  # the upload limit is the smaller one here
        await intake(settings).store(InlineVideo(large), ME)


async def test_a_video_is_fetched_from_an_allowed_address_only(settings: Settings, tmp_path: Path) -> None:
    def respond(handler: QuietHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "5")
        handler.end_headers()
        handler.wfile.write(b"video")

    with serve_http(respond) as port:
        address = f"http://127.0.0.1:{port}/clips/a.mp4"
        with pytest.raises(UrlNotAllowedError):
            await intake(settings).store(RemoteVideo(address), ME)
        opened = load_settings(
            runtime_dir=tmp_path / "run",
            video_url_allowed_hosts=(urlsplit(address).netloc,),
            video_url_allowed_networks=("127.0.0.0/8",),
        )
        stored = await intake(opened).store(RemoteVideo(address), ME)
    assert (stored.digest, stored.filename) == (DIGEST, "a.mp4")
