"""An answer's events, gathered, and sent in the form that the client speaks: a :class:`Dialect`."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Literal, Protocol

from pydantic import BaseModel
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from fastervlm_video.errors import DeadlineExceededError, FasterVLMError
from services.answering import AnswerEvent, VideoReady
from services.blobs import file_id
from services.http_errors import to_http
from services.schemas import PromptTokensDetails, Usage, VideoBlock
from services.stages import AnswerDone, AnswerText

__all__ = [
    "AnswerBuilder",
    "CompleteAnswer",
    "Dialect",
    "EventStreamResponse",
    "collect_answer",
    "server_sent_events",
    "within_deadline",
]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class CompleteAnswer:
    """An answer, in no dialect yet.

    Attributes:
        text: of the answer.
        finish_reason: ``length`` if the token limit cut it.
        usage: token counts.
        video: what was done with the video or picture.
    """

    text: str
    finish_reason: Literal["stop", "length"]
    usage: Usage
    video: VideoBlock


class AnswerBuilder:
    """Gathers an answer's events.

    Args:
        digest: SHA-256 of the video or picture.
        fetch_seconds: time spent on receiving or downloading it.
        begin: ``time.perf_counter()`` when the request came in.
        on_first_text: is called with the first piece of text: with whether the tokens were cached, and with the seconds
            since the request came in.
        on_complete: is called with the answer when it is complete.
    """

    def __init__(
        self,
        *,
        digest: str,
        fetch_seconds: float,
        begin: float,
        on_first_text: Callable[[Literal["hit", "miss"], float], None] | None = None,
        on_complete: Callable[[CompleteAnswer], None] | None = None,
    ) -> None:
        self._digest, self._fetch_seconds, self._begin = digest, fetch_seconds, begin
        self._on_first_text, self._on_complete = on_first_text, on_complete
        self._pieces: list[str] = []
        self._ready: VideoReady | None = None

    def add(self, event: AnswerEvent) -> CompleteAnswer | None:
        """Take the next event; the last one gives the whole answer."""
        if isinstance(event, VideoReady):
            self._ready = event
        elif isinstance(event, AnswerText):
            if not self._pieces and self._on_first_text is not None:
                assert self._ready is not None
                self._on_first_text(self._ready.cache, time.perf_counter() - self._begin)
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
            medium=tokens.medium.value,
            frames=len(tokens.pts_seconds),
            frame_seconds=[round(moment, 3) for moment in tokens.pts_seconds],
            views_per_picture=tokens.views_per_picture,
            method=tokens.method,
            tokens_full=tokens.tokens_full,
            tokens_kept=tokens.tokens_kept,
            tokens_per_frame=list(tokens.tokens_per_frame),
            cache=self._ready.cache,
            seconds={name: round(value, 4) for name, value in spent.items()},
        )

    def _finish(self, done: AnswerDone) -> CompleteAnswer:
        usage = Usage(
            prompt_tokens=done.prompt_tokens,
            completion_tokens=done.completion_tokens,
            total_tokens=done.prompt_tokens + done.completion_tokens,
            prompt_tokens_details=PromptTokensDetails(cached_tokens=done.cached_tokens),
        )
        video = self.video({**done.seconds, "total": time.perf_counter() - self._begin})
        answer = CompleteAnswer("".join(self._pieces), done.finish_reason, usage, video)
        if self._on_complete is not None:
            self._on_complete(answer)
        return answer


class Dialect(Protocol):
    """How one kind of client wants its answers. The methods for streams return framed server-sent events."""

    def whole(self, answer: CompleteAnswer) -> BaseModel:
        """The body of an answer that is not streamed."""

    def begin(self, answer: AnswerBuilder) -> str:
        """What comes first, when the visual tokens are known."""

    def piece(self, text: str) -> str:
        """The next piece of text."""

    def end(self, answer: CompleteAnswer) -> str:
        """What comes last."""

    def error(self, body: dict[str, Any]) -> str:
        """What comes instead of the rest if something fails on the way; ``body`` as in any error response."""


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


async def collect_answer(events: AsyncGenerator[AnswerEvent, None], builder: AnswerBuilder) -> CompleteAnswer:
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
    first: AnswerEvent,
    events: AsyncGenerator[AnswerEvent, None],
    builder: AnswerBuilder,
    dialect: Dialect,
    request_id: str,
    *,
    on_error: Callable[[dict[str, Any]], None] | None = None,
) -> AsyncIterator[str]:
    """The answer as server-sent events. ``first`` was awaited before the response began, so that what fails
    early keeps its HTTP status. ``on_error`` is called with the body of an error that comes later.
    """
    answer: CompleteAnswer | None = None
    try:
        answer = builder.add(first)
        yield dialect.begin(builder)
        async for event in events:
            answer = builder.add(event)
            if answer is not None:
                yield dialect.end(answer)
            elif isinstance(event, AnswerText):
                yield dialect.piece(event.text)
        if answer is None:
            raise FasterVLMError("the answer ended before its end")
    except Exception as exc:
        if answer is not None:
            logger.warning("request %s failed when its answer was complete: %s", request_id, exc)
            return
        status, body, _ = to_http(exc, request_id=request_id)
        ours = status == HTTPStatus.INTERNAL_SERVER_ERROR
        logger.warning("request %s failed while it was streamed: %s", request_id, exc, exc_info=exc if ours else None)
        if on_error is not None:
            on_error(body)
        yield dialect.error(body)


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
