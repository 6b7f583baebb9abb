"""Uploaded videos and pictures, stored under the SHA-256 of their content in any fsspec location.

::

    <url>/objects/ab/abcdef…          the bytes; those of named tenants are in tenants/<name>/ instead
    <url>/objects/ab/abcdef….json     size, medium, name, times; a blob exists if and only if this does
    <url>/incoming/<seconds>-<uuid>   being written; moved into place when complete
    <url>/usage, <url>/lock           local folders only, see services.blob_usage

Uploading the same bytes twice stores them once for each owner. Blobs expire; what has expired is removed by
:meth:`BlobStore.sweep`, and when an upload would not fit otherwise.
"""

import contextlib
import errno
import hashlib
import json
import logging
import math
import os
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, BinaryIO

from fastervlm_video.errors import InvalidRequestError, StorageFullError, UnavailableError, VideoNotFoundError
from fastervlm_video.media import SNIFF_BYTES, sniff_medium
from services.blob_files import LocalFiles, open_files
from services.blob_paths import ROOTS, BlobPath
from services.blob_usage import ListedUsage, LocalUsage, Usage
from services.stored_blob import DEFAULT_PURPOSE, StoredBlob, file_id, parse_file_id, shown_name
from services.tenants import ANONYMOUS

__all__ = ["BlobStore", "StoredBlob", "file_id", "parse_file_id"]

logger = logging.getLogger(__name__)

CHUNK_BYTES = 1024**2
OVERHEAD_BYTES = 4096
"""What a blob counts for besides its size, so that very many tiny files fill the quota too."""
ABANDONED_SECONDS = 3600.0
"""Age from which something half-written is taken for the remains of a process that died."""

_MAX_SIDECAR_BYTES = 64 * 1024
_INCOMING = "incoming"


