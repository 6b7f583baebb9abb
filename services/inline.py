"""Small videos and pictures that come inside a request, as ``data:`` URLs (RFC 2397) in base64."""

import base64
import binascii
import re
from collections.abc import Mapping

from fastervlm_video.config import Medium
from fastervlm_video.errors import InvalidRequestError, PayloadTooLargeError

__all__ = ["base64_chars", "decode_data_url", "is_data_url"]

_SCHEME = "data:"
_MAX_HEAD_CHARS = 200
_HEAD = re.compile(r"data:(?P<type>[a-z0-9.+-]+/[a-z0-9.+-]+)(;[a-z0-9-]+=[^;,]*)*;base64", re.IGNORECASE)
_ANYTHING = r"application/octet-stream"
_ALLOWED_TYPES: Mapping[Medium, re.Pattern[str]] = {
    Medium.VIDEO: re.compile(rf"video/.+|{_ANYTHING}", re.IGNORECASE),
    Medium.IMAGE: re.compile(rf"image/(jpeg|jpg|png|webp)|{_ANYTHING}", re.IGNORECASE),
}
_WANTED = {Medium.VIDEO: "a video", Medium.IMAGE: "a JPEG, PNG or WebP picture"}
_EXAMPLES = {Medium.VIDEO: "data:video/mp4;base64,", Medium.IMAGE: "data:image/png;base64,"}
_BYTES_PER_GROUP, _CHARS_PER_GROUP = 3, 4


def base64_chars(size_bytes: int) -> int:
    """Characters that so many bytes take in base64, padding included."""
    return -(-size_bytes // _BYTES_PER_GROUP) * _CHARS_PER_GROUP


def is_data_url(url: str) -> bool:
    """Whether this is a ``data:`` URL, of any kind."""
    return url[: len(_SCHEME)].lower() == _SCHEME


def decode_data_url(url: str, *, medium: Medium, limit_bytes: int) -> bytes:
    """The content of ``data:video/…;base64,…`` or ``data:image/…;base64,…``.

    Args:
        url: as :func:`is_data_url` knows it.
        medium: what its type must say, unless it says ``application/octet-stream``; the content is not looked at.
        limit_bytes: most bytes it may stand for; looked at before anything is decoded.

    Raises:
        InvalidRequestError: it is of another type, not in base64, empty, or its base64 is not exactly right.
        PayloadTooLargeError: it is too large.
    """
    head, comma, payload = url.partition(",")
    match = _HEAD.fullmatch(head) if len(head) <= _MAX_HEAD_CHARS else None
    if not comma or match is None:
        raise InvalidRequestError(f"a data URL must begin like {_EXAMPLES[medium]} but begins with {head[:80]!r}")
    if not _ALLOWED_TYPES[medium].fullmatch(match["type"]):
        raise InvalidRequestError(f"this data URL must hold {_WANTED[medium]}, not {match['type']!r}")
    too_large = PayloadTooLargeError(
        f"{_WANTED[medium]} inside a request may have at most {limit_bytes} bytes, and this one has more; "
        "upload it first"
    )
    if len(payload) > base64_chars(limit_bytes):
        raise too_large
    if len(payload) % _CHARS_PER_GROUP:
        raise InvalidRequestError(f"the data URL's base64 has {len(payload)} characters, not a multiple of 4")
    try:
        content = base64.b64decode(payload.encode("ascii"), validate=True)
    except (UnicodeEncodeError, binascii.Error) as exc:
        raise InvalidRequestError(f"the data URL's content is not valid base64: {exc}") from exc
    if not content:
        raise InvalidRequestError("the data URL is empty")
    if len(content) > limit_bytes:
        raise too_large
    return content
