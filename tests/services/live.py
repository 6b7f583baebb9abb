"""Real servers on loopback, in threads, for tests that speak HTTP."""

import asyncio
import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import uvicorn
from starlette.types import ASGIApp

START_SECONDS = 20.0
PATIENCE_SECONDS = 30.0


def wait_until(condition: Callable[[], bool]) -> None:
    """Poll, for what happens in another thread and has no event to wait for."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@contextlib.contextmanager
def serve_asgi(app: ASGIApp) -> Iterator[str]:
    """Run an ASGI app under uvicorn; gives its base URL."""
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app, log_level="error", ws="none", lifespan="off", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listener])), daemon=True)
    thread.start()
    started = threading.Event()
    for _ in range(int(START_SECONDS / 0.02)):
        if server.started:
            break
        started.wait(0.02)
    assert server.started
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(START_SECONDS)
        listener.close()


class QuietHandler(BaseHTTPRequestHandler):
    """Calls ``self.server.respond(self)`` for every GET and logs nothing."""

    respond: Callable[["QuietHandler"], None]

    def do_GET(self) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            type(self).respond(self)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (its name in the base class)
        """Keep the test output clean."""


@contextlib.contextmanager
def serve_http(
    respond: Callable[[QuietHandler], None],
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    tls: ssl.SSLContext | None = None,
) -> Iterator[int]:
    """Run ``respond`` for every GET; gives the port."""
    handler = type("Handler", (QuietHandler,), {"respond": staticmethod(respond)})
    server = ThreadingHTTPServer((host, port), handler)
    server.daemon_threads = True
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join(START_SECONDS)
        server.server_close()
