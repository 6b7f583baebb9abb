"""Where a blob store keeps what, and which of its paths mean a blob.

::

    objects/ab/abcdef…                 a file of the anonymous tenant, and beside it abcdef….json
    tenants/<owner>/ab/abcdef…         a file of a named tenant

Who stores the same bytes as another tenant has a copy of one's own: there is nothing to find out about the other's.
"""

from dataclasses import dataclass

from fastervlm_video.errors import VideoNotFoundError
from services.stored_blob import DIGEST
from services.tenants import ANONYMOUS, TENANT_NAME

__all__ = ["ROOTS", "SIDECAR_SUFFIX", "BlobPath"]

SIDECAR_SUFFIX = ".json"
_OBJECTS = "objects"
_TENANTS = "tenants"
_PREFIX_CHARS = 2

ROOTS = (_OBJECTS, _TENANTS)
"""Folders that hold the blobs of all owners."""


@dataclass(frozen=True, slots=True)
class BlobPath:
    """One blob's place.

    Attributes:
        owner: the tenant's name.
        digest: SHA-256 of the content.

    Raises:
        VideoNotFoundError: one of them could not be part of a path.
    """

    owner: str
    digest: str

    def __post_init__(self) -> None:
        if not DIGEST.fullmatch(self.digest):
            raise VideoNotFoundError(f"there is no file with the digest {self.digest[:80]!r}")
        self.folder(self.owner)

    @classmethod
    def parse(cls, path: str) -> "BlobPath | None":
        """The blob whose content is at ``path``; None if that is something else."""
        folder, _, digest = path.rpartition("/")
        parts = folder.split("/")
        owner = parts[1] if parts[0] == _TENANTS and len(parts) > 1 else ANONYMOUS
        try:
            found = cls(owner, digest)
        except VideoNotFoundError:
            return None
        return found if found.content == path else None

    @staticmethod
    def folder(owner: str) -> str:
        """Where all blobs of an owner are.

        Raises:
            VideoNotFoundError: this could not be the name of a tenant.
        """
        if owner != ANONYMOUS and not TENANT_NAME.fullmatch(owner):
            raise VideoNotFoundError(f"there is no tenant {owner[:80]!r}")
        return _OBJECTS if owner == ANONYMOUS else f"{_TENANTS}/{owner}"

    @property
    def content(self) -> str:
        """Path of the bytes."""
        return f"{self.folder(self.owner)}/{self.digest[:_PREFIX_CHARS]}/{self.digest}"

    @property
    def sidecar(self) -> str:
        """Path of what is known of them."""
        return self.content + SIDECAR_SUFFIX
