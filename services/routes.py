"""The HTTP routes. Thin: reading a request, calling what does the work, shaping the response."""

import asyncio
import time
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request, Response
from starlette.responses import JSONResponse

from fastervlm_video.cache import TokenCache, video_key
from fastervlm_video.errors import DeadlineExceededError, InvalidRequestError, UnavailableError
from fastervlm_video.plan import ModelFacts
from fastervlm_video.prune import get_method, method_names
from services.answering import Answering, Question
from services.answers import AnswerBuilder, EventStreamResponse, collect_answer, server_sent_events, within_deadline
from services.blobs import BlobStore, StoredBlob, file_id, parse_file_id
from services.http_errors import ErrorResponse, request_id_of
from services.live import LiveConfig
from services.paths import ASK_PATH, FILES_PATH
from services.readiness import ReadinessProbe
from services.requests import VideoIntake, choose, read_ask
from services.schemas import (
    ASK_EXAMPLES,
    AskRequest,
    AskResponse,
    DeletedFile,
    FileObject,
    Health,
    ModelList,
    ModelObject,
    Readiness,
)
from services.settings import Settings
from services.uploads import parse_multipart

__all__ = ["VideoService", "build_router"]

_FILE_FORM: dict[str, Any] = {
    "type": "object",
    "properties": {"file": {"type": "string", "format": "binary", "description": "The video."}},
    "required": ["file"],
}


@dataclass(slots=True, eq=False)
class VideoService:
    """What the routes work with, one per Api replica.

    Attributes:
        settings: fixed while the replica lives.
        live: what may change meanwhile.
        facts: of the served checkpoint.
        cache: of kept tokens.
        blobs: uploaded videos.
        intake: brings videos into ``blobs``.
        answering: calls the stages.
        readiness: knows whether they can be called.
        started_at: seconds since 1970.
    """

    settings: Settings
    live: LiveConfig
    facts: ModelFacts
    cache: TokenCache
    blobs: BlobStore
    intake: VideoIntake
    answering: Answering
    readiness: ReadinessProbe
    started_at: int


def _errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": ErrorResponse} for status in statuses}


def build_router(service: VideoService) -> APIRouter:
    """All routes of the API."""
    router = APIRouter()
    _add_ask(router, service)
    _add_files(router, service)
    _add_state(router, service)
    return router


def _add_ask(router: APIRouter, service: VideoService) -> None:
    schema = AskRequest.model_json_schema(ref_template="#/components/schemas/{model}")
    form = {**schema, "properties": {**_FILE_FORM["properties"], **schema["properties"]}}
    body = {
        "required": True,
        "content": {
            "application/json": {"schema": schema, "examples": ASK_EXAMPLES},
            "multipart/form-data": {"schema": form},
        },
    }

    @router.post(
        ASK_PATH,
        tags=["questions"],
        summary="Ask a question about a video",
        response_model=AskResponse,
        responses={
            200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}},
            **_errors(400, 404, 413, 415, 422, 429, 503, 504, 507),
        },
        openapi_extra={"requestBody": body},
    )
    async def ask(request: Request) -> Response:
        """Name a video by `file_id` or `video_url` in JSON, or upload it with the question as multipart.

        With `stream` the answer comes as server-sent events: `video`, `delta`…, `done` (or `error`).
        """
        await service.readiness.require()
        return await _answer(request, service)


async def _answer(request: Request, service: VideoService) -> Response:
    begin = time.perf_counter()
    question, streamed = await _receive(request, service)
    builder = AnswerBuilder(
        request_id=question.request_id,
        model=service.facts.name,
        digest=question.digest,
        fetch_seconds=time.perf_counter() - begin,
        begin=begin,
    )
    events = within_deadline(service.answering.events(question), service.settings.request_timeout_seconds)
    if not streamed:
        return JSONResponse((await collect_answer(events, builder)).model_dump())
    first = await anext(events)
    return EventStreamResponse(server_sent_events(first, events, builder, question.request_id), events)


async def _receive(request: Request, service: VideoService) -> tuple[Question, bool]:
    """Read, check and store; gives the question, and whether its answer is to be streamed."""
    settings, facts = service.settings, service.facts
    try:
        async with asyncio.timeout(settings.upload_timeout_seconds), read_ask(request, settings) as (ask, file):
            choices = choose(ask, service.live, facts.patches_per_frame)
            num_visual = facts.num_visual(choices.sampling, choices.prune)
            facts.prompt(ask.question, num_visual, choices.params)  # refused before the video is stored
            blob = await service.intake.store(ask, file)
    except TimeoutError as exc:
        raise DeadlineExceededError(
            f"the request was not received within {settings.upload_timeout_seconds:g} s; upload large files first"
        ) from exc
    question = Question(
        request_id=request_id_of(request.scope),
        digest=blob.digest,
        text=ask.question,
        sampling=choices.sampling,
        prune=choices.prune,
        plan=facts.plan(blob.digest, choices.sampling, choices.prune, salt=settings.salt),
        params=choices.params,
    )
    return question, ask.stream


