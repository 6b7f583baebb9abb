"""An answer's events as what a client gets: one JSON object, or server-sent events.

::

    event: video   once, first: frames, tokens kept, cache hit or miss
    event: delta   pieces of the answer as they come
    event: done    once, last: the same object that an unstreamed request returns
    event: error   instead of the rest, if something fails on the way
"""

import asyncio
import json
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from http import HTTPStatus

from pydantic import BaseModel
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from fastervlm_video.errors import DeadlineExceededError, FasterVLMError
from services.answering import AnswerEvent, VideoReady
from services.blobs import file_id
from services.http_errors import to_http
from services.schemas import AskResponse, Usage, VideoBlock
from services.stages import AnswerDone, AnswerText

__all__ = ["AnswerBuilder", "EventStreamResponse", "collect_answer", "server_sent_events", "within_deadline"]

logger = logging.getLogger(__name__)


class AnswerBuilder:
    """Gathers an answer's events.

    Args:
        request_id: of the request.
        model: name of the model.
        digest: SHA-256 of the video.
        fetch_seconds: time spent on receiving or downloading the video.
        begin: ``time.perf_counter()`` when the request came in.
    """

    def __init__(self, *, request_id: str, model: str, digest: str, fetch_seconds: float, begin: float) -> None:
        self._request_id, self._model, self._digest = request_id, model, digest
        self._fetch_seconds, self._begin = fetch_seconds, begin
        self._pieces: list[str] = []
        self._ready: VideoReady | None = None

    def add(self, event: AnswerEvent) -> AskResponse | None:
        """Take the next event; the last one gives the whole answer."""
        if isinstance(event, VideoReady):
            self._ready = event
        elif isinstance(event, AnswerText):
            self._pieces.append(event.text)
        else:
            return self._finish(event)
        return None

    def video(self, seconds: dict[str, float] | None = None) -> VideoBlock:
        """What is known of the video once :class:`~services.answering.VideoReady` has come."""
        assert self._ready is not None
        tokens = self._ready.tokens
        spent = {"fetch": self._fetch_seconds, **tokens.seconds, **(seconds or {})}
        return VideoBlock(
            file_id=file_id(self._digest),
            frames=len(tokens.pts_seconds),
            frame_seconds=[round(moment, 3) for moment in tokens.pts_seconds],
            method=tokens.method,
            tokens_full=tokens.tokens_full,
            tokens_kept=tokens.tokens_kept,
            tokens_per_frame=list(tokens.tokens_per_frame),
            cache=self._ready.cache,
            seconds={name: round(value, 4) for name, value in spent.items()},
        )

    def _finish(self, done: AnswerDone) -> AskResponse:
        usage = Usage(
            prompt_tokens=done.prompt_tokens,
            completion_tokens=done.completion_tokens,
            total_tokens=done.prompt_tokens + done.completion_tokens,
        )
        return AskResponse(
            id=f"ask-{self._request_id}",
            created=int(time.time()),
            model=self._model,
            answer="".join(self._pieces),
            finish_reason=done.finish_reason,
            usage=usage,
            video=self.video({**done.seconds, "total": time.perf_counter() - self._begin}),
        )


async def within_deadline(
    events: AsyncGenerator[AnswerEvent, None], timeout_seconds: float
) -> AsyncGenerator[AnswerEvent, None]:
    """The same events, but not for longer than this.

    Raises:
        DeadlineExceededError: the next event did not come in time.
    """
    deadline = asyncio.get_running_loop().time() + timeout_seconds
    async with aclosing(events):
        while True:
            try:
                async with asyncio.timeout_at(deadline):
                    event = await anext(events)
            except StopAsyncIteration:
                return
            except TimeoutError as exc:
                raise DeadlineExceededError(f"the answer was not complete within {timeout_seconds:g} s") from exc
            yield event


async def collect_answer(events: AsyncGenerator[AnswerEvent, None], builder: AnswerBuilder) -> AskResponse:
    """Wait for the whole answer.

    Raises:
        FasterVLMError: it failed, or ended without its last event.
    """
    async with aclosing(events):
        async for event in events:
            if (answer := builder.add(event)) is not None:
                return answer
    raise FasterVLMError("the answer ended before its end")


async def server_sent_events(
    first: AnswerEvent, events: AsyncGenerator[AnswerEvent, None], builder: AnswerBuilder, request_id: str
) -> AsyncIterator[str]:
    """The answer as server-sent events. ``first`` was awaited before the response began, so that what fails
    early keeps its HTTP status.
    """
    try:
        answer = builder.add(first)
        yield _event("video", builder.video())
        async for event in events:
            answer = builder.add(event)
            if answer is not None:
                yield _event("done", answer)
            elif isinstance(event, AnswerText):
                yield _event("delta", event.text)
        if answer is None:
            raise FasterVLMError("the answer ended before its end")
    except Exception as exc:
        status, body, _ = to_http(exc, request_id=request_id)
        ours = status == HTTPStatus.INTERNAL_SERVER_ERROR
        logger.warning("request %s failed while it was streamed: %s", request_id, exc, exc_info=exc if ours else None)
        yield _event("error", body)


def _event(name: str, content: BaseModel | str | dict[str, object]) -> str:
    if isinstance(content, BaseModel):
        data = content.model_dump_json()
    else:
        data = json.dumps({"text": content} if isinstance(content, str) else content)
    return f"event: {name}\ndata: {data}\n\n"


class EventStreamResponse(StreamingResponse):
    """Server-sent events whose source is closed however the response ends, begun or not."""

    def __init__(self, content: AsyncIterator[str], source: AsyncGenerator[AnswerEvent, None]) -> None:
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        super().__init__(content, media_type="text/event-stream", headers=headers)
        self._source = source

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response (ASGI)."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._source.aclose()
