"""ASGI middleware that bounds request bodies before anything reads them.

Three limits: a small one for every request, the upload limit for multipart bodies on the upload paths, and one in
between for JSON bodies on paths that take a small video in them.
A ``Content-Length`` over the limit is answered with 413 at once, and the application never sees the request.
A body of unknown length is counted as it is read; when it exceeds the limit the client is answered 413 and the
application is told that the client is gone. Nothing is buffered, so memory stays flat whatever is sent.
"""

import asyncio
import logging
from collections.abc import Collection

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fastervlm_video.errors import PayloadTooLargeError
from services.headers import content_length, media_type
from services.http_errors import error_response
from services.inline import base64_chars
from services.memory import release_freed_memory_soon

__all__ = ["DEFAULT_SMALL_LIMIT_BYTES", "BodyLimitMiddleware"]

logger = logging.getLogger(__name__)

DEFAULT_SMALL_LIMIT_BYTES = 1024**2
_MULTIPART = "multipart/form-data"
_JSON = "application/json"
_LARGE_BYTES = 4 * 1024**2

# A server that closes a connection on which data is still arriving resets it, and the client may then lose
# the answer. So what still comes is read and thrown away for a moment, within both of these bounds.
_LINGER_SECONDS = 2.0
_LINGER_BYTES = 16 * 1024**2


class BodyLimitMiddleware:
    """Answers 413 to bodies that are too large.

    Args:
        app: what is protected. Put this outside of everything that reads bodies.
        upload_limit_bytes: largest file; a multipart body on an upload path may have this and one small
            limit more, for the other fields and the framing.
        upload_paths: paths on which files are uploaded; sub-paths are not included.
        inline_limit_bytes: largest video inside a JSON body on an inline path; the body may have what that takes
            in base64, and one small limit more.
        inline_paths: paths on which a video may come in JSON.
        small_limit_bytes: largest body of any other request.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        upload_limit_bytes: int,
        upload_paths: Collection[str],
        inline_limit_bytes: int = 0,
        inline_paths: Collection[str] = (),
        small_limit_bytes: int = DEFAULT_SMALL_LIMIT_BYTES,
    ) -> None:
        self._app = app
        self._upload_limit_bytes = upload_limit_bytes + small_limit_bytes
        self._upload_paths, self._inline_paths = frozenset(upload_paths), frozenset(inline_paths)
        self._inline_limit_bytes = base64_chars(inline_limit_bytes) + small_limit_bytes
        self._small_limit_bytes = small_limit_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection (ASGI)."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        limit_bytes = self._limit_for(scope)
        declared_bytes = content_length(scope)
        if declared_bytes is not None and declared_bytes > limit_bytes:
            await _begin_refusal(scope, send, limit_bytes, f"{declared_bytes}")
            await _end_refusal(receive, send)
            return
        await _Counted(scope, receive, send, limit_bytes).run(self._app)

    def _limit_for(self, scope: Scope) -> int:
        content_type = media_type(scope)
        root = scope.get("root_path", "")
        path = scope["path"].removeprefix(root) if root else scope["path"]
        if content_type == _MULTIPART and path in self._upload_paths:
            return self._upload_limit_bytes
        if content_type == _JSON and path in self._inline_paths:
            return self._inline_limit_bytes
        return self._small_limit_bytes


class _Counted:
    """One request whose body is counted as the application reads it."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, limit_bytes: int) -> None:
        self._scope, self._receive, self._send = scope, receive, send
        self._limit_bytes = limit_bytes
        self._seen_bytes = 0
        self._exceeded = False
        self._answered = False
        self._refused = False

    async def run(self, app: ASGIApp) -> None:
        try:
            await app(self._scope, self.receive, self.send)
        except Exception as exc:
            if not self._refused:
                raise
            logger.info("the application gave up a request whose body was cut: %r", exc)
        finally:
            if self._seen_bytes > _LARGE_BYTES:
                release_freed_memory_soon()
        if self._refused:
            await _end_refusal(self._receive, self._send)

    async def receive(self) -> Message:
        if self._exceeded:
            return {"type": "http.disconnect"}
        message = await self._receive()
        if message["type"] == "http.request":
            self._seen_bytes += len(message.get("body", b""))
            if self._seen_bytes > self._limit_bytes:
                await self._cut()
                return {"type": "http.disconnect"}
        return message

    async def send(self, message: Message) -> None:
        if not self._refused:  # else: whatever the application makes of the cut body, the answer is 413
            self._answered = True
            await self._send(message)

    async def _cut(self) -> None:
        self._exceeded = True
        if self._answered:
            logger.warning("a body of more than %d bytes was cut while it was being answered", self._limit_bytes)
            return
        self._refused = True
        await _begin_refusal(self._scope, self._send, self._limit_bytes, "more")


async def _begin_refusal(scope: Scope, send: Send, limit_bytes: int, got: str) -> None:
    """Send all of a 413, but leave the response open: servers read no more from the client once it has ended."""
    error = PayloadTooLargeError(
        f"the request body may have at most {limit_bytes} bytes, got {got}; send a smaller one"
    )
    response = error_response(error, scope)
    response.headers["connection"] = "close"
    await send({"type": "http.response.start", "status": response.status_code, "headers": response.raw_headers})
    await send({"type": "http.response.body", "body": response.body, "more_body": True})


async def _end_refusal(receive: Receive, send: Send) -> None:
    await _discard(receive)
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _discard(receive: Receive) -> None:
    discarded_bytes = 0
    try:
        async with asyncio.timeout(_LINGER_SECONDS):
            while discarded_bytes < _LINGER_BYTES:
                message = await receive()
                if message["type"] != "http.request" or not message.get("more_body", False):
                    return
                discarded_bytes += len(message.get("body", b""))
    except TimeoutError:
        logger.info("a client went on sending a refused body for %.0f s; its connection is closed", _LINGER_SECONDS)
