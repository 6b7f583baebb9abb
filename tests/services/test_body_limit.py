import asyncio
import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI, Request
from pydantic import BaseModel
from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive, Scope, Send

from services.body_limit import BodyLimitMiddleware
from services.http_errors import install_error_handlers
from tests.services.live import serve_asgi

SMALL = 1000
UPLOAD = 50_000
INLINE = 10_000  # bytes, of which each three take four characters
MIB = 1024**2
MULTIPART = {"content-type": "multipart/form-data; boundary=b"}


class Body(BaseModel):
    text: str


class Seen:
    """How many body bytes reached the application, and whether it was called."""

    def __init__(self) -> None:
        self.calls = 0
        self.body_bytes = 0


def make_app(seen: Seen, upload_limit_bytes: int = UPLOAD) -> BodyLimitMiddleware:
    app = FastAPI()
    install_error_handlers(app)

    @app.post("/v1/files")
    async def files(request: Request) -> int:
        seen.calls += 1
        async for chunk in request.stream():
            seen.body_bytes += len(chunk)
        return seen.body_bytes

    @app.post("/json")
    async def ask(body: Body) -> int:
        return len(body.text)

    @app.post("/swallow")
    async def swallow(request: Request) -> str:
        try:
            await request.body()
        except ClientDisconnect as exc:
            return f"swallowed {type(exc).__name__}"
        return "all"

    @app.post("/inline")
    async def inline(request: Request) -> int:
        return len(await request.body())

    @app.post("/unread")
    async def unread() -> str:
        return "fine"

    return BodyLimitMiddleware(
        app,
        upload_limit_bytes=upload_limit_bytes,
        upload_paths={"/v1/files"},
        inline_limit_bytes=INLINE,
        inline_paths={"/inline"},
        small_limit_bytes=SMALL,
    )


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with serve_asgi(make_app(Seen())) as url:
        yield url


def chunks(total_bytes: int, chunk_bytes: int = 500) -> Iterator[bytes]:
    for start in range(0, total_bytes, chunk_bytes):
        yield b"x" * min(chunk_bytes, total_bytes - start)


def assert_refused(response: httpx.Response) -> None:
    assert response.status_code == 413
    assert response.json()["error"]["code"] == "payload_too_large"
    assert response.headers["connection"] == "close"


@pytest.mark.parametrize("chunked", [False, True], ids=["content-length", "chunked"])
@pytest.mark.parametrize(
    ("path", "headers", "limit"),
    [
        ("/v1/files", MULTIPART, UPLOAD + SMALL),
        ("/v1/files", {"content-type": "Multipart/Form-Data;boundary=b"}, UPLOAD + SMALL),
        ("/v1/files", {"content-type": "application/json"}, SMALL),
        ("/v1/files", {"content-type": "multipart/form-datax"}, SMALL),
        ("/v1/files", {}, SMALL),
        ("/unread", MULTIPART, SMALL),
        ("/inline", {"content-type": "application/json"}, 13_336 + SMALL),
        ("/inline", MULTIPART, SMALL),
        ("/inline", {}, SMALL),
    ],
)
def test_each_path_and_kind_has_its_limit_to_the_byte(
    server: str, path: str, headers: dict[str, str], limit: int, chunked: bool
) -> None:
    def post(size_bytes: int) -> httpx.Response:
        content = chunks(size_bytes) if chunked else b"x" * size_bytes
        return httpx.post(server + path, content=content, headers=headers)

    assert post(limit).status_code == 200
    if path != "/unread" or not chunked:  # a body of unknown length that nobody reads does no harm
        assert_refused(post(limit + 1))


def test_a_declared_length_over_the_limit_never_reaches_the_application() -> None:
    seen = Seen()
    with serve_asgi(make_app(seen)) as url:
        assert_refused(httpx.post(f"{url}/v1/files", content=b"x" * (UPLOAD + SMALL + 1), headers=MULTIPART))
    assert seen.calls == 0


def test_a_declared_length_is_refused_without_waiting_for_the_body(server: str) -> None:
    host, port = re.findall(r"//(.+):(\d+)", server)[0]
    with socket.create_connection((host, int(port)), timeout=10) as client:
        client.sendall(b"POST /v1/files HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n")
        answer = client.recv(65536)
    assert answer.startswith(b"HTTP/1.1 413 ")


