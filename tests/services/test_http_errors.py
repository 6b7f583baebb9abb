import inspect
import logging
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from pydantic import BaseModel, Field

from fastervlm_video import errors
from services.http_errors import ERROR_STATUSES, install_error_handlers, request_id_of, to_http

ERROR_CLASSES = [
    cls for _, cls in inspect.getmembers(errors, inspect.isclass) if issubclass(cls, errors.FasterVLMError)
]

EXPECTED = {
    "FasterVLMError": 500,
    "InvalidInputError": 400,
    "InvalidRequestError": 400,
    "UnsupportedParameterError": 400,
    "AuthenticationError": 401,
    "ModelNotFoundError": 404,
    "ContextLengthError": 400,
    "UrlNotAllowedError": 400,
    "UrlFetchError": 400,
    "VideoNotFoundError": 404,
    "MediaError": 422,
    "UnsupportedMediaError": 415,
    "NoVideoStreamError": 422,
    "CorruptMediaError": 422,
    "MediaLimitError": 422,
    "PayloadTooLargeError": 413,
    "CheckpointError": 500,
    "FingerprintMismatchError": 503,
    "TokenFormatError": 500,
    "OverloadedError": 429,
    "UnavailableError": 503,
    "StorageFullError": 507,
    "DeadlineExceededError": 504,
}


class Remote(Exception):  # noqa: N818 (it plays a remote process's wrapper)
    """Carries another exception, as Ray's task errors do."""

    def __init__(self, cause: object) -> None:
        super().__init__("Traceback (most recent call last): secret internals")
        self.cause = cause


class RemoteOverloaded(Remote, errors.OverloadedError):
    """A wrapper that is an instance of the wrapped class too."""


class Question(BaseModel):
    question: str
    keep_ratio: float = Field(default=0.1, gt=0, le=1)


def make_app() -> FastAPI:
    app = FastAPI()
    install_error_handlers(app)

    @app.post("/ask")
    async def ask(body: Question) -> str:
        return body.question

    @app.get("/fail/{name}")
    async def fail(name: str) -> None:
        if name == "zero":
            raise ZeroDivisionError("secret detail")
        if name == "remote":
            raise Remote(errors.VideoNotFoundError("no such file"))
        raise getattr(errors, name)(f"told about {name}")

    return app


async def request(method: str, path: str, **sent: Any) -> httpx.Response:
    transport = httpx.ASGITransport(make_app(), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        return await client.request(method, path, **sent)


def test_every_error_class_has_a_row_of_its_own_and_the_expected_status() -> None:
    assert {cls.__name__ for cls in ERROR_CLASSES} == set(EXPECTED)
    assert {cls.__name__: int(rule.status) for cls, rule in ERROR_STATUSES.items()} == EXPECTED


@pytest.mark.parametrize("cls", ERROR_CLASSES, ids=lambda cls: cls.__name__)
def test_an_error_of_each_class_as_http(cls: type[errors.FasterVLMError]) -> None:
    status, body, headers = to_http(cls("the reason"), request_id="r1")
    detail = body["error"]
    assert set(body) == {"error"}
    assert set(detail) == {"code", "message", "param", "type", "request_id"}
    assert status == EXPECTED[cls.__name__]
    assert detail["request_id"] == "r1"
    if status == 500:
        assert (detail["code"], "the reason" in detail["message"], "r1" in detail["message"]) == (
            "internal_error",
            False,
            True,
        )
    else:
        assert (detail["code"], detail["message"]) == (cls.code, "the reason")
    assert ("Retry-After" in headers) == (status in (429, 503))
    kind = "rate_limit_error" if status == 429 else "server_error" if status >= 500 else "invalid_request_error"
    assert detail["type"] == kind


def test_a_subclass_without_a_row_takes_its_bases() -> None:
    class Odd(errors.CorruptMediaError):
        code = "odd"

    status, body, _ = to_http(Odd("x"))
    assert (status, body["error"]["code"]) == (422, "odd")


def test_wrappers_are_opened_before_the_look_up() -> None:
    inner = errors.OverloadedError("full")
    for wrapped in (Remote(inner), Remote(Remote(inner)), RemoteOverloaded(inner)):
        status, body, headers = to_http(wrapped)
        assert (status, body["error"]["message"], headers) == (429, "full", {"Retry-After": "1"})


def test_a_wrapper_that_leads_nowhere_is_an_internal_error() -> None:
    endless = Remote(None)
    endless.cause = endless
    for wrapped in (endless, Remote("text"), Remote(KeyError("k"))):
        status, body, _ = to_http(wrapped)
        assert (status, body["error"]["code"]) == (500, "internal_error")
        assert "secret" not in str(body)


@pytest.mark.parametrize("name", sorted(EXPECTED))
async def test_errors_raised_in_a_route(name: str) -> None:
    response = await request("GET", f"/fail/{name}")
    assert response.status_code == EXPECTED[name]
    assert response.json()["error"]["request_id"]


async def test_an_unforeseen_error_says_nothing_but_its_request_id_and_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    response = await request("GET", "/fail/zero", headers={"x-request-id": "abc-1"})
    assert response.status_code == 500
    assert "secret" not in response.text
    assert "abc-1" in response.json()["error"]["message"]
    record = next(r for r in caplog.records if r.levelno == logging.ERROR)
    assert "abc-1" in record.getMessage()
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], ZeroDivisionError)


async def test_a_remote_error_in_a_route_keeps_its_status() -> None:
    response = await request("GET", "/fail/remote")
    assert (response.status_code, response.json()["error"]["message"]) == (404, "no such file")


@pytest.mark.parametrize(
    ("sent", "param", "words"),
    [
        ({"json": {}}, "question", ["question", "required"]),
        ({"json": {"question": "q", "keep_ratio": 3}}, "keep_ratio", ["keep_ratio", "less than or equal to 1", "3"]),
        ({"json": {"question": "q", "keep_ratio": "x" * 5000}}, "keep_ratio", ["keep_ratio", "…"]),
        ({"content": b"{nonsense", "headers": {"content-type": "application/json"}}, None, ["not valid JSON"]),
        ({"content": b"", "headers": {"content-type": "application/json"}}, None, ["required"]),
    ],
)
async def test_invalid_bodies_name_the_field(sent: dict[str, Any], param: str | None, words: list[str]) -> None:
    response = await request("POST", "/ask", **sent)
    detail = response.json()["error"]
    assert (response.status_code, detail["code"], detail["param"]) == (400, "invalid_request", param)
    assert len(detail["message"]) < 500
    for word in words:
        assert word in detail["message"]


async def test_unknown_routes_and_methods_have_the_same_shape() -> None:
    missing, wrong = await request("GET", "/nowhere"), await request("GET", "/ask")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "not_found")
    assert (wrong.status_code, wrong.json()["error"]["code"]) == (405, "method_not_allowed")
    assert wrong.headers["allow"] == "POST"


def test_request_ids_are_remembered_and_taken_over_only_if_harmless() -> None:
    scope = {"headers": [(b"x-request-id", b"good-id.1")]}
    assert request_id_of(scope) == "good-id.1"
    for bad in (b"", b"a b", b"<script>", b"x" * 129, b"\xff"):
        scope = {"headers": [(b"x-request-id", bad)]}
        made = request_id_of(scope)
        assert len(made) == 32
        assert made == request_id_of(scope)
