"""OpenAI's form, both ways; the real client reads what is written here."""

import json
from collections.abc import AsyncGenerator, Iterator
from dataclasses import replace
from typing import Any

import openai
import pytest
from fastapi.exceptions import RequestValidationError
from openai import OpenAI
from starlette.types import Receive, Scope, Send

from fastervlm_video.config import Medium
from fastervlm_video.errors import (
    DeadlineExceededError,
    InvalidRequestError,
    ModelNotFoundError,
    UnsupportedParameterError,
)
from fastervlm_video.language import Message
from services.answering import AnswerEvent
from services.answers import EventStreamResponse, collect_answer, server_sent_events
from services.chat import ChatDialect, chat_inquiry, supported_fields
from services.chat_schemas import CHAT_EXAMPLES, ChatRequest
from services.inquiry import InlineFile, Inquiry, RemoteFile, StoredFile
from services.requests import _validated
from services.stages import AnswerText
from tests.services.live import serve_asgi
from tests.services.test_answers import DONE, READY, WHOLE, Source, new_builder

MODEL = "a-model"
FILE = "file-" + "ab" * 32


def user(text: str, *urls: str) -> dict[str, Any]:
    parts = [{"type": "video_url", "video_url": {"url": url}} for url in urls]
    return {"role": "user", "content": [{"type": "text", "text": text}, *parts]}


def picture(text: str, *urls: str, **more: object) -> dict[str, Any]:
    parts = [{"type": "image_url", "image_url": {"url": url, **more}} for url in urls]
    return {"role": "user", "content": [*parts, {"type": "text", "text": text}]}


def inquiry(*messages: dict[str, Any], **fields: Any) -> Inquiry:
    body = {"model": MODEL, "messages": list(messages) or [user("What?", FILE)], **fields}
    return chat_inquiry(_validated(ChatRequest, supported_fields(body)), MODEL)


def test_what_is_not_said_is_as_in_openais_api() -> None:
    assert inquiry() == Inquiry((Message("user", "What?"),), StoredFile(FILE, Medium.VIDEO), temperature=1.0)


def test_what_is_said_is_taken() -> None:
    fields: dict[str, Any] = {
        "num_frames": 3,
        "method": "random",
        "keep_ratio": 0.5,
        "keep_tokens": 4,
        "keep_cls": True,
        "temperature": 0,
        "top_p": 0.5,
        "seed": 0,
        "stream": True,
    }
    found = inquiry(max_tokens=7, stop=["a", "b", "a"], **fields)
    assert found == Inquiry(
        (Message("user", "What?"),), StoredFile(FILE, Medium.VIDEO), max_tokens=7, stop=("a", "b"), **fields
    )


def test_null_is_as_good_as_nothing() -> None:
    names = ["temperature", "top_p", "seed", "stop", "max_tokens", "stream", "stream_options", "n", "tools", "user"]
    assert inquiry(**dict.fromkeys(names)) == inquiry()


def test_a_conversation_keeps_its_order_and_its_texts_their_lines() -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    found = inquiry(
        {"role": "developer", "content": "be short"},
        user("What?", FILE),
        {"role": "assistant", "content": "a ball", "refusal": None, "tool_calls": [], "annotations": []},
        {"role": "user", "content": parts},
    )
    roles = [message.role for message in found.messages]
    assert roles == ["system", "user", "assistant", "user"]
    assert [message.text for message in found.messages] == ["be short", "What?", "a ball", "one\ntwo"]


