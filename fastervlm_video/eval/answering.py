"""Questions to an engine, many at once, and their answers when all are there."""

import queue
from collections.abc import Sequence
from functools import partial

from fastervlm_video.errors import FasterVLMError, InvalidInputError
from fastervlm_video.language import (
    CancelHandle,
    Engine,
    Event,
    Failed,
    GenerationRequest,
    TextDelta,
)

__all__ = ["answer_all"]


def answer_all(engine: Engine, requests: Sequence[GenerationRequest]) -> list[str | InvalidInputError]:
    """Submit requests together, as many at a time as the engine takes, and wait for all of them.

    Args:
        engine: nobody else may use it meanwhile, or it may be full.
        requests: in any number.

    Returns:
        In order, each answer's text, or why the request cannot be served.

    Raises:
        FasterVLMError: the engine failed; the others' answers are lost.
    """
    answers: list[str | InvalidInputError] = []
    for start in range(0, len(requests), engine.capacity):
        answers += _answer_some(engine, requests[start : start + engine.capacity])
    return answers


def _answer_some(engine: Engine, requests: Sequence[GenerationRequest]) -> list[str | InvalidInputError]:
    events: queue.SimpleQueue[tuple[int, Event]] = queue.SimpleQueue()
    handles: list[CancelHandle] = []
    texts = [""] * len(requests)
    errors: dict[int, InvalidInputError] = {}
    try:
        for index, request in enumerate(requests):
            try:
                handles.append(engine.submit(request, partial(_put, events, index)))
            except InvalidInputError as error:
                errors[index] = error
        waiting = len(handles)
        while waiting:
            index, event = events.get()
            if isinstance(event, TextDelta):
                texts[index] += event.text
                continue
            waiting -= 1
            if isinstance(event, Failed):
                _raise_unless_invalid(event.error)
                assert isinstance(event.error, InvalidInputError)  # the others have just been raised
                errors[index] = event.error
    finally:
        for handle in handles:
            handle.cancel()
    return [errors.get(index, text) for index, text in enumerate(texts)]


def _put(events: "queue.SimpleQueue[tuple[int, Event]]", index: int, event: Event) -> None:
    events.put((index, event))


def _raise_unless_invalid(error: FasterVLMError) -> None:
    if not isinstance(error, InvalidInputError):
        raise error
