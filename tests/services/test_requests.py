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

from fastervlm_video.config import DEFAULT_METHOD, FrameSampling, Medium, PruneSpec, SamplingParams
from fastervlm_video.errors import (
    InvalidRequestError,
    PayloadTooLargeError,
    UnsupportedMediaError,
    UrlNotAllowedError,
    VideoNotFoundError,
)
from fastervlm_video.language import Message
from fastervlm_video.prune import get_method, method_names, registry
from services.http_errors import install_error_handlers
from services.inquiry import Choices, FileSource, InlineFile, Inquiry, RemoteFile, StoredFile, check_medium, choose
from services.live import LiveConfig
from services.requests import FileIntake, read_ask
from services.settings import Settings, load_settings
from services.stored_blob import StoredBlob
from services.stores import open_blob_store
from services.tenants import Tenant
from services.uploads import SpooledFile
from tests.services.live import QuietHandler, serve_asgi, serve_http

PATCHES = 64
MAX_FILE = 1024**2
DEFAULTS = {field.name: field.default for field in dataclasses.fields(Inquiry)}
ME = Tenant("me", b"")
DIGEST = hashlib.sha256(b"video").hexdigest()
PNG = b"\x89PNG\r\n\x1a\n" + bytes(40)
PNG_DIGEST = hashlib.sha256(PNG).hexdigest()
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
    return choose(Inquiry((Message("user", question),), StoredFile(f"file-{DIGEST}"), **fields), live, PATCHES)


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
    with pytest.raises(InvalidRequestError, match="'unbounded' keeps a number of tokens that depends on what is seen"):
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
            source, (message,) = found.pop("source"), found.pop("messages")
            said = {name: value for name, value in found.items() if value != DEFAULTS[name]}
            content = source.file.read().decode("latin-1") if isinstance(source, SpooledFile) else str(source)
            return {"asked": message.text, **said, "source": content}

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
        "source": "StoredFile(file_id='file-x', said_to_be=None)",
    }


def test_the_content_type_may_have_parameters_and_any_case(url: str) -> None:
    headers = {"content-type": "Application/JSON; charset=utf-8"}
    answer = httpx.post(url, content=b'{"question": "q", "video_url": "http://x/"}', headers=headers)
    assert answer.json() == {"asked": "q", "source": "RemoteFile(url='http://x/', said_to_be=<Medium.VIDEO: 'video'>)"}


def test_multipart_with_and_without_a_file(url: str) -> None:
    fields = {"question": "Où?", "keep_ratio": "0.5", "num_frames": "4", "stream": "true"}
    parsed = {"asked": "Où?", "keep_ratio": 0.5, "num_frames": 4, "stream": True}
    uploaded = httpx.post(url, data=fields, files={"file": ("a.mp4", b"the video")})
    assert uploaded.json() == {**parsed, "source": "the video"}
    named = httpx.post(url, data={**fields, "file_id": "file-x"}, files={"file": ("", b"")})
    assert named.json() == {**parsed, "source": "StoredFile(file_id='file-x', said_to_be=None)"}


def test_form_fields_left_empty_count_as_not_given(url: str) -> None:
    answer = httpx.post(url, data={"question": "q", "keep_ratio": "", "file_id": ""}, files={"file": ("a", b"v")})
    assert answer.json() == {"asked": "q", "source": "v"}


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
        ({"video_url": "http://x/", "image_url": "http://x/"}, "video_url and image_url"),
    ],
)
def test_json_must_name_one_file(url: str, body: dict[str, str], got: str) -> None:
    detail = error_of(httpx.post(url, json={"question": "q", **body}), 400)
    assert detail["message"].startswith("name one video")
    assert detail["message"].endswith(f"got {got}")


def test_an_object_of_very_many_names_is_refused_before_any_of_them_is_looked_at(url: str) -> None:
    names = {f"unknown{at}": 0 for at in range(300)}
    for body in (names, {"question": "q", "file_id": names}):
        error = error_of(httpx.post(url, json=body), 400)
        assert error["message"] == "an object of the JSON body has 300 names; 256 are the most"


def test_a_form_must_name_one_file(url: str) -> None:
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


def test_a_picture_may_be_named_where_a_video_may(url: str) -> None:
    source = "RemoteFile(url='http://x/', said_to_be=<Medium.IMAGE: 'image'>)"
    fields = {"question": "q", "image_url": "http://x/"}
    for answer in (httpx.post(url, json=fields), httpx.post(url, data=fields, files={"file": ("", b"")})):
        assert answer.json() == {"asked": "q", "source": source}


def test_frames_of_a_picture_are_refused() -> None:
    asked = Inquiry((Message("user", "What?"),), StoredFile("x"), num_frames=2)
    check_medium(asked, Medium.VIDEO)
    check_medium(replace(asked, num_frames=None), Medium.IMAGE)
    with pytest.raises(InvalidRequestError, match="num_frames=2 came with a picture") as caught:
        check_medium(asked, Medium.IMAGE)
    assert caught.value.param == "num_frames"


def intake(settings: Settings) -> FileIntake:
    return FileIntake(settings, open_blob_store(settings))


class Check:
    """Remembers what a file was said to be; refuses it if told so."""

    def __init__(self, *, refuses: bool = False) -> None:
        self.seen: list[Medium] = []
        self._refuses = refuses

    def __call__(self, medium: Medium) -> None:
        self.seen.append(medium)
        if self._refuses:
            raise InvalidRequestError("no")


async def stored(desk: FileIntake, source: FileSource) -> StoredBlob:
    """As a route has it stored; the medium that was checked is the one that is stored."""
    check = Check()
    blob = await desk.store(source, ME, check)
    assert [medium.value for medium in check.seen] == [blob.medium]
    return blob