@pytest.mark.parametrize(
    ("url", "source"),
    [
        (FILE, StoredFile(FILE, Medium.VIDEO)),
        ("file-../etc", StoredFile("file-../etc", Medium.VIDEO)),
        ("data:video/mp4;base64,QUJD", InlineFile("data:video/mp4;base64,QUJD", Medium.VIDEO)),
        ("https://example.com/a.mp4", RemoteFile("https://example.com/a.mp4", Medium.VIDEO)),
        ("file:///etc/passwd", RemoteFile("file:///etc/passwd", Medium.VIDEO)),
    ],
)
def test_where_the_file_is(url: str, source: StoredFile | InlineFile | RemoteFile) -> None:
    assert inquiry(user("What?", url)).source == source
    assert inquiry(picture("What?", url)).source == replace(source, said_to_be=Medium.IMAGE)


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ([user("What?")], "this one has 0"),
        ([{"role": "user", "content": "What?"}], "this one has 0"),
        ([user("What?", FILE, FILE)], "this one has 2"),
        (
            [user("What?", FILE), {"role": "assistant", "content": "x"}, user("And?", FILE)],
            "this one has 2",
        ),
        ([picture("What?", FILE, FILE)], "this one has 2"),
        ([user("What?", FILE), {"role": "assistant", "content": "x"}, picture("And?", FILE)], "this one has 2"),
        (
            [picture("What?"), {"role": "assistant", "content": "x"}, picture("And?", FILE)],
            r"is in message 2 \(user\)",
        ),
        ([user("What?"), {"role": "assistant", "content": "x"}, user("And?", FILE)], r"is in message 2 \(user\)"),
        ([{**user("be short", FILE), "role": "system"}, user("What?")], r"is in message 0 \(system\)"),
        ([{**user("x", FILE), "role": "assistant"}], r"is in message 0 \(assistant\)"),
    ],
)
def test_one_video_or_picture_in_the_users_first_message(messages: list[dict[str, Any]], words: str) -> None:
    with pytest.raises(InvalidRequestError, match=words) as caught:
        inquiry(*messages)
    assert caught.value.param is not None
    assert caught.value.param.startswith("messages")


@pytest.mark.parametrize(
    ("message", "where"),
    [
        ({"role": "user", "content": []}, "content"),
        ({"role": "user", "content": None}, "content"),
        ({"role": "user"}, "content"),
        ({"role": "tool", "content": "x"}, "role"),
        ({"role": "user", "content": "x", "name": "me"}, "name"),
        ({"role": "assistant", "content": "x", "tool_calls": [{"id": "1"}]}, "tool_calls"),
        ({"role": "assistant", "content": "x", "refusal": "no"}, "refusal"),
        ({"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "x"}}]}, "content.0"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}, "image_url"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": {"url": ""}}]}, "url"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x", "detail": "best"}}]}, "detail"),
        ({"role": "user", "content": [{"type": "video_url", "video_url": "x"}]}, "video_url"),
        ({"role": "user", "content": [{"type": "video_url", "video_url": {"url": ""}}]}, "url"),
        ({"role": "user", "content": [{"type": "video_url", "video_url": {"url": "x", "fps": 3}}]}, "fps"),
        ({"role": "user", "content": [{"type": "text", "text": "x"}] * 17}, "content"),
    ],
)
def test_messages_of_another_form_are_refused_where_they_differ(message: dict[str, Any], where: str) -> None:
    with pytest.raises(RequestValidationError) as caught:
        inquiry(message)
    place = ".".join(map(str, caught.value.errors()[0]["loc"]))
    assert place.startswith("body.messages.0.")
    assert where in place


@pytest.mark.parametrize("detail", ["auto", "low", "high", None])
def test_a_detail_is_taken_and_makes_no_difference(detail: str | None) -> None:
    assert inquiry(picture("What?", FILE, detail=detail)) == inquiry(picture("What?", FILE))


def test_another_model_is_not_found() -> None:
    with pytest.raises(ModelNotFoundError, match=r"'gpt-4o'.*'a-model'"):
        inquiry(model="gpt-4o")


