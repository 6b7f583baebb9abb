"""Files: the videos and pictures that a tenant has uploaded."""

import asyncio
from typing import Annotated, Any, Literal, get_args

from fastapi import APIRouter, Query, Request

from fastervlm_video.cache import video_key
from fastervlm_video.config import Medium
from fastervlm_video.errors import DeadlineExceededError, InvalidRequestError, UnavailableError
from services.auth import tenant_of
from services.blobs import StoredBlob, file_id, parse_file_id
from services.http_errors import error_responses
from services.paths import FILES_PATH
from services.schemas import DeletedFile, FileList, FileObject, FilePurpose
from services.service import VideoService
from services.stored_blob import DEFAULT_PURPOSE
from services.uploads import ParsedForm, SpooledFile, parse_multipart

__all__ = ["FILE_FORM", "add_file_routes"]

_TAGS: list[Any] = ["files"]
_PURPOSES = get_args(FilePurpose)
_MOST_LISTED = 10_000

FILE_FORM: dict[str, Any] = {
    "type": "object",
    "properties": {"file": {"type": "string", "format": "binary", "description": "The video or picture."}},
    "required": ["file"],
}
"""Schema of a form with a file, and nothing else."""

_UPLOAD_FORM: dict[str, Any] = {
    **FILE_FORM,
    "properties": {
        **FILE_FORM["properties"],
        "purpose": {"type": "string", "enum": list(_PURPOSES), "default": DEFAULT_PURPOSE},
    },
}


def add_file_routes(router: APIRouter, service: VideoService) -> None:
    """``/v1/files``. Each tenant has files of its own: those of others are not found."""
    _add_upload(router, service)
    _add_list(router, service)

    @router.get(FILES_PATH + "/{id}", tags=_TAGS, summary="Look up a file", responses=error_responses(401, 404))
    async def get_file(id: str, request: Request) -> FileObject:  # noqa: A002 - the API's name for it
        """When it was stored, and until when it is kept."""
        owner = tenant_of(request).name
        return _file_object(await asyncio.to_thread(service.blobs.stat, parse_file_id(id), owner=owner))

    @router.delete(FILES_PATH + "/{id}", tags=_TAGS, summary="Delete a file", responses=error_responses(401, 404, 503))
    async def delete_file(id: str, request: Request) -> DeletedFile:  # noqa: A002
        """Removes the file and the visual tokens that were cached of it."""
        digest, tenant = parse_file_id(id), tenant_of(request)
        # The file goes first, so that whoever is encoding it now sees that it is gone and drops the result;
        # deleting is safe to repeat, should the cache be out of reach.
        deleted = await asyncio.to_thread(service.blobs.delete, digest, owner=tenant.name)
        removed = await asyncio.to_thread(service.cache.delete_video, video_key(digest, salt=tenant.salt))
        if removed is None:
            raise UnavailableError("the file is deleted, but its cached tokens could not be reached; delete it again")
        return DeletedFile(id=id, deleted=deleted)


def _add_upload(router: APIRouter, service: VideoService) -> None:
    body = {"required": True, "content": {"multipart/form-data": {"schema": _UPLOAD_FORM}}}

    @router.post(
        FILES_PATH,
        tags=_TAGS,
        summary="Upload a video or picture",
        response_model=FileObject,
        responses=error_responses(400, 401, 413, 415, 429, 504, 507),
        openapi_extra={"requestBody": body},
    )
    async def upload(request: Request) -> FileObject:
        """The id is the content's SHA-256: uploading the same bytes twice stores them once.

        Whether it is a picture (JPEG, PNG, WebP) or a video is seen from its first bytes.
        """
        settings, tenant = service.settings, tenant_of(request)
        try:
            async with (
                asyncio.timeout(settings.upload_timeout_seconds),
                parse_multipart(
                    request, directory=settings.prepare_runtime_dir(), max_file_bytes=settings.max_upload_bytes
                ) as form,
            ):
                file, purpose = _uploaded(form)
                return _file_object(await service.intake.put(file.file, file.filename, tenant, purpose))
        except TimeoutError as exc:
            raise DeadlineExceededError(
                f"the file was not received within {settings.upload_timeout_seconds:g} s"
            ) from exc


def _uploaded(form: ParsedForm) -> tuple[SpooledFile, FilePurpose]:
    """The file of an upload, and what it is for."""
    unknown = sorted(form.fields.keys() - {"purpose"})
    if unknown:
        raise InvalidRequestError(
            f"an upload has no field {unknown[0]!r}; its fields are file, purpose", param=unknown[0]
        )
    given = form.fields.get("purpose", DEFAULT_PURPOSE)
    purpose = next((known for known in _PURPOSES if known == given), None)
    if purpose is None:
        raise InvalidRequestError(f"purpose must be {' or '.join(_PURPOSES)}, got {given[:80]!r}", param="purpose")
    if form.file is None:
        raise InvalidRequestError("send the file as the multipart field `file`; there is none", param="file")
    if form.file.size_bytes == 0:
        raise InvalidRequestError("the uploaded file is empty", param="file")
    return form.file, purpose


def _add_list(router: APIRouter, service: VideoService) -> None:
    @router.get(FILES_PATH, tags=_TAGS, summary="List files", responses=error_responses(400, 401, 503))
    async def list_files(
        request: Request,
        after: Annotated[str | None, Query(description="Id of a page's last file: begin behind it.")] = None,
        limit: Annotated[int, Query(ge=1, le=_MOST_LISTED)] = _MOST_LISTED,
        order: Annotated[Literal["asc", "desc"], Query(description="By time of upload.")] = "desc",
        purpose: Annotated[FilePurpose | None, Query(description="Only files with this purpose.")] = None,
    ) -> FileList:
        """Those that have not expired, the newest first."""
        blobs = await asyncio.to_thread(service.blobs.all_of, tenant_of(request).name)
        files = [_file_object(blob) for blob in blobs if purpose in {None, blob.purpose}]
        return _page(files[::-1] if order == "asc" else files, after, limit)


def _page(files: list[FileObject], after: str | None, limit: int) -> FileList:
    begin = 0
    if after is not None:
        at = next((at for at, file in enumerate(files) if file.id == after), None)
        if at is None:
            raise InvalidRequestError(f"there is no file {after[:80]!r} to go on behind", param="after")
        begin = at + 1
    page = files[begin : begin + limit]
    return FileList(
        data=page,
        has_more=begin + limit < len(files),
        first_id=page[0].id if page else None,
        last_id=page[-1].id if page else None,
    )


def _file_object(blob: StoredBlob) -> FileObject:
    return FileObject(
        id=file_id(blob.digest),
        bytes=blob.size_bytes,
        created_at=blob.created_at,
        expires_at=blob.expires_at,
        filename=blob.filename,
        purpose="vision" if blob.purpose == "vision" else "user_data",
        medium=Medium(blob.medium).value,
    )
