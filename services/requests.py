"""Reading an untrusted request body, and bringing its file into the store. Every limit is enforced before any work."""

import asyncio
import io
import json
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

import httpx
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect, Request

from fastervlm_video.config import Medium
from fastervlm_video.errors import DeadlineExceededError, InvalidRequestError, UnsupportedMediaError
from fastervlm_video.media import SNIFF_BYTES, sniff_medium
from services.ask import ask_inquiry
from services.blobs import BlobStore, StoredBlob, parse_file_id
from services.body_limit import DEFAULT_SMALL_LIMIT_BYTES
from services.chat import supported_fields
from services.chat_schemas import ChatRequest
from services.fetch import fetch_file
from services.headers import content_length, media_type
from services.inline import decode_data_url
from services.inquiry import FileSource, InlineFile, Inquiry, StoredFile
from services.schemas import AskRequest
from services.settings import Settings
from services.stored_blob import DEFAULT_PURPOSE
from services.tenants import Tenant
from services.threads import finish_in_thread
from services.uploads import FILE_FIELD, SpooledFile, parse_multipart

__all__ = ["FileIntake", "read_ask", "read_chat"]

_JSON = "application/json"
_SMALL_JSON_SECONDS = 10.0
_MOST_NAMES = 256
_MULTIPART = "multipart/form-data"
_FIELDS = {Medium.VIDEO: "video_url", Medium.IMAGE: "image_url"}
_SHOWN = {Medium.VIDEO: "video", Medium.IMAGE: "picture"}

M = TypeVar("M", bound=BaseModel)


@asynccontextmanager
async def read_ask(request: Request, settings: Settings) -> AsyncIterator[Inquiry]:
    """Read a question from a JSON or multipart body; an uploaded file lives as long as the block.

    Raises:
        UnsupportedMediaError: the body is of another kind.
        RequestValidationError: a field is missing, unknown, or of the wrong kind.
        InvalidRequestError: the body is malformed, or does not name exactly one video or picture.
        PayloadTooLargeError: the file is too large.
    """
    kind = media_type(request.scope)
    if kind == _MULTIPART:
        async with parse_multipart(
            request, directory=settings.prepare_runtime_dir(), max_file_bytes=settings.max_upload_bytes
        ) as form:
            ask = _validated(AskRequest, {name: value for name, value in form.fields.items() if value != ""})
            _check_one_file(ask, form.file)
            yield ask_inquiry(ask, form.file)
    elif kind == _JSON:
        ask = _validated(AskRequest, await _read_json(request, _SMALL_JSON_SECONDS))
        _check_one_file(ask, None)
        yield ask_inquiry(ask, None)
    else:
        raise UnsupportedMediaError(f"send the question as {_JSON} or {_MULTIPART}, not as {kind[:80] or 'nothing'!r}")


async def read_chat(request: Request, settings: Settings) -> ChatRequest:
    """Read a conversation from a JSON body.

    Raises:
        UnsupportedMediaError: the body is of another kind.
        UnsupportedParameterError: it asks for something that this service does not have.
        RequestValidationError: a field is missing, unknown, or of the wrong kind.
        InvalidRequestError: the body is malformed.
    """
    kind = media_type(request.scope)
    if kind != _JSON:
        raise UnsupportedMediaError(f"send the conversation as {_JSON}, not as {kind[:80] or 'nothing'!r}")
    length = content_length(request.scope)
    small = length is not None and length <= DEFAULT_SMALL_LIMIT_BYTES
    body = await _read_json(request, _SMALL_JSON_SECONDS if small else settings.upload_timeout_seconds)
    return _validated(ChatRequest, supported_fields(body) if isinstance(body, dict) else body)


async def _read_json(request: Request, timeout_seconds: float) -> Any:
    """The body; a small one gets little time, for it holds one of the places for questions."""
    try:
        async with asyncio.timeout(timeout_seconds):
            body = await request.body()
        return await finish_in_thread(_parse_json, body)
    except TimeoutError as exc:
        raise DeadlineExceededError(f"the request body was not received within {timeout_seconds:g} s") from exc
    except ClientDisconnect as exc:
        raise InvalidRequestError("the connection was closed before the request body was complete") from exc
    except InvalidRequestError:
        raise
    except (ValueError, RecursionError) as exc:
        raise InvalidRequestError(f"the body is not valid JSON: {exc}") from exc


def _parse_json(body: bytes) -> Any:
    return json.loads(body, object_pairs_hook=_narrow_object)


