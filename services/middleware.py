"""ASGI middleware around all routes: a count of requests in progress."""

from collections.abc import Collection

from starlette.types import ASGIApp, Receive, Scope, Send

from fastervlm_video.errors import OverloadedError
from services.admission import Admission
from services.http_errors import error_response

__all__ = ["AdmissionMiddleware"]


class AdmissionMiddleware:
    """Refuses requests that make work while too many are in progress; a place is held until the response ends.

    Args:
        app: what is wrapped.
        admission: the count.
        paths: paths whose POST requests make work.
    """

    def __init__(self, app: ASGIApp, *, admission: Admission, paths: Collection[str]) -> None:
        self._app, self._admission, self._paths = app, admission, frozenset(paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection (ASGI)."""
        if scope["type"] != "http" or scope["method"] != "POST" or scope["path"] not in self._paths:
            await self._app(scope, receive, send)
            return
        try:
            place = self._admission.enter()
        except OverloadedError as exc:
            await error_response(exc, scope)(scope, receive, send)
            return
        with place:
            await self._app(scope, receive, send)