def inline(content: bytes, kind: str, medium: Medium) -> InlineFile:
    return InlineFile(f"data:{kind};base64," + base64.b64encode(content).decode(), medium)


def spooled(content: bytes) -> SpooledFile:
    file = io.BytesIO(content)
    file.seek(0, io.SEEK_END)  # wherever it stands, all of it is meant
    return SpooledFile(file, "a", len(content))


async def test_a_stored_file_is_found_again_by_its_id(settings: Settings) -> None:
    desk = intake(settings)
    blob = await desk.put(io.BytesIO(b"video"), "a.mp4", ME)
    assert (blob.digest, blob.size_bytes, blob.filename, blob.owner) == (DIGEST, 5, "a.mp4", "me")
    assert await stored(desk, StoredFile(f"file-{DIGEST}")) == blob
    with pytest.raises(VideoNotFoundError):
        await desk.store(StoredFile(f"file-{DIGEST}"), Tenant("you", b""), Check())


@pytest.mark.parametrize("file_id", [f"file-{'0' * 64}", DIGEST, "file-../../etc/passwd", "x"])
async def test_ids_of_nothing(settings: Settings, file_id: str) -> None:
    with pytest.raises(VideoNotFoundError):
        await intake(settings).store(StoredFile(file_id), ME, Check())


async def test_a_file_inside_the_request_is_stored_like_an_upload(settings: Settings) -> None:
    desk, source = intake(settings), inline(b"video", "video/mp4", Medium.VIDEO)
    blob = await stored(desk, source)
    assert (blob.digest, blob.size_bytes, blob.owner, blob.medium) == (DIGEST, 5, "me", "video")
    assert (await stored(desk, inline(PNG, "image/png", Medium.IMAGE))).filename == "inline picture"
    with pytest.raises(InvalidRequestError, match="base64"):
        await desk.store(replace(source, url=source.url[:-1]), ME, Check())
    with pytest.raises(PayloadTooLargeError, match=str(MAX_FILE)):  # the upload limit is the smaller one here
        await desk.store(inline(bytes(MAX_FILE + 1), "video/mp4", Medium.VIDEO), ME, Check())


async def test_an_upload_is_what_its_content_says(settings: Settings) -> None:
    for content, medium in ((b"video", "video"), (PNG, "image")):
        blob = await stored(intake(settings), spooled(content))
        assert (blob.medium, blob.size_bytes) == (medium, len(content))


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (inline(PNG, "application/octet-stream", Medium.VIDEO), "`video_url` names a picture.* in `image_url`"),
        (inline(PNG, "video/mp4", Medium.VIDEO), "`video_url` names a picture"),
        (
            inline(b"video", "image/png", Medium.IMAGE),
            "`image_url` names no JPEG, PNG or WebP picture.* in `video_url`",
        ),
        (StoredFile(f"file-{PNG_DIGEST}", Medium.VIDEO), "`video_url` names a picture"),
        (StoredFile(f"file-{DIGEST}", Medium.IMAGE), "`image_url` names no"),
    ],
)
async def test_what_is_named_in_the_others_field_is_refused(settings: Settings, source: FileSource, words: str) -> None:
    desk = intake(settings)
    for content in (PNG, b"video"):
        await desk.put(io.BytesIO(content), "a", ME)
    with pytest.raises(UnsupportedMediaError, match=words) as caught:
        await desk.store(source, ME, Check())
    assert f"`{caught.value.param}` names" in caught.value.message


@pytest.mark.parametrize(
    ("source", "medium"),
    [
        (inline(b"never seen", "video/mp4", Medium.VIDEO), Medium.VIDEO),
        (inline(PNG + b"never seen", "image/png", Medium.IMAGE), Medium.IMAGE),
        (spooled(b"never seen"), Medium.VIDEO),
        (spooled(PNG + b"never seen"), Medium.IMAGE),
        (RemoteFile("http://nowhere.invalid/", Medium.IMAGE), Medium.IMAGE),
    ],
    ids=["video in line", "picture in line", "video", "picture", "picture elsewhere"],
)
async def test_what_is_refused_is_not_stored(tmp_path: Path, source: FileSource, medium: Medium) -> None:
    settings = load_settings(runtime_dir=tmp_path / "run")
    check, desk = Check(refuses=True), intake(settings)
    with pytest.raises(InvalidRequestError, match="no"):
        await desk.store(source, ME, check)
    assert check.seen == [medium]
    assert open_blob_store(settings).used_bytes() == 0


async def test_a_file_is_fetched_from_an_allowed_address_only(settings: Settings, tmp_path: Path) -> None:
    contents = {"/clips/a.mp4": b"video", "/a.png": PNG}

    def respond(handler: QuietHandler) -> None:
        content = contents[handler.path]
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content)

    with serve_http(respond) as port:
        address = f"http://127.0.0.1:{port}"
        video = RemoteFile(f"{address}/clips/a.mp4", Medium.VIDEO)
        with pytest.raises(UrlNotAllowedError):
            await intake(settings).store(video, ME, Check())
        opened = load_settings(
            runtime_dir=tmp_path / "run",
            video_url_allowed_hosts=(urlsplit(address).netloc,),
            video_url_allowed_networks=("127.0.0.0/8",),
        )
        desk = intake(opened)
        blob = await stored(desk, video)
        assert (blob.digest, blob.filename) == (DIGEST, "a.mp4")
        picture = RemoteFile(f"{address}/a.png", Medium.IMAGE)
        for source in (replace(video, said_to_be=Medium.IMAGE), replace(picture, said_to_be=Medium.VIDEO)):
            with pytest.raises(UnsupportedMediaError):
                await desk.store(source, ME, Check())
        assert (await stored(desk, picture)).digest == PNG_DIGEST
