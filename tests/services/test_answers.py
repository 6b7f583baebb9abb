import asyncio
import json
import time
from collections.abc import AsyncGenerator, Iterator, MutableMapping
from dataclasses import replace
from typing import Any

import httpx
import pytest
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from fastervlm_video.config import Medium
from fastervlm_video.errors import CorruptMediaError, DeadlineExceededError, FasterVLMError
from services.answering import AnswerEvent, VideoReady
from services.answers import (
    AnswerBuilder,
    EventStreamResponse,
    collect_answer,
    server_sent_events,
    within_deadline,
)
from services.ask import AskDialect
from services.stages import AnswerDone, AnswerText, TokensReady
from tests.services.live import serve_asgi, wait_until

DIGEST = "ab" * 32
READY = VideoReady(
    TokensReady(
        pts_seconds=(0.0, 1.23456),
        method="cls_attention",
        tokens_per_frame=(6, 6),
        tokens_full=128,
        tokens_kept=12,
        seconds={"decode": 0.123456, "encode": 0.5},
    ),
    "miss",
)
DONE = AnswerDone(
    finish_reason="stop",
    prompt_tokens=30,
    completion_tokens=3,
    cached_tokens=7,
    seconds={"first_token": 0.25, "generate": 0.5},
)
WHOLE: list[AnswerEvent] = [READY, AnswerText("a red"), AnswerText(" square"), DONE]


def new_builder() -> AnswerBuilder:
    return AnswerBuilder(digest=DIGEST, fetch_seconds=0.111111, begin=time.perf_counter())


def new_dialect() -> AskDialect:
    return AskDialect(request_id="r1", model="a-model")


class Source:
    """Gives ``events``, then raises ``error`` or hangs; knows whether it was closed."""

    def __init__(self, *events: AnswerEvent, error: Exception | None = None, hang: bool = False) -> None:
        self._events, self._error, self._hang = events, error, hang
        self.begun, self.closed = False, False

    async def __call__(self) -> AsyncGenerator[AnswerEvent, None]:
        self.begun = True
        try:
            for event in self._events:
                yield event
            if self._error is not None:
                raise self._error
            if self._hang:
                await asyncio.sleep(600)
        finally:
            self.closed = True


def test_the_builder_gathers_the_whole_answer() -> None:
    builder = new_builder()
    assert [builder.add(event) for event in WHOLE[:-1]] == [None] * 3
    before = time.time()
    complete = builder.add(DONE)
    assert complete is not None
    answer = new_dialect().whole(complete)
    assert int(before) <= answer.created <= time.time()
    total = answer.video.seconds.pop("total")
    assert 0 <= total < 60
    assert answer.model_dump(exclude={"created"}) == {
        "id": "ask-r1",
        "object": "video.answer",
        "model": "a-model",
        "answer": "a red square",
        "finish_reason": "stop",
        "usage": {
            "prompt_tokens": 30,
            "completion_tokens": 3,
            "total_tokens": 33,
            "prompt_tokens_details": {"cached_tokens": 7},
        },
        "video": {
            "file_id": f"file-{DIGEST}",
            "medium": "video",
            "frames": 2,
            "frame_seconds": [0.0, 1.235],
            "views_per_picture": 1,
            "method": "cls_attention",
            "tokens_full": 128,
            "tokens_kept": 12,
            "tokens_per_frame": [6, 6],
            "cache": "miss",
            "seconds": {"fetch": 0.1111, "decode": 0.1235, "encode": 0.5, "first_token": 0.25, "generate": 0.5},
        },
    }


def test_a_picture_of_several_views_is_one_frame() -> None:
    builder, tokens = new_builder(), replace(READY.tokens, pts_seconds=(0.0,), tokens_per_frame=(6, 6, 4))
    builder.add(VideoReady(replace(tokens, medium=Medium.IMAGE, views_per_picture=3), "hit"))
    block = builder.video()
    assert (block.medium, block.frames, block.frame_seconds, block.views_per_picture) == ("image", 1, [0.0], 3)
    assert block.tokens_per_frame == [6, 6, 4]