class BlobStore:
    """A content-addressed store with a quota and expiry. All methods block; call them in threads.

    Each blob belongs to an owner (a tenant's name), and can be reached with that owner's name only.

    Safe for several threads and processes on one location: every change is made under a lock (see
    :mod:`services.blob_usage` for how far it reaches) and is atomic for readers even without one.

    Args:
        url: ``file:///folder`` (made with mode 0700, files 0600), ``memory://name`` or any fsspec location.
        quota_bytes: bytes that may be stored; each blob counts :data:`OVERHEAD_BYTES` more than its size.
        ttl_seconds: lifetime of a blob after its latest upload.
        scratch_dir: local folder for copies of remote blobs; None is the system's temporary folder.
        clock: seconds since 1970.
        storage_options: for the fsspec file system, such as credentials.

    Raises:
        InvalidRequestError: ``url`` names no usable location, or a number is not positive.
        UnavailableError: the location cannot be reached.
    """

    def __init__(
        self,
        url: str,
        *,
        quota_bytes: int,
        ttl_seconds: float,
        scratch_dir: Path | None = None,
        clock: Callable[[], float] = time.time,
        storage_options: dict[str, Any] | None = None,
    ) -> None:
        if quota_bytes <= 0 or ttl_seconds <= 0:
            raise InvalidRequestError(f"quota and lifetime must be positive, got {quota_bytes} and {ttl_seconds}")
        self._quota_bytes, self._ttl_seconds = quota_bytes, ttl_seconds
        self._scratch_dir, self._clock = scratch_dir, clock
        self._next_expiry = 0.0
        self._removed_early: list[StoredBlob] = []  # to make room, and not reported by a sweep yet
        with _storage_errors():
            self._files, name = open_files(url, storage_options or {})
        self._local = isinstance(self._files, LocalFiles)
        self._usage: Usage = LocalUsage(self._files.root) if isinstance(self._files, LocalFiles) else ListedUsage(name)

    def put(
        self, stream: BinaryIO, *, filename: str, owner: str = ANONYMOUS, purpose: str = DEFAULT_PURPOSE
    ) -> StoredBlob:
        """Store what ``stream`` gives from its present position; bytes that are there already are kept.

        What medium it is is decided here, by its first bytes, for as long as it is stored.

        Raises:
            StorageFullError: the quota would be exceeded, even without what has expired.
            UnavailableError: the storage failed.
        """
        incoming = f"{_INCOMING}/{int(self._clock())}-{uuid.uuid4().hex}"
        with _storage_errors():
            try:
                digest, size_bytes, medium = self._receive(stream, incoming)
                now = self._clock()
                expires_at = math.ceil(now + self._ttl_seconds)
                name = shown_name(filename)
                blob = StoredBlob(digest, size_bytes, int(now), expires_at, name, owner, purpose, medium)
                with self._usage.lock():
                    return self._commit(incoming, blob)
            finally:
                self._files.remove(incoming)

    def stat(self, digest: str, *, owner: str = ANONYMOUS) -> StoredBlob:
        """What is known of a blob.

        Raises:
            VideoNotFoundError: this owner has none with this digest (any more).
            UnavailableError: the storage failed.
        """
        with _storage_errors():
            blob = self._read_sidecar(BlobPath(owner, digest))
        if blob is None or blob.expires_at <= self._clock():
            raise VideoNotFoundError(f"there is no file {file_id(digest)}; it was deleted, has expired or never was")
        return blob

    def all_of(self, owner: str) -> list[StoredBlob]:
        """All that an owner has, the newest first. Reads every description: meant for thousands, not for millions.

        Raises:
            UnavailableError: the storage failed.
        """
        with _storage_errors():
            folder = BlobPath.folder(owner)
            paths = [found for path, _ in self._files.listing(folder) if (found := BlobPath.parse(path)) is not None]
            sidecars = self._files.read_each([path.sidecar for path in paths], _MAX_SIDECAR_BYTES)
        now, described = self._clock(), [_described(path, sidecars.get(path.sidecar)) for path in paths]
        blobs = [blob for blob in described if blob is not None and blob.expires_at > now]
        return sorted(blobs, key=lambda blob: (-blob.created_at, blob.digest))

    @contextlib.contextmanager
    def open_local(self, digest: str, *, owner: str = ANONYMOUS) -> Iterator[BinaryIO]:
        """The blob as a local, seekable file to read from, which stays readable if the blob is deleted meanwhile.

        In a local folder this is the file itself; from elsewhere it is a temporary copy, checked against the
        digest. Either way its medium must be the one that its description says.

        Raises:
            VideoNotFoundError: this owner has none with this digest (any more), or what is stored is damaged.
            UnavailableError: the storage failed.
        """
        blob = self.stat(digest, owner=owner)
        with contextlib.ExitStack() as resources:
            with _storage_errors():
                file = self._open(blob, resources)
                if file is not None and _medium_of(file) != blob.medium:
                    file = None
            if file is None:
                logger.error("blob %s is missing or is not what was stored", digest)
                raise VideoNotFoundError(f"the stored copy of {file_id(digest)} is damaged; upload it again")
            file.seek(0)
            yield file

    def delete(self, digest: str, *, owner: str = ANONYMOUS) -> bool:
        """Remove a blob; False if this owner had none, or only an expired one.

        Raises:
            VideoNotFoundError: ``digest`` is not a digest.
            UnavailableError: the storage failed.
        """
        path = BlobPath(owner, digest)
        with _storage_errors(), self._usage.lock():
            blob = self._read_sidecar(path)
            self._drop(path)
        return blob is not None and blob.expires_at > self._clock()

    def sweep(self) -> list[StoredBlob]:
        """Remove expired blobs and what dead processes left half-written, and count what remains.

        Returns:
            The blobs that have been removed since the last call because they had expired.

        Raises:
            UnavailableError: the storage failed.
        """
        with _storage_errors():
            suspects = self._suspects()  # reading thousands of descriptions; nobody waits for the lock meanwhile
            with self._usage.lock():
                expired = self._removed_early + self._remove_expired(suspects)
                self._removed_early = []
        return expired

    def used_bytes(self) -> int:
        """Bytes counted against the quota."""
        with _storage_errors(), self._usage.lock():
            return self._usage.read_bytes(self._recount)

    def _receive(self, stream: BinaryIO, incoming: str) -> tuple[str, int, str]:
        """Copy the stream; its digest, its length, and its medium."""
        digest, size_bytes, head = hashlib.sha256(), 0, b""
        with self._files.create(incoming) as target:
            while chunk := stream.read(CHUNK_BYTES):
                digest.update(chunk)
                size_bytes += len(chunk)
                head += chunk[: SNIFF_BYTES - len(head)]
                if size_bytes + OVERHEAD_BYTES > self._quota_bytes:
                    raise self._full(size_bytes)
                target.write(chunk)
        return digest.hexdigest(), size_bytes, sniff_medium(head).value

    def _commit(self, incoming: str, blob: StoredBlob) -> StoredBlob:
        """Move a received file into place, or renew the blob that has the same content. Under the lock."""
        path = BlobPath(blob.owner, blob.digest)
        known = self._read_sidecar(path)
        if known is not None and self._files.size_bytes(path.content) == blob.size_bytes:
            # The medium is that of the bytes, whatever an older, or a damaged, description says of it.
            blob = replace(known, expires_at=max(blob.expires_at, known.expires_at), medium=blob.medium)
        else:
            self._drop(path)  # a damaged copy, or one whose process died before the sidecar was written
            self._make_room(blob.size_bytes)
            self._files.replace(incoming, path.content)
        self._files.write(path.sidecar, json.dumps(asdict(blob)).encode())
        return blob

    def _make_room(self, size_bytes: int) -> None:
        """Count a new blob, removing expired ones if it does not fit otherwise. Under the lock.

        It is counted before it is there: a process that dies in between leaves the count too high, never
        too low, until the next sweep.
        """
        needed_bytes = size_bytes + OVERHEAD_BYTES
        used_bytes = self._usage.read_bytes(self._recount)
        if used_bytes + needed_bytes > self._quota_bytes and self._clock() >= self._next_expiry:
            self._removed_early += self._remove_expired(self._suspects())
            used_bytes = self._usage.read_bytes(self._recount)
        if used_bytes + needed_bytes > self._quota_bytes:
            raise self._full(size_bytes, used_bytes)
        self._usage.set_bytes(used_bytes + needed_bytes)

    def _drop(self, path: BlobPath) -> None:
        """Remove a blob's files, the sidecar first, and uncount it. Under the lock."""
        used_bytes = self._usage.read_bytes(self._recount)
        self._files.remove(path.sidecar)
        size_bytes = self._files.remove(path.content)
        if size_bytes is not None:
            self._usage.set_bytes(max(0, used_bytes - size_bytes - OVERHEAD_BYTES))

    def _suspects(self) -> list[BlobPath]:
        """Blobs that have expired, or have no description, as it seems."""
        now, paths = self._clock(), [path for path, _ in self._objects()]
        next_expiry = now + self._ttl_seconds  # nothing stored from now on can expire earlier
        sidecars = self._files.read_each([path.sidecar for path in paths], _MAX_SIDECAR_BYTES)
        suspects = []
        for path in paths:
            blob = _described(path, sidecars.get(path.sidecar))
            if blob is None or blob.expires_at <= now:
                suspects.append(path)
            else:
                next_expiry = min(next_expiry, blob.expires_at)
        self._next_expiry = next_expiry
        return suspects

    def _remove_expired(self, suspects: list[BlobPath]) -> list[StoredBlob]:
        """Remove those of them that have expired indeed, and all remains, and count anew. Under the lock."""
        now, expired = self._clock(), []
        for path in self._strays():
            self._files.remove(path)
        for blob_path in suspects:
            blob = self._read_sidecar(blob_path)  # it may have been renewed meanwhile
            if blob.expires_at <= now if blob else self._abandoned(blob_path.content):
                self._files.remove(blob_path.sidecar)
                self._files.remove(blob_path.content)
                expired += [] if blob is None else [blob]
        for path, _ in list(self._files.listing(_INCOMING)):
            started_at = path.rpartition("/")[2].partition("-")[0]
            if started_at.isdigit() and now - int(started_at) > ABANDONED_SECONDS:
                self._files.remove(path)
        self._usage.set_bytes(self._recount())
        if expired:
            logger.info("%d blobs have expired and were removed", len(expired))
        return expired

    def _abandoned(self, path: str) -> bool:
        """Whether bytes without a sidecar are remains; if not, another machine is just storing them."""
        if self._local:
            return True  # the lock is held, so nobody is between the two
        try:
            return self._clock() - self._files.modified_at(path) > ABANDONED_SECONDS
        except FileNotFoundError:
            return False

    def _objects(self) -> list[tuple[BlobPath, int]]:
        """Every owner's blobs, and their sizes."""
        found = ((BlobPath.parse(path), size_bytes) for root in ROOTS for path, size_bytes in self._files.listing(root))
        return [(path, size_bytes) for path, size_bytes in found if path is not None]

    def _strays(self) -> list[str]:
        """Sidecars without a blob, and what else a process that died while writing one has left."""
        paths = {path for root in ROOTS for path, _ in self._files.listing(root)}
        blobs = [found for path in paths if (found := BlobPath.parse(path)) is not None]
        return sorted(paths - {blob.content for blob in blobs} - {blob.sidecar for blob in blobs})

    def _recount(self) -> int:
        return sum(size_bytes + OVERHEAD_BYTES for _, size_bytes in self._objects())

    def _full(self, size_bytes: int, used_bytes: int | None = None) -> StorageFullError:
        used = "" if used_bytes is None else f", of which {used_bytes} are in use by files that have not expired"
        return StorageFullError(
            f"no room for {size_bytes} bytes: the store holds at most {self._quota_bytes}{used}; delete files or wait"
        )

    def _open(self, blob: StoredBlob, resources: contextlib.ExitStack) -> BinaryIO | None:
        """The blob as a local file, or None if what is stored is not what it should be."""
        try:
            source = resources.enter_context(self._files.open(BlobPath(blob.owner, blob.digest).content))
        except FileNotFoundError:
            return None
        if self._local:
            return source if source.seek(0, os.SEEK_END) == blob.size_bytes else None
        copy: BinaryIO = resources.enter_context(tempfile.TemporaryFile(dir=self._scratch_dir))  # noqa: SIM115 (it does)
        digest, size_bytes = hashlib.sha256(), 0
        while chunk := source.read(min(CHUNK_BYTES, blob.size_bytes - size_bytes + 1)):
            digest.update(chunk)
            size_bytes += len(chunk)
            if size_bytes > blob.size_bytes:
                return None
            copy.write(chunk)
        return copy if digest.hexdigest() == blob.digest else None

    def _read_sidecar(self, path: BlobPath) -> StoredBlob | None:
        try:
            return _described(path, self._files.read(path.sidecar, _MAX_SIDECAR_BYTES))
        except FileNotFoundError:
            return None


def _described(path: BlobPath, sidecar: bytes | None) -> StoredBlob | None:
    """What a description says; None if there is none, or a damaged one."""
    try:
        return None if sidecar is None else StoredBlob.from_json(sidecar, digest=path.digest, owner=path.owner)
    except ValueError as exc:
        logger.warning("the description of a blob is damaged, so it counts as missing: %s: %s", path, exc)
        return None


def _medium_of(file: BinaryIO) -> str:
    file.seek(0)
    return sniff_medium(file.read(SNIFF_BYTES)).value


@contextlib.contextmanager
def _storage_errors() -> Iterator[None]:
    """Turn errors of the file system into errors of this package, without its paths in the message."""
    try:
        yield
    except OSError as exc:
        if exc.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageFullError("the disk under the blob store is full; delete files or wait") from exc
        logger.exception("the blob store failed")
        raise UnavailableError(f"the blob store failed ({type(exc).__name__}); try again") from exc