def test_a_client_that_first_sends_everything_is_not_cut_off(server: str) -> None:
    host, port = re.findall(r"//(.+):(\d+)", server)[0]
    with socket.create_connection((host, int(port)), timeout=10) as client:
        client.sendall(f"POST /v1/files HTTP/1.1\r\nHost: x\r\nContent-Length: {MIB}\r\n\r\n".encode())
        assert client.recv(16, socket.MSG_PEEK).startswith(b"HTTP/1.1 413")  # refused already
        for _ in range(MIB // 65536):
            client.sendall(b"x" * 65536)
            time.sleep(0.002)
        received = b""
        while piece := client.recv(65536):
            received += piece
    assert b"payload_too_large" in received


def test_json_routes_of_the_framework_get_413_and_not_its_400(server: str) -> None:
    body = json.dumps({"text": "x" * SMALL}).encode()
    headers = {"content-type": "application/json"}
    assert_refused(httpx.post(f"{server}/json", content=iter([body[:10], body[10:]]), headers=headers))
    assert httpx.post(f"{server}/json", json={"text": "x" * (SMALL // 2)}).json() == SMALL // 2


def test_an_application_that_swallows_the_cut_still_answers_413(server: str) -> None:
    assert_refused(httpx.post(f"{server}/swallow", content=chunks(SMALL + 1)))
    assert httpx.post(f"{server}/swallow", content=chunks(SMALL)).json() == "all"


def test_an_answer_that_has_begun_is_broken_off() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"10")]})
        await send({"type": "http.response.body", "body": b"begun", "more_body": True})
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            more = message["more_body"]
        await send({"type": "http.response.body", "body": b"ended"})

    limited = BodyLimitMiddleware(app, upload_limit_bytes=1, upload_paths=(), small_limit_bytes=SMALL)
    with serve_asgi(limited) as url:
        assert httpx.post(url, content=chunks(SMALL)).text == "begunended"
        # Which of the two a client sees depends on whether it is still sending.
        with pytest.raises((httpx.RemoteProtocolError, httpx.ReadError)):
            httpx.post(url, content=chunks(SMALL * 3))


def test_a_huge_chunked_upload_is_cut_with_flat_memory() -> None:
    seen, limit_bytes, offered_bytes = Seen(), 4 * MIB, 200 * MIB
    with serve_asgi(make_app(seen, limit_bytes)) as url:
        before = _resident_bytes()
        peak, stop = [before], threading.Event()

        def watch() -> None:
            while not stop.wait(0.01):
                peak[0] = max(peak[0], _resident_bytes())

        watcher = threading.Thread(target=watch)
        watcher.start()
        block = b"x" * MIB
        try:
            response = httpx.post(
                f"{url}/v1/files", content=(block for _ in range(offered_bytes // MIB)), headers=MULTIPART, timeout=60
            )
        finally:
            stop.set()
            watcher.join()
    assert_refused(response)
    assert limit_bytes // 2 < seen.body_bytes <= limit_bytes + SMALL
    assert peak[0] - before < 32 * MIB


def test_a_client_that_stalls_after_the_refusal_is_let_go(server: str) -> None:
    host, port = re.findall(r"//(.+):(\d+)", server)[0]
    with socket.create_connection((host, int(port)), timeout=20) as client:
        client.sendall(b"POST /v1/files HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        client.sendall(b"7d0\r\n" + b"x" * 2000 + b"\r\n")
        received = b""
        while piece := client.recv(65536):  # ends only when the server closes
            received += piece
    assert received.startswith(b"HTTP/1.1 413 ")


async def test_the_answer_does_not_wait_for_an_application_that_goes_on_working() -> None:
    sent: list[Message] = []
    reached, release = asyncio.Event(), asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        assert (await receive())["type"] == "http.disconnect"
        assert (await receive())["type"] == "http.disconnect"
        reached.set()
        await release.wait()
        raise RuntimeError("too late")

    async def receive() -> Message:
        return {"type": "http.request", "body": b"x" * (SMALL + 1), "more_body": False}

    async def send(message: Message) -> None:
        sent.append(message)

    middleware = BodyLimitMiddleware(app, upload_limit_bytes=1, upload_paths=(), small_limit_bytes=SMALL)
    scope: Scope = {"type": "http", "method": "POST", "path": "/", "headers": []}
    running = asyncio.ensure_future(middleware(scope, receive, send))
    await reached.wait()
    assert sent[0]["status"] == 413
    assert int(dict(sent[0]["headers"])[b"content-length"]) == len(sent[1]["body"])
    release.set()
    await running
    assert [message.get("more_body") for message in sent] == [None, True, False]


async def test_other_kinds_of_connections_pass_untouched() -> None:
    seen: list[str] = []

    async def app(scope: object, receive: object, send: object) -> None:
        seen.append("called")

    async def nothing(*args: object) -> dict[str, object]:
        await asyncio.sleep(0)
        return {}

    middleware = BodyLimitMiddleware(app, upload_limit_bytes=1, upload_paths=())
    await middleware({"type": "lifespan"}, nothing, nothing)  # type: ignore[arg-type]
    assert seen == ["called"]


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * 4096
