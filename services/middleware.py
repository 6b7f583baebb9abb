"""ASGI middleware around all routes: a count of requests in progress."""

from collections.abc import Collection

from starlette.types import ASGIApp, Receive, Scope, Send

from fastervlm_video.errors import OverloadedError
from services.admission import Admission
from services.headers import content_length, media_type
from services.http_errors import error_response

__all__ = ["AdmissionMiddleware"]


class AdmissionMiddleware:
    """Refuses requests that make work while too many are in progress; a place is held until the response ends.

    Args:
        app: what is wrapped.
        admission: the count.
        paths: paths whose POST requests make work.
        content_type: only requests with this kind of body are counted; None counts all.
        larger_than_bytes: only requests with a body larger than this, or of unknown length, are counted.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        admission: Admission,
        paths: Collection[str],
        content_type: str | None = None,
        larger_than_bytes: int = -1,
    ) -> None:
        self._app, self._admission, self._paths = app, admission, frozenset(paths)
        self._content_type, self._larger_than_bytes = content_type, larger_than_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection (ASGI)."""
        if not self._counts(scope):
            await self._app(scope, receive, send)
            return
        try:
            place = self._admission.enter()
        except OverloadedError as exc:
            await error_response(exc, scope)(scope, receive, send)
            return
        with place:
            await self._app(scope, receive, send)

    def _counts(self, scope: Scope) -> bool:
        if scope["type"] != "http" or scope["method"] != "POST":
            return False
        if scope["path"].removeprefix(scope.get("root_path", "")) not in self._paths:
            return False
        length = content_length(scope)
        if length is not None and length <= self._larger_than_bytes:
            return False
        return self._content_type is None or media_type(scope) == self._content_type
