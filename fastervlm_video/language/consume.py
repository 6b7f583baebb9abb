"""Ways to wait for an answer: asynchronously, as an iterator, or all at once."""

import asyncio
import queue
from collections.abc import AsyncGenerator, Generator
from dataclasses import dataclass

from fastervlm_video.errors import UnavailableError
from fastervlm_video.language.engine import (
    Engine,
    EngineTimings,
    Event,
    Failed,
    Finished,
    FinishReason,
    GenerationRequest,
    TextDelta,
    Usage,
)

__all__ = ["GenerationResult", "generate", "iter_events", "stream"]


@dataclass(frozen=True, slots=True)
class GenerationResult:
    """A complete answer.

    Attributes:
        text: the answer, without special tokens and leading blanks.
        finish_reason: ``stop`` or ``length``.
        usage: tokens.
        timings: seconds.
        token_ids: all generated ids, the end-of-answer token included.
    """

    text: str
    finish_reason: FinishReason
    usage: Usage
    timings: EngineTimings
    token_ids: tuple[int, ...]


async def stream(engine: Engine, request: GenerationRequest) -> AsyncGenerator[TextDelta | Finished, None]:
    """The events of a request, on the running event loop.

    The request is submitted when the first event is asked for. Closing the iterator, or cancelling the task
    that waits in it, cancels the request in the engine.

    Yields:
        pieces of text, then :class:`Finished`.

    Raises:
        FasterVLMError: the engine refused the request (see :meth:`Engine.submit`) or failed to answer it.
    """
    loop = asyncio.get_running_loop()
    events: asyncio.Queue[Event] = asyncio.Queue()

    def on_event(event: Event) -> None:
        # Raises RuntimeError once the loop is closed; the engine then drops the request.
        loop.call_soon_threadsafe(events.put_nowait, event)

    handle = engine.submit(request, on_event)
    try:
        while True:
            event = await events.get()
            if isinstance(event, Failed):
                raise event.error
            yield event
            if isinstance(event, Finished):
                return
    finally:
        handle.cancel()


def iter_events(engine: Engine, request: GenerationRequest) -> Generator[TextDelta | Finished, None, None]:
    """The events of a request, for callers without an event loop; blocks between them.

    The request is submitted when the first event is asked for; closing the iterator cancels it.

    Yields:
        pieces of text, then :class:`Finished`.

    Raises:
        FasterVLMError: the engine refused the request (see :meth:`Engine.submit`) or failed to answer it.
    """
    events: queue.SimpleQueue[Event] = queue.SimpleQueue()
    handle = engine.submit(request, events.put)
    try:
        while True:
            event = events.get()
            if isinstance(event, Failed):
                raise event.error
            yield event
            if isinstance(event, Finished):
                return
    finally:
        handle.cancel()


def generate(engine: Engine, request: GenerationRequest) -> GenerationResult:
    """The whole answer; blocks until it is there.

    Raises:
        FasterVLMError: the engine refused the request (see :meth:`Engine.submit`) or failed to answer it.
    """
    pieces: list[str] = []
    for event in iter_events(engine, request):
        if isinstance(event, TextDelta):
            pieces.append(event.text)
        else:
            return GenerationResult("".join(pieces), event.finish_reason, event.usage, event.timings, event.token_ids)
    raise UnavailableError("the engine ended an answer without saying so; send the request again")