def _narrow_object(members: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuse an object of very many names: checking them would make an error of each."""
    if len(members) > _MOST_NAMES:
        raise InvalidRequestError(f"an object of the JSON body has {len(members)} names; {_MOST_NAMES} are the most")
    return dict(members)


def _validated(kind: type[M], body: Any) -> M:
    try:
        return kind.model_validate(body)
    except ValidationError as exc:
        problems = [{**problem, "loc": ("body", *problem["loc"])} for problem in exc.errors(include_url=False)]
        raise RequestValidationError(problems) from exc


def _check_one_file(ask: AskRequest, file: SpooledFile | None) -> None:
    named = (("file", file), ("file_id", ask.file_id), ("video_url", ask.video_url), ("image_url", ask.image_url))
    given = [name for name, value in named if value]
    if len(given) != 1:
        raise InvalidRequestError(
            "name one video or picture: a file_id, a video_url, an image_url, or upload it as the multipart field "
            f"`{FILE_FIELD}`; "
            f"got {' and '.join(given) or 'none'}"
        )


class FileIntake:
    """Brings the file of a question into the blob store, wherever it comes from.

    Args:
        settings: limits and URL policy.
        blobs: the store.
    """

    def __init__(self, settings: Settings, blobs: BlobStore) -> None:
        self._settings, self._blobs = settings, blobs
        self._policy = settings.url_policy()

    async def store(self, source: FileSource, tenant: Tenant, check: Callable[[Medium], None]) -> StoredBlob:
        """The stored file that a question is about.

        Args:
            source: where it comes from.
            tenant: whose it is, or becomes.
            check: called once, before anything is fetched or stored, with what the file is (what a URL is said to
                lead to); what it raises is raised.

        Raises:
            VideoNotFoundError: no file has this id.
            UrlNotAllowedError: the URL is not allowed.
            PayloadTooLargeError: the file is too large.
            UnsupportedMediaError: it is not what it is said to be.
            StorageFullError: the store is full.
        """
        if isinstance(source, SpooledFile):
            check(await finish_in_thread(_medium_of, source.file))
            return await self.put(source.file, source.filename, tenant)
        if isinstance(source, StoredFile):
            if source.said_to_be is not None:
                check(source.said_to_be)
            blob = await asyncio.to_thread(self._blobs.stat, parse_file_id(source.file_id), owner=tenant.name)
            _require(source.said_to_be, Medium(blob.medium))
            if source.said_to_be is None:
                check(Medium(blob.medium))
            return blob
        if isinstance(source, InlineFile):
            return await self._store_inline(source, tenant, check)
        check(source.said_to_be)
        with tempfile.TemporaryFile(dir=self._scratch_dir()) as sink:
            file = cast("BinaryIO", sink)
            await fetch_file(
                source.url,
                policy=self._policy,
                limit_bytes=self._settings.max_upload_bytes,
                timeout_seconds=self._settings.upload_timeout_seconds,
                sink=file,
            )
            _require(source.said_to_be, await finish_in_thread(_medium_of, file))
            return await self.put(file, httpx.URL(source.url).path, tenant)

    async def put(self, file: BinaryIO, filename: str, tenant: Tenant, purpose: str = DEFAULT_PURPOSE) -> StoredBlob:
        """Store a local file.

        Raises:
            StorageFullError: the store is full.
        """
        return await finish_in_thread(self._blobs.put, file, filename=filename, owner=tenant.name, purpose=purpose)

    async def _store_inline(self, source: InlineFile, tenant: Tenant, check: Callable[[Medium], None]) -> StoredBlob:
        check(source.said_to_be)  # before its base64 is decoded
        limit_bytes, medium = self._settings.inline_limit_bytes, source.said_to_be
        content = await finish_in_thread(decode_data_url, source.url, medium=medium, limit_bytes=limit_bytes)
        _require(medium, sniff_medium(content[:SNIFF_BYTES]))
        return await self.put(io.BytesIO(content), f"inline {_SHOWN[medium]}", tenant)

    def _scratch_dir(self) -> Path:
        return self._settings.prepare_runtime_dir()


def _medium_of(file: BinaryIO) -> Medium:
    """What a local file is; it is left at its start."""
    file.seek(0)
    head = file.read(SNIFF_BYTES)
    file.seek(0)
    return sniff_medium(head)


def _require(said_to_be: Medium | None, medium: Medium) -> None:
    """Refuse a file that is not what the field that names it is for."""
    if said_to_be in {None, medium}:
        return
    assert said_to_be is not None
    field, other = _FIELDS[said_to_be], _FIELDS[medium]
    if medium is Medium.IMAGE:
        raise UnsupportedMediaError(f"`{field}` names a picture, not a video; name it in `{other}`", param=field)
    raise UnsupportedMediaError(
        f"`{field}` names no JPEG, PNG or WebP picture; if it is a video, name it in `{other}`", param=field
    )
