"""Waiting for answers: on an event loop, as an iterator, all at once."""

import asyncio
import inspect

import pytest
from transformers import PreTrainedTokenizerFast

from fastervlm_video.errors import OverloadedError, UnavailableError
from fastervlm_video.language import (
    EngineLimits,
    Finished,
    GenerationRequest,
    PagedEngine,
    TextDelta,
    generate,
    iter_events,
    stream,
)
from fastervlm_video.models.base import LanguageHalf
from tests.language.kit import PATIENCE_SECONDS, Gate, wait_until
from tests.language.toys import make_half, make_request


async def collect(engine: PagedEngine, request: GenerationRequest) -> tuple[str, Finished]:
    pieces: list[TextDelta] = []
    async for event in stream(engine, request):
        if isinstance(event, Finished):
            assert sum(piece.token_count for piece in pieces) <= event.usage.completion_tokens
            return "".join(piece.text for piece in pieces), event
        pieces.append(event)
    raise AssertionError("no end")


async def test_many_streams_at_once_equal_blocking_answers(
    half: LanguageHalf, tokenizer: PreTrainedTokenizerFast
) -> None:
    requests = [make_request(half, seed=number, max_tokens=20) for number in range(10)]
    with PagedEngine(half, tokenizer, EngineLimits(max_batch_size=4)) as engine:
        streamed = await asyncio.gather(*(collect(engine, request) for request in requests))
        for request, (text, end) in zip(requests, streamed, strict=True):
            result = await asyncio.to_thread(generate, engine, request)
            assert (result.text, result.token_ids, result.finish_reason) == (text, end.token_ids, end.finish_reason)
            assert result.usage == end.usage


async def test_pieces_come_before_the_answer_is_complete_and_closing_cancels(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    half = make_half(tokenizer, end_ids=[])
    with PagedEngine(half, tokenizer) as engine:
        gate = Gate(engine)
        gate.open(10)
        events = stream(engine, make_request(half, max_tokens=80))
        assert inspect.isasyncgen(events)
        assert isinstance(await anext(events), TextDelta)
        await events.aclose()
        gate.open()
        await asyncio.to_thread(wait_until, lambda: engine.running == 0)
    assert gate.passes <= 11  # the pass that the gate may have held when it was cancelled


async def test_cancelling_the_waiting_task_cancels_its_request(tokenizer: PreTrainedTokenizerFast) -> None:
    half = make_half(tokenizer, end_ids=[])
    with PagedEngine(half, tokenizer) as engine:
        gate = Gate(engine)
        task = asyncio.create_task(collect(engine, make_request(half, max_tokens=80)))
        await asyncio.to_thread(wait_until, lambda: engine.running == 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        gate.open()
        await asyncio.to_thread(wait_until, lambda: engine.running == 0)
    assert gate.passes == 1


async def test_a_failure_is_raised_where_it_is_waited_for(
    half: LanguageHalf, tokenizer: PreTrainedTokenizerFast
) -> None:
    engine = PagedEngine(half, tokenizer, EngineLimits(max_batch_size=1, max_queue=0))
    gate = Gate(engine)
    task = asyncio.create_task(collect(engine, make_request(half, max_tokens=50)))
    await asyncio.to_thread(wait_until, lambda: engine.running == 1)
    with pytest.raises(OverloadedError):
        await collect(engine, make_request(half))
    closing = asyncio.create_task(asyncio.to_thread(engine.close))
    await asyncio.to_thread(wait_until, lambda: not engine.healthy)
    gate.open()
    with pytest.raises(UnavailableError, match="closed"):
        await asyncio.wait_for(task, PATIENCE_SECONDS)
    await closing


def test_closing_an_iterator_cancels_its_request(tokenizer: PreTrainedTokenizerFast) -> None:
    half = make_half(tokenizer, end_ids=[])
    with PagedEngine(half, tokenizer) as engine:
        gate = Gate(engine)
        gate.open(10)
        events = iter_events(engine, make_request(half, max_tokens=80))
        assert inspect.isgenerator(events)
        assert isinstance(next(events), TextDelta)
        events.close()
        gate.open()
        wait_until(lambda: engine.running == 0)
    assert gate.passes <= 11


def test_token_counts_of_pieces_add_up(tokenizer: PreTrainedTokenizerFast) -> None:
    half = make_half(tokenizer, end_ids=[])
    with PagedEngine(half, tokenizer) as engine:
        *pieces, end = iter_events(engine, make_request(half, max_tokens=40))
    assert isinstance(end, Finished)
    counts = [piece.token_count for piece in pieces if isinstance(piece, TextDelta)]
    assert len(counts) == len(pieces)
    assert all(count >= 1 for count in counts)
    assert sum(counts) <= 40
