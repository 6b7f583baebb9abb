"""What is known of a stored file, and how files are named outside."""

import json
import re
from dataclasses import asdict, dataclass

from fastervlm_video.config import Medium
from fastervlm_video.errors import VideoNotFoundError

__all__ = ["DEFAULT_PURPOSE", "DIGEST", "StoredBlob", "file_id", "is_file_id", "parse_file_id", "shown_name"]

DIGEST = re.compile(r"[0-9a-f]{64}")
"""A SHA-256 as it may stand in a path; match it with ``fullmatch``."""

DEFAULT_PURPOSE = "user_data"
"""What a file is for if its uploader did not say."""

_FILE_ID_PREFIX = "file-"
_MAX_FILENAME_CHARS = 255
_MEDIA = frozenset(medium.value for medium in Medium)


def file_id(digest: str) -> str:
    """The public id of a blob: ``file-`` and its SHA-256."""
    return f"{_FILE_ID_PREFIX}{digest}"


def is_file_id(text: str) -> bool:
    """Whether this is written like a public id, right or wrong, and not like a URL."""
    return text.startswith(_FILE_ID_PREFIX)


def parse_file_id(text: str) -> str:
    """The digest in a public id.

    Raises:
        VideoNotFoundError: it is not an id that this service gives out.
    """
    digest = text.removeprefix(_FILE_ID_PREFIX)
    if not text.startswith(_FILE_ID_PREFIX) or not DIGEST.fullmatch(digest):
        raise VideoNotFoundError(f"no file has the id {text[:80]!r}; ids look like file-<64 hexadecimal digits>")
    return digest


@dataclass(frozen=True, slots=True)
class StoredBlob:
    """What is known of a stored file.

    Attributes:
        digest: SHA-256 of the content, 64 hexadecimal digits.
        size_bytes: its length.
        created_at: first upload, seconds since 1970.
        expires_at: when it may be removed, seconds since 1970.
        filename: last part of the name it was first uploaded under; for show only.
        owner: name of the tenant whose file it is.
        purpose: what its uploader said that it is for; for show only.
        medium: what it shows by its first bytes, ``image`` or ``video``; descriptions written before there were
            pictures do not say.
    """

    digest: str
    size_bytes: int
    created_at: int
    expires_at: int
    filename: str
    owner: str = ""
    purpose: str = DEFAULT_PURPOSE
    medium: str = Medium.VIDEO.value

    @classmethod
    def from_json(cls, data: bytes, *, digest: str | None = None, owner: str = "") -> "StoredBlob":
        """Read a sidecar.

        Args:
            data: its content.
            digest: the blob that it must be of; None takes any.
            owner: the owner whose it must be.

        Raises:
            ValueError: it is damaged, or describes another blob or that of another owner.
        """
        try:
            blob = cls(**json.loads(data))
        except TypeError as exc:
            raise ValueError(str(exc)) from exc
        kinds = {name: type(value) for name, value in asdict(blob).items()}
        if kinds != cls.__annotations__ or (blob.digest, blob.owner) != (digest or blob.digest, owner):
            raise ValueError(f"unexpected content: {blob}")
        if blob.medium not in _MEDIA:
            raise ValueError(f"unexpected content: {blob}")
        return blob


def shown_name(filename: str) -> str:
    """The last part of a file name, without what could confuse a terminal or a page."""
    name = re.split(r"[/\\]", filename)[-1]
    return "".join(c for c in name if c.isprintable())[:_MAX_FILENAME_CHARS]
