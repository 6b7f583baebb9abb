"""What a request says of its body, before any of it is read."""

from starlette.types import Scope

__all__ = ["content_length", "media_type"]


def media_type(scope: Scope) -> str:
    """The kind of body, such as ``application/json``: in lower case, without parameters; empty if it is not said."""
    return _header(scope, b"content-type").decode("latin-1").partition(";")[0].strip().lower()


def content_length(scope: Scope) -> int | None:
    """Bytes that the body will have, if it is said in digits: anything else is for the HTTP server to refuse."""
    value = _header(scope, b"content-length")
    return int(value) if value.isdigit() else None


def _header(scope: Scope, wanted: bytes) -> bytes:
    return next((bytes(value) for name, value in scope["headers"] if name == wanted), b"")
