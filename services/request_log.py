"""ASGI middleware that sees every request end: it counts them, and gives each the id that it has in all logs."""

from http import HTTPStatus

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fastervlm_video.errors import FasterVLMError
from services.http_errors import error_code_of, request_id_of
from services.metrics import RequestMeter
from services.paths import ASK_PATH, CHAT_PATH, FILES_PATH

__all__ = ["RequestIdMiddleware", "RequestMeterMiddleware"]

_HEADER = "x-request-id"
_ROUTES = {ASK_PATH: "ask", CHAT_PATH: "chat", FILES_PATH: "files", "/v1/models": "models"}
_OTHER = "other"
_SUCCESS = "ok"
_LEFT = "client_left"


class RequestIdMiddleware:
    """Gives each request an id, or takes over the client's if it is harmless, and sends it back in ``X-Request-ID``.

    In the proxy it stands outside of everything else, so that what is refused there has an id, too, and Serve logs
    the same id as this project does.

    Args:
        app: what is wrapped.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection (ASGI)."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = request_id_of(scope)
        others = [(name, value) for name, value in scope["headers"] if name.lower() != _HEADER.encode()]
        scope["headers"] = [*others, (_HEADER.encode(), request_id.encode())]

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).setdefault(_HEADER, request_id)
            await send(message)

        await self._app(scope, receive, send_with_id)


class RequestMeterMiddleware:
    """Counts requests by route, status and error code when they end.

    Args:
        app: what is wrapped.
        only_refused: count only requests that were refused here, in this process, and not passed on.
    """

    def __init__(self, app: ASGIApp, *, only_refused: bool = False) -> None:
        self._app, self._only_refused = app, only_refused
        self._meter = RequestMeter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection (ASGI)."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status, ended = 0, False

        async def watched(message: Message) -> None:
            nonlocal status, ended
            status = message.get("status", status)
            ended = message["type"] == "http.response.body" and not message.get("more_body", False)
            await send(message)

        try:
            await self._app(scope, receive, watched)
        except Exception:  # becomes an answer further out, unless one has begun
            status, ended = status or HTTPStatus.INTERNAL_SERVER_ERROR.value, True
            raise
        finally:
            self._record(scope, status, ended=ended)

    def _record(self, scope: Scope, status: int, *, ended: bool) -> None:
        code = error_code_of(scope)
        if self._only_refused and code is None:
            return
        if code is None and not ended:
            code = _LEFT
        if code is None and status >= HTTPStatus.BAD_REQUEST:
            code = FasterVLMError.code
        shown = f"{status // 100}xx" if status else "none"
        self._meter.record(route=_route(scope), status=shown, code=code or _SUCCESS)


def _route(scope: Scope) -> str:
    path = scope["path"].removeprefix(scope.get("root_path", ""))
    return next((name for route, name in _ROUTES.items() if path == route or path.startswith(f"{route}/")), _OTHER)
