"""Who asks: API keys, the tenants they stand for, and what keeps tenants apart. Pure, but for a file that is read.

A key is known here by its SHA-256 only. A tenant has its own salt, which is in every cache key (so that nothing
of a video is shared between tenants, not even the knowledge of it), and its own folder in the blob store.
"""

import hashlib
import hmac
import logging
import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fastervlm_video.errors import AuthenticationError, InvalidRequestError

__all__ = ["ANONYMOUS", "TENANT_NAME", "ApiKey", "Keyring", "Tenant", "parse_api_keys", "read_api_keys"]

logger = logging.getLogger(__name__)

ANONYMOUS = ""
"""Name of the only tenant of a service without API keys."""

TENANT_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
"""A tenant's name as it may stand in a path; match it with ``fullmatch``."""

_KEY = re.compile(r"[!-~]{16,512}")
_DIGEST_PREFIX = "sha256:"
_DIGEST = re.compile(r"[0-9a-f]{64}")
_LOOK_EVERY_SECONDS = 2.0
_SALT_DOMAIN = b"fastervlm-video/tenant-salt"


@dataclass(frozen=True, slots=True)
class Tenant:
    """Somebody whose files and cached tokens are nobody else's.

    Attributes:
        name: also the name of the tenant's folder in the blob store; :data:`ANONYMOUS` without API keys.
        salt: for cache keys.
    """

    name: str
    salt: bytes

    @classmethod
    def of(cls, name: str, service_salt: bytes) -> "Tenant":
        """The tenant with this name; without API keys the service's salt is the tenant's."""
        if name == ANONYMOUS:
            return cls(name, service_salt)
        digest = hashlib.sha256(_SALT_DOMAIN)
        for part in (service_salt, name.encode()):
            digest.update(len(part).to_bytes(8, "big") + part)
        return cls(name, digest.digest())

    def __repr__(self) -> str:
        return f"Tenant({self.name!r})"


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key that opens the service to one tenant.

    Attributes:
        digest: SHA-256 of the key, 64 hexadecimal digits.
        tenant: the tenant's name.
    """

    digest: str
    tenant: str

    @classmethod
    def parse(cls, text: str) -> "ApiKey":
        """Read ``key:tenant``, or ``sha256:<digest of the key>:tenant``.

        Raises:
            InvalidRequestError: it is neither. The message does not repeat it.
        """
        key, colon, tenant = text.strip().rpartition(":")
        if not colon or not TENANT_NAME.fullmatch(tenant):
            raise InvalidRequestError(
                "write an API key as key:tenant, with 1 to 64 characters of a-z 0-9 . _ - for the tenant's name"
            )
        digest = key.removeprefix(_DIGEST_PREFIX)
        if key.startswith(_DIGEST_PREFIX):
            if not _DIGEST.fullmatch(digest):
                raise InvalidRequestError("the digest of an API key must be 64 hexadecimal digits, in lower case")
            return cls(digest, tenant)
        if not _KEY.fullmatch(key):
            raise InvalidRequestError("an API key must have 16 to 512 characters of ASCII, and no blanks")
        return cls(hashlib.sha256(key.encode()).hexdigest(), tenant)


def parse_api_keys(items: Iterable[str]) -> tuple[ApiKey, ...]:
    """Read several; see :meth:`ApiKey.parse`.

    Raises:
        InvalidRequestError: one cannot be read, or stands for two tenants.
    """
    return _distinct([ApiKey.parse(item) for item in items])


def _distinct(keys: Sequence[ApiKey]) -> tuple[ApiKey, ...]:
    found = tuple(dict.fromkeys(keys))
    if len({key.digest for key in found}) < len(found):
        raise InvalidRequestError("an API key stands for more than one tenant; give each tenant a key of its own")
    return found


def read_api_keys(path: Path) -> tuple[ApiKey, ...]:
    """Read a file with one key per line; blank lines and lines that begin with ``#`` do not count.

    Raises:
        InvalidRequestError: it cannot be read, or holds no key.
    """
    try:
        lines = [line.strip() for line in path.read_text(encoding="ascii").splitlines()]
    except (OSError, UnicodeDecodeError) as exc:
        raise InvalidRequestError(f"cannot read API keys from {path}: {type(exc).__name__}") from exc
    keys = parse_api_keys(line for line in lines if line and not line.startswith("#"))
    if not keys:
        raise InvalidRequestError(f"{path} holds no API key; write one per line, as key:tenant")
    return keys


def _version(path: Path | None) -> tuple[int, ...] | None:
    """Another one after any change of a file, or of what a link leads to; None if there is no file."""
    try:
        found = path.stat() if path else None
    except OSError:  # reading it says what is wrong
        return None
    return (found.st_ino, found.st_size, found.st_mtime_ns) if found else None


class Keyring:
    """Knows which key is whose.

    Args:
        keys: none at all, and no file, lets everybody in, as the anonymous tenant.
        service_salt: mixed into each tenant's.
        file: with more keys. It is read now, and again within seconds of any change; one that cannot be used any more
            is logged and changes nothing.

    Raises:
        InvalidRequestError: a key stands for two tenants, or the file cannot be used.
    """

    def __init__(self, keys: Sequence[ApiKey], service_salt: bytes, *, file: Path | None = None) -> None:
        self._fixed, self._file, self._service_salt = tuple(keys), file, service_salt
        self._seen, self._next_look = _version(file), time.monotonic() + _LOOK_EVERY_SECONDS
        self._keys = self._read()

    def _read(self) -> tuple[ApiKey, ...]:
        return _distinct((*self._fixed, *(read_api_keys(self._file) if self._file else ())))

    def _refresh(self) -> None:
        """Take over what has changed in the file since somebody looked."""
        if self._file is None or time.monotonic() < self._next_look:
            return
        self._next_look, version = time.monotonic() + _LOOK_EVERY_SECONDS, _version(self._file)
        if version == self._seen:
            return
        self._seen = version
        try:
            self._keys = self._read()
            logger.info("took over %d API keys from %s, which has changed", len(self._keys), self._file)
        except InvalidRequestError as exc:
            logger.error("the API keys stay as they were: %s", exc)

    def tenant(self, key: str | None) -> Tenant:
        """Whose key this is. Takes as long for a wrong key as for a right one.

        Args:
            key: as the client sent it, or None if it sent none.

        Raises:
            AuthenticationError: a key is needed, and this is none of ours.
        """
        self._refresh()
        if not self._keys:
            return Tenant.of(ANONYMOUS, self._service_salt)
        if not key:
            raise AuthenticationError("an API key is needed; send it in the header `Authorization: Bearer <key>`")
        digest = hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()
        found = [known.tenant for known in self._keys if hmac.compare_digest(known.digest, digest)]
        if not found:
            raise AuthenticationError("this API key is not valid here")
        return Tenant.of(found[0], self._service_salt)
