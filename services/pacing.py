"""ASGI middleware that lets a request body in no faster than it can be dealt with further on.

Serve's proxy reads a body as fast as it arrives and queues it for a replica without limit: there is no
back-pressure between the two. Slowing the reading down here lets TCP slow the sender down, so that the
queue stays short and memory flat.
"""

import asyncio
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["PacingMiddleware"]

_BURST_SECONDS = 0.05


class PacingMiddleware:
    """Bounds the rate of every request body.

    Args:
        app: what is behind.
        bytes_per_second: the rate for one request, after a short burst.
    """

    def __init__(self, app: ASGIApp, *, bytes_per_second: int) -> None:
        self._app, self._bytes_per_second = app, bytes_per_second

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection (ASGI)."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begin, received_bytes = time.monotonic(), 0

        async def paced() -> Message:
            nonlocal received_bytes
            early_seconds = received_bytes / self._bytes_per_second - (time.monotonic() - begin)
            if early_seconds > _BURST_SECONDS:
                await asyncio.sleep(early_seconds)
            message = await receive()
            received_bytes += len(message.get("body", b""))
            return message

        await self._app(scope, paced, send)