@pytest.mark.parametrize("name", ["frequency_penalty", "n", "tools", "audio", "verbosity", "parallel_tool_calls"])
def test_what_this_service_does_not_have_is_refused_by_name(name: str) -> None:
    with pytest.raises(UnsupportedParameterError, match=f"`{name}`") as caught:
        inquiry(**{name: 5})
    assert caught.value.param == name


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"max_tokens": 3, "max_completion_tokens": 4}, "max_tokens"),
        ({"stream_options": {}}, "stream_options"),
        ({"stream": False, "stream_options": {"include_usage": True}}, "stream_options"),
    ],
)
def test_what_contradicts_itself_is_refused(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        inquiry(**fields)
    assert caught.value.param == param


def test_the_examples_of_the_documentation_are_requests() -> None:
    for example in CHAT_EXAMPLES.values():
        chat = ChatRequest.model_validate(example["value"])
        assert chat_inquiry(chat, chat.model).messages


def dialect(*, include_usage: bool = False) -> ChatDialect:
    return ChatDialect(request_id="r1", model=MODEL, include_usage=include_usage)


async def test_a_whole_answer() -> None:
    answer = dialect().whole(await collect_answer(Source(*WHOLE)(), new_builder())).model_dump()
    assert answer["created"] > 0
    assert answer["video"]["tokens_kept"] == 12
    assert {name: answer[name] for name in ("id", "object", "model", "choices", "usage")} == {
        "id": "chatcmpl-r1",
        "object": "chat.completion",
        "model": MODEL,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "a red square", "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {
            "prompt_tokens": 30,
            "completion_tokens": 3,
            "total_tokens": 33,
            "prompt_tokens_details": {"cached_tokens": 7},
        },
    }


async def streamed(source: Source, *, include_usage: bool = False) -> list[Any]:
    """The stream's data, parsed; ``[DONE]`` as it is."""
    events = source()
    first = await anext(events)
    text = [
        t async for t in server_sent_events(first, events, new_builder(), dialect(include_usage=include_usage), "r1")
    ]
    lines = "".join(text).removesuffix("\n\n").split("\n\n")
    assert all(line.startswith("data: ") for line in lines)
    data = [line.removeprefix("data: ") for line in lines]
    return [item if item == "[DONE]" else json.loads(item) for item in data]


async def test_a_streamed_answer() -> None:
    *chunks, done = await streamed(Source(*WHOLE))
    assert done == "[DONE]"
    assert [chunk["choices"][0]["delta"] for chunk in chunks] == [
        {"role": "assistant", "content": ""},
        {"content": "a red"},
        {"content": " square"},
        {},
    ]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None, None, None, "stop"]
    assert not any("usage" in chunk for chunk in chunks)
    assert ["video" in chunk for chunk in chunks] == [False, False, False, True]


async def test_a_streamed_answer_with_usage() -> None:
    *chunks, last, done = await streamed(Source(*WHOLE), include_usage=True)
    assert done == "[DONE]"
    assert [chunk["usage"] for chunk in chunks] == [None] * 4
    assert (last["choices"], last["usage"]["total_tokens"]) == ([], 33)


class Server:
    """Streams whatever its source has to say."""

    def __init__(self, source: Source) -> None:
        self.source = source

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        while (await receive()).get("more_body"):
            pass
        events: AsyncGenerator[AnswerEvent, None] = self.source()
        content = server_sent_events(await anext(events), events, new_builder(), dialect(), "r1")
        await EventStreamResponse(content, events)(scope, receive, send)


def read(source: Source) -> Iterator[str]:
    """The pieces of an answer, as the real client gives them."""
    with serve_asgi(Server(source)) as url, OpenAI(base_url=url, api_key="none", max_retries=0) as client:
        question: Any = [user("What?", FILE)]
        for chunk in client.chat.completions.create(model=MODEL, messages=question, stream=True):
            yield chunk.choices[0].delta.content or ""


def test_text_that_looks_like_the_framing_stays_text() -> None:
    tricky = 'a\n\ndata: [DONE]\n\n"é\u2028'
    assert "".join(read(Source(READY, AnswerText(tricky), DONE))) == tricky


def test_an_error_in_the_middle_is_an_error_to_the_client() -> None:
    pieces = read(Source(READY, AnswerText("a red"), error=DeadlineExceededError("too slow")))
    assert [next(pieces), next(pieces)] == ["", "a red"]
    with pytest.raises(openai.APIError, match="too slow") as caught:
        next(pieces)
    assert (caught.value.code, caught.value.type) == ("deadline_exceeded", "server_error")


async def test_a_stream_that_fails_ends_with_its_error() -> None:
    data = await streamed(Source(READY, error=ZeroDivisionError("secret internals")))
    assert data[-1]["error"]["code"] == "internal_error"
    assert "[DONE]" not in data
    assert "secret" not in json.dumps(data)
