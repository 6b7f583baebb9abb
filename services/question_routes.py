"""Questions, in both dialects: one way from a request to its answer, whichever form they have."""

import asyncio
import functools
import logging
import time
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from fastapi import APIRouter, Request, Response
from starlette.responses import JSONResponse

from fastervlm_video.config import Medium
from fastervlm_video.errors import DeadlineExceededError
from fastervlm_video.plan import ModelFacts
from services.answering import Question
from services.answers import (
    AnswerBuilder,
    CompleteAnswer,
    Dialect,
    EventStreamResponse,
    collect_answer,
    server_sent_events,
    within_deadline,
)
from services.ask import AskDialect
from services.auth import tenant_of
from services.chat import ChatDialect, chat_inquiry
from services.chat_schemas import CHAT_EXAMPLES, ChatCompletion, ChatRequest
from services.file_routes import FILE_FORM
from services.http_errors import error_responses, note_error_code, request_id_of
from services.inquiry import Choices, Inquiry, check_medium, choose
from services.metrics import AnswerFacts
from services.paths import ASK_PATH, CHAT_PATH
from services.requests import read_ask, read_chat
from services.schemas import ASK_EXAMPLES, AskRequest, AskResponse
from services.service import VideoService

__all__ = ["add_question_routes"]

logger = logging.getLogger(__name__)

_TAGS: list[Any] = ["questions"]
_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}},
    **error_responses(400, 401, 404, 413, 415, 422, 429, 503, 504, 507),
}
_SCHEMAS = "#/components/schemas/{model}"


def add_question_routes(router: APIRouter, service: VideoService) -> None:
    """``/v1/ask`` and ``/v1/chat/completions``."""
    _add_ask(router, service)
    _add_chat(router, service)


def _add_ask(router: APIRouter, service: VideoService) -> None:
    schema = AskRequest.model_json_schema(ref_template=_SCHEMAS)
    form = {**schema, "properties": {**FILE_FORM["properties"], **schema["properties"]}}
    body = {
        "required": True,
        "content": {
            "application/json": {"schema": schema, "examples": ASK_EXAMPLES},
            "multipart/form-data": {"schema": form},
        },
    }

    @router.post(
        ASK_PATH,
        tags=_TAGS,
        summary="Ask a question about a video or picture",
        response_model=AskResponse,
        responses=_RESPONSES,
        openapi_extra={"requestBody": body},
    )
    async def ask(request: Request) -> Response:
        """Name a video or picture by `file_id`, `video_url` or `image_url` in JSON, or upload it with the question as
        multipart; what an uploaded file is is seen from its content.

        With `stream` the answer comes as server-sent events: `video`, `delta`…, `done` (or `error`).
        """
        return await _answer(request, service, _reading_ask(request, service))


def _add_chat(router: APIRouter, service: VideoService) -> None:
    schema = ChatRequest.model_json_schema(ref_template=_SCHEMAS)
    definitions = schema.pop("$defs")
    body = {"required": True, "content": {"application/json": {"schema": schema, "examples": CHAT_EXAMPLES}}}

    @router.post(
        CHAT_PATH,
        tags=_TAGS,
        summary="Ask in the form of OpenAI's chat completions",
        response_model=ChatCompletion,
        responses=_RESPONSES,
        openapi_extra={"requestBody": _with_definitions(body, definitions)},
    )
    async def chat(request: Request) -> Response:
        """A conversation about one video or picture, in the user's first message; several turns may follow.

        What OpenAI's API has and this one has not (tools, penalties, log probabilities, more than one choice …) is
        refused with the parameter's name, never ignored; only `user`, `metadata` and the like, which ask for nothing
        that would show, are taken without effect. `temperature` is 1 if it is not given, as in OpenAI's API.

        A video is named in a `video_url` part and a picture in an `image_url` part; which of them a file is is seen
        from its content, and one named in the other's part is refused.

        What was done with the video or picture is in `video`: of the answer, or of a stream's last chunk with a choice.
        """
        return await _answer(request, service, _reading_chat(request, service))


