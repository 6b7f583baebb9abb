"""Bodies arrive whole, and no faster than they may."""

import time
from collections.abc import Iterator

import httpx
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from services.memory import release_freed_memory_soon
from services.pacing import PacingMiddleware
from tests.services.live import serve_asgi

KIB = 1024


async def _count(request: Request) -> PlainTextResponse:
    return PlainTextResponse(str(len(await request.body())))


def _body(kib: int) -> Iterator[bytes]:
    for _ in range(kib):
        yield bytes(KIB)


def test_a_body_is_let_in_at_the_given_rate() -> None:
    app = Starlette(routes=[Route("/", _count, methods=["POST"])])
    with serve_asgi(PacingMiddleware(app, bytes_per_second=2048 * KIB)) as url:
        begin = time.monotonic()
        assert httpx.post(url, content=_body(1), timeout=10).text == str(KIB)
        assert time.monotonic() - begin < 5
        begin = time.monotonic()
        assert httpx.post(url, content=_body(2048), timeout=30).text == str(2048 * KIB)
        assert time.monotonic() - begin > 0.8


async def test_giving_memory_back_is_safe_to_ask_for() -> None:
    release_freed_memory_soon()
