"""How errors leave the service: one table from error classes to HTTP statuses, and one body shape.

The body is a superset of OpenAI's::

    {"error": {"code": "not_found", "message": "…", "param": null, "type": "invalid_request_error",
               "request_id": "…"}}

``code`` is stable and comes from the error class. A status of 500 means a fault of ours: its message says
nothing but the request id, and the details go to the log.
"""

import logging
import re
import uuid
from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, NamedTuple

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse

from fastervlm_video import errors

__all__ = [
    "ERROR_STATUSES",
    "ErrorDetail",
    "ErrorResponse",
    "ErrorRule",
    "HttpError",
    "error_code_of",
    "error_response",
    "error_responses",
    "install_error_handlers",
    "note_error_code",
    "request_id_of",
    "to_http",
]

logger = logging.getLogger(__name__)

_MAX_CAUSES = 8
_MAX_SHOWN_PROBLEMS = 5
_MAX_SHOWN_VALUE_CHARS = 80
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")


class ErrorDetail(BaseModel):
    """What went wrong, for programs (``code``, ``param``, ``type``) and for people (``message``)."""

    code: str = Field(description="Stable name of the error.", examples=["invalid_request"])
    message: str = Field(description="What was wrong, and what to do.")
    param: str | None = Field(default=None, description="The request field that is at fault, if one is.")
    type: str = Field(description="Family of the error.", examples=["invalid_request_error"])
    request_id: str | None = Field(default=None, description="Quote this when reporting a problem.")


class ErrorResponse(BaseModel):
    """Body of every answer whose status is 400 or above."""

    error: ErrorDetail


@dataclass(frozen=True, slots=True)
class ErrorRule:
    """How one error class is answered.

    Attributes:
        status: the HTTP status.
        retry_after_seconds: value of the ``Retry-After`` header; None sends no such header.
    """

    status: HTTPStatus
    retry_after_seconds: int | None = None


class HttpError(NamedTuple):
    """An error as HTTP: ``status, body, headers``."""

    status: int
    body: dict[str, Any]
    headers: dict[str, str]


ERROR_STATUSES: dict[type[BaseException], ErrorRule] = {
    errors.FasterVLMError: ErrorRule(HTTPStatus.INTERNAL_SERVER_ERROR),
    errors.InvalidInputError: ErrorRule(HTTPStatus.BAD_REQUEST),
    errors.InvalidRequestError: ErrorRule(HTTPStatus.BAD_REQUEST),
    errors.UnsupportedParameterError: ErrorRule(HTTPStatus.BAD_REQUEST),
    errors.AuthenticationError: ErrorRule(HTTPStatus.UNAUTHORIZED),
    errors.ModelNotFoundError: ErrorRule(HTTPStatus.NOT_FOUND),
    errors.ContextLengthError: ErrorRule(HTTPStatus.BAD_REQUEST),
    errors.UrlNotAllowedError: ErrorRule(HTTPStatus.BAD_REQUEST),
    errors.UrlFetchError: ErrorRule(HTTPStatus.BAD_REQUEST),
    errors.VideoNotFoundError: ErrorRule(HTTPStatus.NOT_FOUND),
    errors.MediaError: ErrorRule(HTTPStatus.UNPROCESSABLE_ENTITY),
    errors.UnsupportedMediaError: ErrorRule(HTTPStatus.UNSUPPORTED_MEDIA_TYPE),
    errors.NoVideoStreamError: ErrorRule(HTTPStatus.UNPROCESSABLE_ENTITY),
    errors.CorruptMediaError: ErrorRule(HTTPStatus.UNPROCESSABLE_ENTITY),
    errors.MediaLimitError: ErrorRule(HTTPStatus.UNPROCESSABLE_ENTITY),
    errors.PayloadTooLargeError: ErrorRule(HTTPStatus.REQUEST_ENTITY_TOO_LARGE),
    errors.CheckpointError: ErrorRule(HTTPStatus.INTERNAL_SERVER_ERROR),
    errors.FingerprintMismatchError: ErrorRule(
        HTTPStatus.SERVICE_UNAVAILABLE, errors.UnavailableError.retry_after_seconds
    ),
    errors.TokenFormatError: ErrorRule(HTTPStatus.INTERNAL_SERVER_ERROR),
    errors.OverloadedError: ErrorRule(HTTPStatus.TOO_MANY_REQUESTS, errors.OverloadedError.retry_after_seconds),
    errors.UnavailableError: ErrorRule(HTTPStatus.SERVICE_UNAVAILABLE, errors.UnavailableError.retry_after_seconds),
    errors.StorageFullError: ErrorRule(HTTPStatus.INSUFFICIENT_STORAGE),
    errors.DeadlineExceededError: ErrorRule(HTTPStatus.GATEWAY_TIMEOUT),
}
"""The one place where an error class meets a status. A class without a row of its own takes its base's."""

