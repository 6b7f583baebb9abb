"""ASGI middleware for Serve's proxy: what becomes of a request whose replica dies before it has answered.

Serve cannot repeat a request by itself, as it hands bodies on without keeping them, and ends it without any answer.
Small bodies are kept here until the answer begins, so that the request can be put to another replica::

    body ─▶ kept, handed on ─▶ replica dies ─▶ handed on again, to another one ─▶ answer
                                                               └── dies, too ─▶ 503, Retry-After
"""

import asyncio
import logging
from collections.abc import Collection

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fastervlm_video.errors import UnavailableError
from services.body_limit import DEFAULT_SMALL_LIMIT_BYTES
from services.http_errors import error_response

__all__ = ["LostReplicaMiddleware"]

logger = logging.getLogger(__name__)

_ATTEMPTS = 2
_PAUSE_SECONDS = 0.2
_SAFE_METHODS = frozenset({"GET", "HEAD"})


class LostReplicaMiddleware:
    """Repeats a request once if nobody has answered it, and answers 503 if that does not help.

    Args:
        app: Serve's proxy. It returns without a word if a replica has died.
        repeated_paths: paths whose POST requests change nothing that matters when they are made twice.
        kept_body_bytes: requests with larger bodies are not repeated.
    """

    def __init__(
        self, app: ASGIApp, *, repeated_paths: Collection[str], kept_body_bytes: int = DEFAULT_SMALL_LIMIT_BYTES
    ) -> None:
        self._app, self._kept_body_bytes = app, kept_body_bytes
        self._repeated_paths = tuple(repeated_paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection (ASGI)."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request, answered = _KeptRequest(receive, self._kept_body_bytes), False

        async def watched(message: Message) -> None:
            nonlocal answered
            answered = True
            await send(message)

        for attempt in range(1, _ATTEMPTS + 1):
            await self._app(dict(scope), request.receive, watched)
            if answered or request.client_left:
                return
            if attempt == _ATTEMPTS or not (request.is_kept and self._may_repeat(scope)):
                break
            logger.warning("%s %s: its replica has died, asking another one", scope["method"], scope["path"])
            request.rewind()
            await asyncio.sleep(_PAUSE_SECONDS)
        error = UnavailableError("the process that was to answer has ended; send the request again")
        await error_response(error, scope)(scope, receive, send)

    def _may_repeat(self, scope: Scope) -> bool:
        # Behind a route prefix the paths are the ends of what is asked for.
        return scope["method"] in _SAFE_METHODS or scope["path"].endswith(self._repeated_paths)


class _KeptRequest:
    """A request's messages, whose body is kept while it is small enough to be read again.

    Attributes:
        is_kept: whether all that was read so far can be read again.
        client_left: whether nobody waits for an answer any more.
    """

    def __init__(self, receive: Receive, limit_bytes: int) -> None:
        self._receive, self._limit_bytes = receive, limit_bytes
        self._body = bytearray()  # in one piece: messages may be as many as bytes
        self._ended, self._again = False, False
        self.is_kept, self.client_left = True, False

    def rewind(self) -> None:
        """Begin again with all that was read."""
        self._again = bool(self._body) or self._ended

    async def receive(self) -> Message:
        """The next message (ASGI)."""
        if self._again:
            self._again = False
            return {"type": "http.request", "body": bytes(self._body), "more_body": not self._ended}
        message = await self._receive()
        if message["type"] == "http.disconnect":
            self.client_left = True
        elif self.is_kept:
            self._keep(message)
        return message

    def _keep(self, message: Message) -> None:
        self._body += message.get("body", b"")
        self._ended = not message.get("more_body", False)
        self.is_kept = len(self._body) <= self._limit_bytes
        if not self.is_kept:
            self._body.clear()