def test_the_first_text_is_timed_from_when_the_request_came_in() -> None:
    timed: list[tuple[str, float]] = []
    builder = AnswerBuilder(
        digest=DIGEST,
        fetch_seconds=0.0,
        begin=time.perf_counter() - 10,
        on_first_text=lambda cache, seconds: timed.append((cache, seconds)),
    )
    builder.add(READY)
    assert timed == []
    for event in WHOLE[1:]:
        builder.add(event)
    ((cache, seconds),) = timed  # once, not for every piece
    assert cache == "miss"
    assert 10 <= seconds < 70


def test_an_answer_without_words() -> None:
    builder = new_builder()
    builder.add(READY)
    answer = builder.add(DONE)
    assert answer is not None
    assert answer.text == ""


async def test_events_in_time_pass_unchanged() -> None:
    source = Source(*WHOLE)
    assert [event async for event in within_deadline(source(), 30)] == WHOLE
    assert source.closed


async def test_out_of_time_raises_and_closes_the_source() -> None:
    source = Source(READY, hang=True)
    events = within_deadline(source(), 0.05)
    assert await anext(events) == READY
    with pytest.raises(DeadlineExceededError, match=r"within 0\.05 s"):
        await anext(events)
    assert source.closed


async def test_the_deadline_is_for_all_events_together() -> None:
    async def slow() -> AsyncGenerator[AnswerEvent, None]:
        while True:
            await asyncio.sleep(0.02)
            yield AnswerText("on and on")

    seen = []

    async def consume() -> None:
        async for event in within_deadline(slow(), 0.1):
            seen.append(event)  # noqa: PERF401 - what was seen before the error counts

    with pytest.raises(DeadlineExceededError):
        await asyncio.wait_for(consume(), 30)
    assert len(seen) <= 5


async def test_an_error_of_the_source_passes() -> None:
    source = Source(READY, error=CorruptMediaError("damaged"))
    events = within_deadline(source(), 30)
    await anext(events)
    with pytest.raises(CorruptMediaError, match="damaged"):
        await anext(events)
    assert source.closed


async def test_leaving_early_closes_the_source() -> None:
    source = Source(*WHOLE)
    events = within_deadline(source(), 30)
    await anext(events)
    await events.aclose()
    assert source.closed


async def test_a_cancelled_request_closes_the_source() -> None:
    source = Source(READY, hang=True)
    task = asyncio.create_task(collect_answer(within_deadline(source(), 30), new_builder()))
    while not source.begun:  # noqa: ASYNC110 - it has no event to wait for
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert source.closed


async def test_collecting() -> None:
    source = Source(*WHOLE)
    answer = await collect_answer(source(), new_builder())
    assert (answer.text, answer.finish_reason) == ("a red square", "stop")
    assert source.closed


async def test_collecting_an_answer_that_fails() -> None:
    source = Source(READY, error=CorruptMediaError("damaged"))
    with pytest.raises(CorruptMediaError):
        await collect_answer(source(), new_builder())
    assert source.closed


async def test_collecting_an_answer_without_an_end() -> None:
    with pytest.raises(FasterVLMError, match="before its end"):
        await collect_answer(Source(*WHOLE[:-1])(), new_builder())


def parse(text: str) -> list[tuple[str, Any]]:
    events = []
    for block in text.removesuffix("\n\n").split("\n\n"):
        name, data = block.split("\n")
        events.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return events


async def streamed(source: Source) -> list[tuple[str, Any]]:
    events = source()
    first = await anext(events)
    return parse(
        "".join([text async for text in server_sent_events(first, events, new_builder(), new_dialect(), "r1")])
    )


async def test_a_streamed_answer() -> None:
    events = await streamed(Source(*WHOLE))
    assert [name for name, _ in events] == ["video", "delta", "delta", "done"]
    assert [data for name, data in events if name == "delta"] == [{"text": "a red"}, {"text": " square"}]
    video, done = events[0][1], events[-1][1]
    assert (done["answer"], done["id"], done["usage"]["total_tokens"]) == ("a red square", "ask-r1", 33)
    assert (video["tokens_kept"], video["cache"]) == (12, "miss")
    spent = video.pop("seconds")
    assert done["video"] == {**video, "seconds": done["video"]["seconds"]}
    assert spent.items() <= done["video"]["seconds"].items()