_CODES_BY_STATUS = {
    HTTPStatus.BAD_REQUEST: errors.InvalidRequestError.code,
    HTTPStatus.UNAUTHORIZED: errors.AuthenticationError.code,
    HTTPStatus.NOT_FOUND: errors.VideoNotFoundError.code,
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: errors.PayloadTooLargeError.code,
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE: errors.UnsupportedMediaError.code,
    HTTPStatus.TOO_MANY_REQUESTS: errors.OverloadedError.code,
    HTTPStatus.SERVICE_UNAVAILABLE: errors.UnavailableError.code,
    HTTPStatus.GATEWAY_TIMEOUT: errors.DeadlineExceededError.code,
    HTTPStatus.INSUFFICIENT_STORAGE: errors.StorageFullError.code,
}


def _type_of(status: int) -> str:
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        return "rate_limit_error"
    return "invalid_request_error" if status < HTTPStatus.INTERNAL_SERVER_ERROR else "server_error"


def _http_error(
    status: int,
    code: str,
    message: str,
    *,
    param: str | None = None,
    request_id: str | None = None,
    headers: dict[str, str] | None = None,
) -> HttpError:
    detail = ErrorDetail(code=code, message=message, param=param, type=_type_of(status), request_id=request_id)
    return HttpError(int(status), ErrorResponse(error=detail).model_dump(), dict(headers or {}))


def _unwrap(exc: BaseException) -> BaseException:
    """The error inside wrappers that carry it as ``.cause``, as errors from a remote process do.

    Such a wrapper may itself be an instance of the error's class, with a traceback for its text, so
    unwrapping comes before looking at the class.
    """
    for _ in range(_MAX_CAUSES):
        cause = getattr(exc, "cause", None)
        if not isinstance(cause, BaseException):
            break
        exc = cause
    return exc


def to_http(exc: BaseException, *, request_id: str | None = None) -> HttpError:
    """An exception as ``(status, body, headers)``; also used for errors in the middle of an event stream.

    Wrappers with a ``.cause`` are opened first. Whatever has no row in :data:`ERROR_STATUSES`, and every
    class whose row says 500, gives a generic message: the details are for the log (which the caller writes).
    """
    exc = _unwrap(exc)
    if isinstance(exc, RequestValidationError):
        return _validation_error(exc.errors(), request_id)
    if isinstance(exc, HTTPException):
        return _framework_error(exc, request_id)
    rule = next((ERROR_STATUSES[cls] for cls in type(exc).__mro__ if cls in ERROR_STATUSES), None)
    if not isinstance(exc, errors.FasterVLMError) or rule is None or rule.status is HTTPStatus.INTERNAL_SERVER_ERROR:
        return _internal_error(request_id)
    headers = {} if rule.retry_after_seconds is None else {"Retry-After": str(rule.retry_after_seconds)}
    if rule.status is HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = "Bearer"
    param = exc.param if isinstance(exc, errors.InvalidInputError) else None
    return _http_error(rule.status, exc.code, exc.message, param=param, request_id=request_id, headers=headers)


def _internal_error(request_id: str | None) -> HttpError:
    hint = f"; please report it with the request id {request_id}" if request_id else ""
    return _http_error(
        HTTPStatus.INTERNAL_SERVER_ERROR,
        errors.FasterVLMError.code,
        f"an internal error occurred{hint}",
        request_id=request_id,
    )


def _framework_error(exc: HTTPException, request_id: str | None) -> HttpError:
    status = exc.status_code
    if status == HTTPStatus.INTERNAL_SERVER_ERROR:
        return _internal_error(request_id)
    try:
        known = HTTPStatus(status)
        code = _CODES_BY_STATUS.get(known, known.name.lower())
    except ValueError:
        code = f"http_{status}"
    return _http_error(status, code, str(exc.detail), request_id=request_id, headers=dict(exc.headers or {}))