def _add_files(router: APIRouter, service: VideoService) -> None:
    tags: list[Any] = ["files"]
    body = {"required": True, "content": {"multipart/form-data": {"schema": _FILE_FORM}}}

    @router.post(
        FILES_PATH,
        tags=tags,
        summary="Upload a video",
        response_model=FileObject,
        responses=_errors(400, 413, 415, 429, 504, 507),
        openapi_extra={"requestBody": body},
    )
    async def upload(request: Request) -> FileObject:
        """The id is the content's SHA-256: uploading the same bytes twice stores them once."""
        settings = service.settings
        try:
            async with (
                asyncio.timeout(settings.upload_timeout_seconds),
                parse_multipart(
                    request, directory=settings.prepare_runtime_dir(), max_file_bytes=settings.max_upload_bytes
                ) as form,
            ):
                if form.file is None:
                    raise InvalidRequestError("send the video as the multipart field `file`; there is none")
                if form.file.size_bytes == 0:
                    raise InvalidRequestError("the uploaded file is empty")
                return _file_object(await service.intake.put(form.file.file, form.file.filename))
        except TimeoutError as exc:
            raise DeadlineExceededError(
                f"the file was not received within {settings.upload_timeout_seconds:g} s"
            ) from exc

    @router.get(FILES_PATH + "/{id}", tags=tags, summary="Look up a file", responses=_errors(404))
    async def get_file(id: str) -> FileObject:  # noqa: A002 - the API's name for it
        """When it was stored, and until when it is kept."""
        return _file_object(await asyncio.to_thread(service.blobs.stat, parse_file_id(id)))

    @router.delete(FILES_PATH + "/{id}", tags=tags, summary="Delete a file", responses=_errors(404, 503))
    async def delete_file(id: str) -> DeletedFile:  # noqa: A002
        """Removes the file and the visual tokens that were cached of it."""
        digest = parse_file_id(id)
        # The file goes first, so that whoever is encoding it now sees that it is gone and drops the result;
        # deleting is safe to repeat, should the cache be out of reach.
        deleted = await asyncio.to_thread(service.blobs.delete, digest)
        removed = await asyncio.to_thread(service.cache.delete_video, video_key(digest, salt=service.settings.salt))
        if removed is None:
            raise UnavailableError("the file is deleted, but its cached tokens could not be reached; delete it again")
        return DeletedFile(id=id, deleted=deleted)


def _file_object(blob: StoredBlob) -> FileObject:
    return FileObject(
        id=file_id(blob.digest),
        bytes=blob.size_bytes,
        created_at=blob.created_at,
        expires_at=blob.expires_at,
        filename=blob.filename,
    )


def _add_state(router: APIRouter, service: VideoService) -> None:
    tags: list[Any] = ["state"]

    @router.get("/v1/models", tags=tags, summary="What is served")
    async def models() -> ModelList:
        """The served model, its geometry, and the defaults of a request."""
        return ModelList(data=[_model_object(service)])

    @router.get("/healthz", tags=tags, summary="Alive")
    async def healthz() -> Health:
        """Answers as long as the process does."""
        return Health()

    @router.get("/readyz", tags=tags, summary="Ready", responses={503: {"model": Readiness}})
    async def readyz(response: Response) -> Readiness:
        """200 when every stage is healthy, or scaled to zero and able to start; otherwise 503."""
        found = await service.readiness.states()
        response.status_code = 200 if found.ready else 503
        return Readiness(status="ready" if found.ready else "not_ready", stages=found.states)


def _model_object(service: VideoService) -> ModelObject:
    facts, live = service.facts, service.live
    return ModelObject(
        id=facts.name,
        created=service.started_at,
        owned_by="fastervlm-video",
        context_length=facts.context_length,
        patches_per_frame=facts.patches_per_frame,
        methods=[name for name in method_names() if get_method(name).fixed_total],
        default_method=live.default_method,
        default_keep_ratio=live.default_keep_ratio,
        default_num_frames=live.default_num_frames,
    )