async def test_text_that_looks_like_the_framing_stays_text() -> None:
    tricky = 'a\n\nevent: done\ndata: {}\n\n"é\u2028'
    events = await streamed(Source(READY, AnswerText(tricky), DONE))
    assert events[1] == ("delta", {"text": tricky})
    assert [name for name, _ in events] == ["video", "delta", "done"]


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (DeadlineExceededError("too slow"), "deadline_exceeded", "too slow"),
        (ZeroDivisionError("secret internals"), "internal_error", "request id r1"),
    ],
)
async def test_an_error_in_the_middle_is_the_last_event(error: Exception, code: str, says: str) -> None:
    source = Source(READY, AnswerText("a red"), error=error)
    events = await streamed(source)
    assert [name for name, _ in events] == ["video", "delta", "error"]
    detail = events[-1][1]["error"]
    assert (detail["code"], detail["request_id"]) == (code, "r1")
    assert says in detail["message"]
    assert "secret" not in json.dumps(events)
    assert source.closed


async def test_an_error_after_the_end_is_none_of_the_clients_business() -> None:
    events = await streamed(Source(READY, AnswerText("a red"), DONE, error=ZeroDivisionError("late")))
    assert [name for name, _ in events] == ["video", "delta", "done"]


class Server:
    """Streams an answer; begins only after the client has left if told so."""

    def __init__(self) -> None:
        self.source = Source()
        self.wait_for_leaving = False
        self.url = ""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        events = within_deadline(self.source(), 30)
        first = await anext(events)
        while self.wait_for_leaving and (await receive())["type"] != "http.disconnect":
            pass
        content = server_sent_events(first, events, new_builder(), new_dialect(), "r1")
        await EventStreamResponse(content, events)(scope, receive, send)


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    with serve_asgi(server) as server.url:
        yield server


def test_a_response_that_ends_well_closes_its_source(server: Server) -> None:
    server.source = Source(*WHOLE)
    answer = httpx.get(server.url)
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["cache-control"] == "no-store"
    assert [name for name, _ in parse(answer.text)] == ["video", "delta", "delta", "done"]
    wait_until(lambda: server.source.closed)


def test_a_client_that_leaves_during_the_stream_closes_the_source(server: Server) -> None:
    server.source = Source(*WHOLE[:2], hang=True)
    with httpx.stream("GET", server.url) as answer:
        pieces = answer.iter_text()
        text = ""
        while "event: delta" not in text:
            text += next(pieces)
        assert not server.source.closed
    wait_until(lambda: server.source.closed)


def test_a_client_that_leaves_before_the_stream_begins_closes_the_source(server: Server) -> None:
    server.source, server.wait_for_leaving = Source(READY, hang=True), True
    with pytest.raises(httpx.ReadTimeout):
        httpx.get(server.url, timeout=0.3)
    wait_until(lambda: server.source.closed)


async def test_a_connection_that_breaks_while_sending_closes_the_source() -> None:
    """As servers of ASGI 2.4 tell it: sending raises."""
    source = Source(*WHOLE)
    events = within_deadline(source(), 30)
    sent: list[MutableMapping[str, Any]] = []

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)
        if len(sent) == 2:
            raise OSError("broken pipe")

    async def receive() -> MutableMapping[str, Any]:
        await asyncio.sleep(30)
        return {"type": "http.disconnect"}

    content = server_sent_events(await anext(events), events, new_builder(), new_dialect(), "r1")
    scope = {"type": "http", "asgi": {"version": "3.0", "spec_version": "2.4"}}
    with pytest.raises(ClientDisconnect):
        await EventStreamResponse(content, events)(scope, receive, send)
    assert len(sent) == 2
    assert source.closed