def _validation_error(problems: Sequence[Any], request_id: str | None) -> HttpError:
    """Pydantic's list of problems as one message; ``param`` names the first field at fault."""
    named = [(_field_path(problem["loc"]), problem) for problem in problems]
    shown = [f"{name or 'body'}: {_describe(problem)}" for name, problem in named[:_MAX_SHOWN_PROBLEMS]]
    if len(named) > _MAX_SHOWN_PROBLEMS:
        shown.append(f"and {len(named) - _MAX_SHOWN_PROBLEMS} more")
    message = "; ".join(shown) or "the request is not valid"
    param = named[0][0] if named else None
    return _http_error(
        HTTPStatus.BAD_REQUEST, errors.InvalidRequestError.code, message, param=param, request_id=request_id
    )


def _field_path(location: Sequence[int | str]) -> str | None:
    """``("body", "video", 0)`` -> ``video.0``; None for the body as a whole, or a position in bad JSON."""
    inner = location[1:]
    if not inner or (len(inner) == 1 and isinstance(inner[0], int)):
        return None
    return ".".join(map(str, inner))


def _describe(problem: dict[str, Any]) -> str:
    if problem["type"] == "json_invalid":
        return f"not valid JSON: {problem.get('ctx', {}).get('error', problem['msg'])}"
    message = str(problem["msg"]).removeprefix("Value error, ")
    value = problem.get("input")
    if problem["type"] == "missing" or isinstance(value, dict | list | bytes) or value is None:
        return message
    text = repr(value)
    if len(text) > _MAX_SHOWN_VALUE_CHARS:
        text = f"{text[:_MAX_SHOWN_VALUE_CHARS]}…"
    return f"{message} (got {text})"


def request_id_of(scope: MutableMapping[str, Any]) -> str:
    """The id of the request with this ASGI scope; made and remembered in ``scope["state"]`` if it has none.

    A client's own ``X-Request-ID`` is taken over if it is up to 128 characters of ``A-Z a-z 0-9 . _ -``.
    """
    state = scope.setdefault("state", {})
    known = state.get("request_id")
    if isinstance(known, str):
        return known
    sent = next((value for name, value in scope.get("headers", ()) if name == b"x-request-id"), b"").decode("latin-1")
    request_id: str = sent if _REQUEST_ID.fullmatch(sent) else uuid.uuid4().hex
    state["request_id"] = request_id
    return request_id


def note_error_code(scope: MutableMapping[str, Any], body: dict[str, Any]) -> None:
    """Remember with what the request with this ASGI scope failed, for :func:`error_code_of`."""
    scope.setdefault("state", {})["error_code"] = body["error"]["code"]


def error_code_of(scope: MutableMapping[str, Any]) -> str | None:
    """The code of the error that this process has answered the request with; None if it has not."""
    code = scope.get("state", {}).get("error_code")
    return code if isinstance(code, str) else None


def error_response(exc: BaseException, scope: MutableMapping[str, Any]) -> JSONResponse:
    """The answer to a request that failed with ``exc``. Faults of ours are logged with their traceback."""
    request_id = request_id_of(scope)
    status, body, headers = to_http(exc, request_id=request_id)
    note_error_code(scope, body)
    where = f"{scope.get('method', '')} {scope.get('path', '')!r}"
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        detailed = status == HTTPStatus.INTERNAL_SERVER_ERROR
        logger.error("request %s (%s) failed: %s", request_id, where, exc, exc_info=exc if detailed else None)
    else:
        logger.info("request %s (%s) refused with %d: %s", request_id, where, status, body["error"]["message"])
    return JSONResponse(body, status_code=status, headers=headers)


def error_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """For the API's description: the statuses that a route may well answer, and that all others look the same."""
    other = {"model": ErrorResponse, "description": "Any other error"}
    return {**{status: {"model": ErrorResponse} for status in statuses}, "default": other}


def install_error_handlers(app: FastAPI) -> None:
    """Make ``app`` answer every error in this module's shape, those of the framework included."""

    async def handle(request: Request, exc: Exception) -> JSONResponse:
        return error_response(exc, request.scope)

    for kind in (errors.FasterVLMError, RequestValidationError, HTTPException, Exception):
        app.add_exception_handler(kind, handle)
