import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from fastervlm_video.errors import OverloadedError
from services.admission import Admission
from services.middleware import AdmissionMiddleware
from tests.services.live import serve_asgi, wait_until

LIMIT = 3
WORK = "/work"


def test_places_are_counted_and_given_back() -> None:
    admission = Admission(2)
    first, second = admission.enter(), admission.enter()
    assert admission.in_progress == 2
    with pytest.raises(OverloadedError, match="2 requests are in progress"):
        admission.enter()
    with first:
        pass
    assert admission.in_progress == 1
    with pytest.raises(ZeroDivisionError), second:
        raise ZeroDivisionError
    assert admission.in_progress == 0


class Server:
    """A server whose work waits for ``gate``; what it does is the request's query string."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.admission = Admission(LIMIT)
        self.url = ""

    async def work(self, request: Request) -> Response:
        if request.url.query == "stream":
            return StreamingResponse(self._endless())
        if request.url.query == "read":
            await request.body()
        await asyncio.to_thread(self.gate.wait, 30)
        if request.url.query == "fail":
            raise ZeroDivisionError
        return PlainTextResponse("done")

    async def _endless(self) -> AsyncIterator[bytes]:
        while not self.gate.is_set():
            yield b"piece "
            await asyncio.sleep(0.01)

    def asgi(self) -> AdmissionMiddleware:
        async def free(_: Request) -> Response:
            return PlainTextResponse("free")

        inner = Starlette(
            routes=[Route(WORK, self.work, methods=["POST"]), Route("/{path:path}", free, methods=["GET", "POST"])]
        )
        return AdmissionMiddleware(inner, admission=self.admission, paths=[WORK])

    def wait_for(self, in_progress: int) -> None:
        wait_until(lambda: self.admission.in_progress == in_progress)

    def post(self, query: str = "") -> httpx.Response:
        return httpx.post(f"{self.url}{WORK}?{query}", timeout=30)

    def connect(self) -> socket.socket:
        address = urlsplit(self.url)
        assert address.hostname is not None
        assert address.port is not None
        return socket.create_connection((address.hostname, address.port), timeout=10)


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    with serve_asgi(server.asgi()) as server.url:
        yield server
        server.gate.set()
        server.wait_for(0)


def test_one_too_many_is_refused_at_once_and_says_when_to_come_back(server: Server) -> None:
    with ThreadPoolExecutor(LIMIT) as clients:
        waiting = [clients.submit(server.post) for _ in range(LIMIT)]
        server.wait_for(LIMIT)
        refused = server.post()
        assert refused.status_code == 429
        assert refused.headers["retry-after"] == str(OverloadedError.retry_after_seconds)
        assert refused.json()["error"]["code"] == "overloaded"
        assert f"{LIMIT} requests" in refused.json()["error"]["message"]
        assert server.admission.in_progress == LIMIT
        server.gate.set()
        assert [answer.result().text for answer in waiting] == ["done"] * LIMIT
    server.wait_for(0)
    assert server.post().text == "done"


def test_only_posts_to_the_named_paths_are_counted(server: Server) -> None:
    with ThreadPoolExecutor(LIMIT) as clients:
        waiting = [clients.submit(server.post) for _ in range(LIMIT)]
        server.wait_for(LIMIT)
        assert httpx.get(f"{server.url}{WORK}").status_code == 200
        for path in ("/other", f"{WORK}/", "/"):
            assert httpx.post(f"{server.url}{path}").text == "free"
        assert server.post().status_code == 429
        server.gate.set()
        assert all(answer.result().is_success for answer in waiting)


def test_a_failure_gives_its_place_back(server: Server) -> None:
    server.gate.set()
    for _ in range(LIMIT + 1):
        assert server.post("fail").status_code == 500
    server.wait_for(0)


def test_a_client_that_leaves_mid_stream_gives_its_place_back(server: Server) -> None:
    for _ in range(LIMIT + 1):
        with httpx.stream("POST", f"{server.url}{WORK}?stream") as answer:
            pieces = answer.iter_bytes()  # held on to, for the connection goes with it
            assert next(pieces).startswith(b"piece")
            assert server.admission.in_progress == 1
        server.wait_for(0)


def test_a_client_that_leaves_before_its_body_is_sent_gives_its_place_back(server: Server) -> None:
    with server.connect() as client:
        client.sendall(f"POST {WORK}?read HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nonly this".encode())
        server.wait_for(1)
    server.wait_for(0)


async def counted(headers: dict[str, str], **options: Any) -> bool:
    """Whether a request with these headers takes a place, of which there is none."""
    passed = []

    async def inner(scope: object, receive: object, send: object) -> None:
        passed.append(scope)

    async def receive() -> dict[str, object]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: object) -> None:
        pass

    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "method": "POST", "path": WORK, "headers": raw}
    await AdmissionMiddleware(inner, admission=Admission(0), paths=[WORK], **options)(scope, receive, send)
    return not passed


@pytest.mark.parametrize(
    ("headers", "counts"),
    [
        ({"content-length": "100"}, False),
        ({"content-length": "101"}, True),
        ({"transfer-encoding": "chunked"}, True),
        ({"content-length": "nonsense"}, True),
    ],
)
async def test_small_bodies_may_go_uncounted(headers: dict[str, str], counts: bool) -> None:
    assert await counted(headers, larger_than_bytes=100) is counts
    assert await counted(headers) is True


async def test_what_is_not_http_passes() -> None:
    seen = []

    async def inner(scope: object, receive: object, send: object) -> None:
        seen.append(scope)

    async def unused() -> dict[str, object]:
        return {}

    async def unsent(message: object) -> None:
        pytest.fail("nothing is to be sent")

    await AdmissionMiddleware(inner, admission=Admission(0), paths=[WORK])({"type": "lifespan"}, unused, unsent)
    assert seen == [{"type": "lifespan"}]
