"""Requests as they are counted, and the id that each has; how numbers reach Prometheus is in tests/integration."""

import asyncio
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from starlette.types import ASGIApp, Message, Scope

from fastervlm_video.errors import OverloadedError
from services.http_errors import install_error_handlers, note_error_code, to_http
from services.metrics import RequestMeter
from services.request_log import RequestIdMiddleware, RequestMeterMiddleware


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, str]]:
    """(route, status, code) of each request that was counted."""
    found: list[tuple[str, str, str]] = []
    monkeypatch.setattr(RequestMeter, "record", lambda _, *, route, status, code: found.append((route, status, code)))
    return found


def make_app(*, only_refused: bool = False) -> FastAPI:
    app = FastAPI()
    install_error_handlers(app)
    app.add_middleware(RequestMeterMiddleware, only_refused=only_refused)

    @app.get("/v1/models/{name}")
    async def model(name: str) -> str:
        if name == "busy":
            raise OverloadedError("full")
        if name == "zero":
            raise ZeroDivisionError
        return name

    @app.get("/v1/ask")
    async def ask(needed: str) -> str:
        return needed

    return app


async def get(app: ASGIApp, path: str, **sent: Any) -> httpx.Response:
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        return await client.get(path, **sent)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/v1/models/mini", ("models", "2xx", "ok")),
        ("/v1/models/busy", ("models", "4xx", "overloaded")),
        ("/v1/models/zero", ("models", "5xx", "internal_error")),
        ("/v1/askew", ("other", "4xx", "not_found")),
        ("/v1/ask", ("ask", "4xx", "invalid_request")),
        ("/v1/files/file-12345", ("files", "4xx", "not_found")),
        ("/anything/else", ("other", "4xx", "not_found")),
    ],
)
async def test_each_request_is_counted_by_its_end(
    counted: list[tuple[str, str, str]], path: str, expected: tuple[str, str, str]
) -> None:
    await get(make_app(), path)
    assert counted == [expected]


async def test_a_proxy_counts_only_what_it_refuses(counted: list[tuple[str, str, str]]) -> None:
    app = make_app(only_refused=True)
    await get(app, "/v1/models/mini")
    assert not counted
    await get(app, "/v1/models/busy")
    assert counted == [("models", "4xx", "overloaded")]


async def run(app: ASGIApp, path: str = "/v1/ask") -> list[Message]:
    """One request at an ASGI application, without a client that would wait for its end."""
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)

    scope: Scope = {"type": "http", "method": "POST", "path": path, "headers": []}
    await app(scope, receive, send)
    return sent


async def test_a_client_that_leaves(counted: list[tuple[str, str, str]]) -> None:
    async def begins_and_is_left(scope: Scope, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"x", "more_body": True})

    async def is_cancelled(scope: Scope, receive: Any, send: Any) -> None:
        raise asyncio.CancelledError

    await run(RequestMeterMiddleware(begins_and_is_left))
    with pytest.raises(asyncio.CancelledError):
        await run(RequestMeterMiddleware(is_cancelled))
    assert counted == [("ask", "2xx", "client_left"), ("ask", "none", "client_left")]


async def test_a_stream_that_fails_in_the_middle_is_counted_by_its_error(counted: list[tuple[str, str, str]]) -> None:
    async def fails_late(scope: Scope, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        note_error_code(scope, to_http(OverloadedError("full")).body)
        await send({"type": "http.response.body", "body": b"x"})

    await run(RequestMeterMiddleware(fails_late))
    assert counted == [("ask", "2xx", "overloaded")]


async def test_other_connections_are_let_through(counted: list[tuple[str, str, str]]) -> None:
    passed: list[Scope] = []

    async def app(scope: Scope, receive: Any, send: Any) -> None:
        passed.append(scope)

    for middleware in (RequestMeterMiddleware(app), RequestIdMiddleware(app)):
        await middleware({"type": "lifespan"}, None, None)  # type: ignore[arg-type]
    assert passed == [{"type": "lifespan"}] * 2
    assert not counted


@pytest.mark.parametrize(("sent", "taken"), [("mine-1", True), ("x" * 200, False), ("a b", False), (None, False)])
async def test_ids_go_in_and_come_back(sent: str | None, taken: bool) -> None:
    seen: list[list[tuple[bytes, bytes]]] = []

    async def app(scope: Scope, receive: Any, send: Any) -> None:
        seen.append([item for item in scope["headers"] if item[0] == b"x-request-id"])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    response = await get(RequestIdMiddleware(app), "/", headers={} if sent is None else {"X-Request-ID": sent})
    request_id = response.headers["x-request-id"]
    assert seen == [[(b"x-request-id", request_id.encode())]]
    assert (request_id == sent) is taken
    assert taken or len(request_id) == 32


async def test_an_id_that_serve_has_sent_is_not_sent_twice() -> None:
    async def app(scope: Scope, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"x-request-id", b"mine")]})
        await send({"type": "http.response.body", "body": b""})

    response = await get(RequestIdMiddleware(app), "/", headers={"x-request-id": "mine"})
    assert response.headers.get_list("x-request-id") == ["mine"]