def _with_definitions(body: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    """The request's schema with its parts in place of references, which have no components to refer to here."""

    def resolve(node: Any) -> Any:
        if isinstance(node, list):
            return [resolve(item) for item in node]
        if not isinstance(node, dict):
            return node
        if isinstance(node.get("$ref"), str):
            return resolve(definitions[node["$ref"].rpartition("/")[2]])
        return {name: resolve(item) for name, item in node.items() if name != "discriminator"}

    resolved: dict[str, Any] = resolve(body)
    return resolved


@asynccontextmanager
async def _reading_ask(request: Request, service: VideoService) -> AsyncIterator[tuple[Inquiry, Dialect]]:
    async with read_ask(request, service.settings) as inquiry:
        yield inquiry, AskDialect(request_id=request_id_of(request.scope), model=service.facts.name)


@asynccontextmanager
async def _reading_chat(request: Request, service: VideoService) -> AsyncIterator[tuple[Inquiry, Dialect]]:
    chat = await read_chat(request, service.settings)
    dialect = ChatDialect(
        request_id=request_id_of(request.scope),
        model=service.facts.name,
        include_usage=chat.stream_options is not None and chat.stream_options.include_usage,
    )
    yield chat_inquiry(chat, service.facts.name), dialect


_Reading = AbstractAsyncContextManager[tuple[Inquiry, Dialect]]


async def _answer(request: Request, service: VideoService, reading: _Reading) -> Response:
    await service.readiness.require()
    begin = time.perf_counter()
    question, dialect, streamed = await _receive(request, service, reading)
    builder = AnswerBuilder(
        digest=question.digest,
        fetch_seconds=time.perf_counter() - begin,
        begin=begin,
        on_first_text=functools.partial(service.answering.meter.first_text, streamed=streamed),
        on_complete=functools.partial(_count, service),
    )
    answering = service.answering.events(question, whole=not streamed)
    events = within_deadline(answering, service.settings.request_timeout_seconds)
    if not streamed:
        return JSONResponse(dialect.whole(await collect_answer(events, builder)).model_dump())
    first = await anext(events)
    on_error = functools.partial(note_error_code, request.scope)
    pieces = server_sent_events(first, events, builder, dialect, question.request_id, on_error=on_error)
    return EventStreamResponse(pieces, events)


def _count(service: VideoService, answer: CompleteAnswer) -> None:
    usage, video = answer.usage, answer.video
    facts = AnswerFacts(
        cache=video.cache,
        seconds=video.seconds,
        tokens_full=video.tokens_full,
        tokens_kept=video.tokens_kept,
        prompt_tokens=usage.prompt_tokens,
        reused_tokens=usage.prompt_tokens_details.cached_tokens,
        answer_tokens=usage.completion_tokens,
    )
    service.answering.meter.complete(facts)
    logger.info(
        "answered from %d of %d visual tokens (cache %s), %d tokens in %.3f s",
        video.tokens_kept,
        video.tokens_full,
        video.cache,
        usage.completion_tokens,
        video.seconds["total"],
    )


async def _receive(request: Request, service: VideoService, reading: _Reading) -> tuple[Question, Dialect, bool]:
    """Read, check and store; gives the question, its dialect, and whether its answer is to be streamed."""
    settings, facts, tenant = service.settings, service.facts, tenant_of(request)
    try:
        async with asyncio.timeout(settings.upload_timeout_seconds), reading as (inquiry, dialect):
            choices = choose(inquiry, service.live, facts.patches_per_frame)
            refuse = functools.partial(_refuse_early, facts, inquiry, choices)
            blob = await service.intake.store(inquiry.source, tenant, refuse)
    except TimeoutError as exc:
        raise DeadlineExceededError(
            f"the request was not received within {settings.upload_timeout_seconds:g} s; upload large files first"
        ) from exc
    plan = facts.plan(
        blob.digest,
        choices.sampling,
        choices.prune,
        medium=Medium(blob.medium),
        dtype=service.cache.dtype,
        salt=tenant.salt,
    )
    question = Question(
        request_id=request_id_of(request.scope),
        digest=blob.digest,
        owner=tenant.name,
        messages=inquiry.messages,
        sampling=choices.sampling,
        prune=choices.prune,
        plan=plan,
        params=choices.params,
    )
    return question, dialect, inquiry.stream


def _refuse_early(facts: ModelFacts, inquiry: Inquiry, choices: Choices, medium: Medium) -> None:
    """Raise what can be known to be wrong with a request before its file is stored.

    Of a picture that is seen in several views the fewest are counted; the Generator knows how many there are.
    """
    check_medium(inquiry, medium)
    runs = facts.visual_runs(choices.sampling, choices.prune, medium)
    facts.chat_prompt(inquiry.messages, runs, choices.params, medium)
