"""The official ``openai`` client against the running service: answers, streams, errors, files."""

import base64
import concurrent.futures
import contextlib
import io
import re
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from fastervlm_video import VideoQA
from fastervlm_video.config import SamplingParams
from fastervlm_video.language import GenerationRequest, GenerationResult, Message, generate
from fastervlm_video.media import write_video
from fastervlm_video.mini import random_scene, render_scene
from tests.integration.conftest import MAX_IN_FLIGHT, MAX_INLINE_BYTES, TIMEOUT_SECONDS, Service

MODEL = "fastervlm-video/mini"
QUESTION = "How many objects are there?"
NOBODY = "file-" + "0" * 64


@pytest.fixture(scope="module")
def client(service: Service) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{service.url}/v1", api_key="unused", timeout=TIMEOUT_SECONDS, max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def video(service: Service) -> bytes:
    return service.new_video()


@pytest.fixture(scope="module")
def file_id(client: OpenAI, video: bytes) -> str:
    return client.files.create(file=("clip.mp4", video), purpose="user_data").id


def about(url: str, text: str = QUESTION) -> dict[str, Any]:
    return {
        "role": "user",
        "content": [{"type": "text", "text": text}, {"type": "video_url", "video_url": {"url": url}}],
    }


def complete(client: OpenAI, url: str, *turns: dict[str, Any], **options: Any) -> ChatCompletion:
    merged: dict[str, Any] = {"model": MODEL, "temperature": 0, "messages": [about(url), *turns], **options}
    found = client.chat.completions.create(**merged)
    assert isinstance(found, ChatCompletion)
    return found


def text_of(completion: ChatCompletion) -> str:
    content = completion.choices[0].message.content
    assert content is not None
    return content


def chunks_of(client: OpenAI, url: str, **options: Any) -> list[ChatCompletionChunk]:
    merged: dict[str, Any] = {"model": MODEL, "temperature": 0, "messages": [about(url)], **options}
    with client.chat.completions.create(stream=True, **merged) as stream:
        return list(stream)


def joined(chunks: list[ChatCompletionChunk]) -> str:
    return "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)


def extra(model: Any, name: str) -> Any:
    """What this service adds to OpenAI's objects."""
    return model.model_extra[name]


def test_an_answer_is_that_of_the_simple_form(client: OpenAI, service: Service, file_id: str) -> None:
    simple = service.answer(file_id=file_id, question=QUESTION, keep_ratio=0.25)
    answer = complete(client, file_id, extra_body={"keep_ratio": 0.25})
    assert (answer.object, answer.model, len(answer.choices)) == ("chat.completion", MODEL, 1)
    assert text_of(answer) == simple["answer"]
    assert (answer.choices[0].finish_reason, answer.choices[0].message.role) == ("stop", "assistant")
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.usage.prompt_tokens == simple["usage"]["prompt_tokens"]
    assert answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.cached_tokens is not None
    assert simple["usage"]["prompt_tokens_details"].keys() == {"cached_tokens"}
    block = extra(answer, "video")
    assert (block["file_id"], block["cache"], block["tokens_kept"]) == (file_id, "hit", 8 * 16)


def test_what_is_special_here_goes_into_the_extra_body(client: OpenAI, file_id: str) -> None:
    options = {"keep_tokens": 5, "num_frames": 3, "method": "uniform_grid", "keep_cls": True}
    block = extra(complete(client, file_id, extra_body=options), "video")
    assert (block["frames"], block["method"], block["tokens_per_frame"]) == (3, "uniform_grid", [5] * 3)
    assert block["tokens_kept"] == 3 * (5 + 1)


@pytest.fixture(scope="module")
def library() -> Iterator[VideoQA]:
    with VideoQA.from_pretrained("mini") as qa:
        yield qa


def expected(library: VideoQA, video: bytes, *turns: Message) -> GenerationResult:
    """The same conversation with the library alone."""
    tokens, params = library.encode_video(video).tokens, SamplingParams()
    prompt = library.facts.chat_prompt(turns, tokens.tokens_kept, params)
    return generate(library.engine, GenerationRequest("r", prompt, tokens.sequence(), params))


def test_several_turns_and_instructions_are_the_librarys(
    client: OpenAI, library: VideoQA, video: bytes, file_id: str
) -> None:
    answer = complete(client, file_id)
    first = answer.choices[0].message
    second = complete(client, file_id, first.model_dump(), {"role": "user", "content": "What color is it?"})
    turns = [Message("user", QUESTION), Message("assistant", text_of(answer)), Message("user", "What color is it?")]
    wanted = expected(library, video, *turns)
    assert second.usage is not None
    assert (text_of(second), second.usage.prompt_tokens) == (wanted.text, wanted.usage.prompt_tokens)
    for role in ("system", "developer"):
        messages = [{"role": role, "content": "Tell me what you see."}, about(file_id)]
        told = complete(client, file_id, messages=messages)
        wanted = expected(library, video, Message("system", "Tell me what you see."), Message("user", QUESTION))
        assert told.usage is not None
        assert (text_of(told), told.usage.prompt_tokens) == (wanted.text, wanted.usage.prompt_tokens)


def test_a_stream_is_the_same_answer(client: OpenAI, file_id: str) -> None:
    whole, chunks = (
        complete(client, file_id, extra_body={"keep_ratio": 0.5}),
        chunks_of(client, file_id, extra_body={"keep_ratio": 0.5}),
    )
    assert joined(chunks) == text_of(whole)
    assert {(chunk.object, chunk.id, chunk.model) for chunk in chunks} == {
        ("chat.completion.chunk", chunks[0].id, MODEL)
    }
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].delta.role for chunk in chunks[1:]] == [None] * (len(chunks) - 1)
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None] * (len(chunks) - 1) + ["stop"]
    assert not any("usage" in chunk.model_fields_set for chunk in chunks)
    assert extra(chunks[-1], "video")["tokens_kept"] == extra(whole, "video")["tokens_kept"]
    assert extra(chunks[-1], "video")["seconds"].keys() >= {"first_token", "generate", "total"}


def test_a_stream_tells_its_usage_if_asked(client: OpenAI, file_id: str) -> None:
    whole, chunks = complete(client, file_id), chunks_of(client, file_id, stream_options={"include_usage": True})
    assert all(chunk.usage is None and "usage" in chunk.model_fields_set for chunk in chunks[:-1])
    assert (chunks[-1].choices, chunks[-2].choices[0].finish_reason) == ([], "stop")
    assert chunks[-1].usage is not None
    assert whole.usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert joined(chunks) == text_of(whole)


def test_streams_end_with_the_mark_that_clients_look_for(service: Service, file_id: str) -> None:
    body = {"model": MODEL, "messages": [about(file_id)], "stream": True}
    response = service.client.post("/v1/chat/completions", json=body)
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.text.endswith("}\n\ndata: [DONE]\n\n")


async def test_the_asynchronous_client(service: Service, file_id: str) -> None:
    async with AsyncOpenAI(base_url=f"{service.url}/v1", api_key="unused", max_retries=0) as client:
        options: Any = {"model": MODEL, "temperature": 0, "messages": [about(file_id)]}
        whole = await client.chat.completions.create(**options)
        text = ""
        async for chunk in await client.chat.completions.create(stream=True, **options):
            text += chunk.choices[0].delta.content or ""
    assert text == whole.choices[0].message.content


LONG = "Which object appears last?"


def test_stop_strings(client: OpenAI, file_id: str) -> None:
    options: dict[str, Any] = {"messages": [about(file_id, LONG)]}
    free = text_of(complete(client, file_id, **options))
    assert len(free) > 3
    for stop in (free[2], free[1:3], [free[2:], "never"]):
        first = stop if isinstance(stop, str) else stop[0]
        cut = free[: free.index(first)]
        answer = complete(client, file_id, stop=stop, **options)
        assert (text_of(answer), answer.choices[0].finish_reason) == (cut, "stop")
        chunks = chunks_of(client, file_id, stop=stop, **options)
        assert (joined(chunks), chunks[-1].choices[0].finish_reason) == (cut, "stop")
    assert text_of(complete(client, file_id, stop=free + " and", **options)) == free


def test_a_token_limit_of_either_name(client: OpenAI, file_id: str) -> None:
    for name in ("max_tokens", "max_completion_tokens"):
        answer = complete(client, file_id, **{name: 1})
        assert answer.usage is not None
        assert (answer.choices[0].finish_reason, answer.usage.completion_tokens) == ("length", 1)
    assert complete(client, file_id, max_tokens=9, max_completion_tokens=9).choices[0].finish_reason == "stop"


def test_sampling_is_repeatable_by_seed_and_warm_by_default(client: OpenAI, file_id: str) -> None:
    hot: dict[str, Any] = {"messages": [about(file_id, "What happens?")], "temperature": 2, "max_tokens": 20}
    texts = [text_of(complete(client, file_id, seed=seed, **hot)) for seed in (1, 1, *range(2, 9))]
    assert texts[0] == texts[1]
    assert len(set(texts)) > 1
    warm = {**hot, "temperature": 1}
    unsaid = {**hot, "temperature": openai.omit}
    for seed in range(3):
        assert text_of(complete(client, file_id, seed=seed, **unsaid)) == text_of(
            complete(client, file_id, seed=seed, **warm)
        )


def test_what_asks_for_nothing_is_taken(client: OpenAI, file_id: str) -> None:
    harmless: dict[str, Any] = {
        "n": 1,
        "user": "somebody",
        "metadata": {"a": "b"},
        "store": False,
        "frequency_penalty": 0,
        "presence_penalty": 0.0,
        "logprobs": False,
        "response_format": {"type": "text"},
        "service_tier": "auto",
        "tools": [],
        "stop": None,
        "seed": None,
        "logit_bias": {},
    }
    assert text_of(complete(client, file_id, **harmless)) == text_of(complete(client, file_id))


@pytest.mark.parametrize(
    ("options", "code", "param"),
    [
        ({"n": 2}, "unsupported_parameter", "n"),
        ({"frequency_penalty": 0.5}, "unsupported_parameter", "frequency_penalty"),
        ({"presence_penalty": -1}, "unsupported_parameter", "presence_penalty"),
        ({"logprobs": True}, "unsupported_parameter", "logprobs"),
        ({"logit_bias": {"5": 1}}, "unsupported_parameter", "logit_bias"),
        ({"response_format": {"type": "json_object"}}, "unsupported_parameter", "response_format"),
        ({"modalities": ["text", "audio"]}, "unsupported_parameter", "modalities"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "unsupported_parameter", "tools"),
        ({"store": True}, "unsupported_parameter", "store"),
        ({"reasoning_effort": "high"}, "unsupported_parameter", "reasoning_effort"),
        ({"extra_body": {"colour": "red"}}, "invalid_request", "colour"),
        ({"extra_body": {"keep_ratio": 7}}, "invalid_request", "keep_ratio"),
        ({"extra_body": {"keep_tokens": 65}}, "invalid_request", None),
        ({"extra_body": {"num_frames": 65}}, "invalid_request", "num_frames"),
        ({"extra_body": {"method": "magic"}}, "invalid_request", None),
        ({"temperature": 2.5}, "invalid_request", "temperature"),
        ({"seed": -1}, "invalid_request", "seed"),
        ({"stop": list("abcde")}, "invalid_request", "stop"),
        ({"stop": ""}, "invalid_request", "stop.0"),
        ({"stop": "x" * 300}, "invalid_request", None),
        ({"max_tokens": 3, "max_completion_tokens": 4}, "invalid_request", "max_tokens"),
        ({"max_tokens": 10**6}, "invalid_request", "max_tokens"),
        ({"max_tokens": 1000, "extra_body": {"keep_ratio": 1, "num_frames": 64}}, "context_length_exceeded", None),
        ({"stream_options": {"include_usage": True}}, "invalid_request", "stream_options"),
        ({"messages": []}, "invalid_request", "messages"),
        ({"messages": [{"role": "user", "content": "What?"}]}, "invalid_request", "messages"),
        ({"messages": [{"role": "wizard", "content": "What?"}]}, "invalid_request", "messages.0.role"),
        ({"messages": [about(NOBODY, " ")]}, "invalid_request", None),
        ({"messages": [about(NOBODY, "a <video> b")]}, "invalid_request", None),
        ({"messages": [about(NOBODY, "w" * 5000)]}, "invalid_request", None),
        ({"messages": [about("http://example.com/a.mp4")]}, "url_not_allowed", None),
        ({"messages": [about("file:///etc/passwd")]}, "url_not_allowed", None),
        ({"messages": [about("data:video/mp4;base64,QUJ")]}, "invalid_request", None),
    ],
    ids=lambda value: str(value)[:60],
)
def test_what_cannot_be_served_is_a_bad_request(
    client: OpenAI, file_id: str, options: dict[str, Any], code: str, param: str | None
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        complete(client, file_id, **options)
    assert (caught.value.code, caught.value.param, caught.value.type) == (code, param, "invalid_request_error")
    assert caught.value.request_id
    if param is not None:
        assert param.partition(".")[0] in caught.value.message


def test_other_errors_are_the_clients_own_classes(client: OpenAI, service: Service, file_id: str) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        complete(client, file_id, model="gpt-4o")
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.NotFoundError) as caught:
        complete(client, NOBODY)
    assert caught.value.code == "not_found"
    truncated = service.upload(service.new_video()[:3000])
    with pytest.raises(openai.UnprocessableEntityError) as unprocessable:
        complete(client, truncated)
    assert unprocessable.value.code == "corrupt_media"
    with pytest.raises(openai.APIStatusError) as status:
        chunks_of(client, service.upload(b"this is no video" * 100))  # before the stream: with its status
    assert (status.value.status_code, status.value.code) == (415, "unsupported_media")
    with pytest.raises(openai.NotFoundError):
        client.post("/nowhere", cast_to=object)


def test_overload_is_a_rate_limit_error_that_says_when_to_come_back(client: OpenAI, file_id: str) -> None:
    complete(client, file_id)
    count = 3 * MAX_IN_FLIGHT

    def ask(_: int) -> openai.RateLimitError | None:
        try:
            complete(client, file_id, messages=[about(file_id, "What happens?")])
        except openai.RateLimitError as exc:
            return exc
        return None

    with concurrent.futures.ThreadPoolExecutor(count) as pool:
        refused = [exc for exc in pool.map(ask, range(count)) if exc is not None]
    assert 0 < len(refused) < count
    assert {(exc.code, exc.type) for exc in refused} == {("overloaded", "rate_limit_error")}
    assert all(int(exc.response.headers["retry-after"]) >= 1 for exc in refused)


def data_url(content: bytes, kind: str = "video/mp4") -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def test_a_video_inside_the_request(client: OpenAI, service: Service) -> None:
    content = service.new_video()
    inline = complete(client, data_url(content))
    assert extra(inline, "video")["cache"] == "miss"
    uploaded = client.files.create(file=("x.mp4", content), purpose="user_data")
    assert uploaded.id == extra(inline, "video")["file_id"]
    again = complete(client, uploaded.id)
    assert (text_of(again), extra(again, "video")["cache"]) == (text_of(inline), "hit")


def test_a_video_inside_the_request_has_its_own_limit(client: OpenAI, service: Service) -> None:
    video = service.new_video()
    fits = video + bytes(MAX_INLINE_BYTES - len(video))  # what comes behind an MP4's boxes does not matter
    assert text_of(complete(client, data_url(fits)))
    for size_bytes in (MAX_INLINE_BYTES + 1, MAX_INLINE_BYTES + 2 * 1024**2):
        with pytest.raises(openai.APIStatusError) as caught:
            complete(client, data_url(bytes(size_bytes)))
        assert (caught.value.status_code, caught.value.code) == (413, "payload_too_large")


def test_files_from_upload_to_deletion(client: OpenAI, service: Service) -> None:
    content, name = service.new_video(), f"{uuid.uuid4().hex}.mp4"
    made = client.files.create(file=(name, io.BytesIO(content)), purpose="vision")
    assert (made.object, made.bytes, made.filename, made.purpose) == ("file", len(content), name, "vision")
    assert made.status == "processed"
    assert made.expires_at is not None
    assert made.created_at < made.expires_at
    assert client.files.retrieve(made.id) == made
    assert client.files.wait_for_processing(made.id) == made
    assert made in client.files.list(purpose="vision").data
    assert made.id not in {file.id for file in client.files.list(purpose="user_data")}
    assert client.files.delete(made.id).deleted
    assert made.id not in {file.id for file in client.files.list()}
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(made.id)


def test_files_are_listed_page_by_page(client: OpenAI, service: Service) -> None:
    mine = {service.upload(service.new_video(num_frames=4)) for _ in range(5)}
    every = client.files.list().data
    assert mine <= {file.id for file in every}
    page = client.files.list(limit=2)
    assert (len(page.data), page.has_more) == (2, True)
    assert [file.id for file in page] == [file.id for file in every]  # iterating asks for the pages that follow
    upwards = client.files.list(order="asc").data
    assert [file.id for file in upwards] == [file.id for file in reversed(every)]
    for wrong in ({"after": NOBODY}, {"limit": 0}, {"order": "sideways"}, {"purpose": "batch"}):
        with pytest.raises(openai.BadRequestError) as caught:
            client.files.list(extra_query=wrong)
        assert caught.value.param == next(iter(wrong))


def test_uploads_with_fields_that_mean_nothing_here(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.files.create(file=("x.mp4", b"x"), purpose="fine-tune")
    assert caught.value.param == "purpose"
    with pytest.raises(openai.BadRequestError, match="expires_after"):
        client.files.create(
            file=("x.mp4", b"x"), purpose="user_data", expires_after={"anchor": "created_at", "seconds": 3600}
        )


def test_models(client: OpenAI) -> None:
    (model,) = client.models.list().data
    again = client.models.retrieve(model.id)
    assert again.model_dump(exclude={"created"}) == model.model_dump(exclude={"created"})  # each replica has its start
    assert (model.id, model.owned_by, extra(model, "patches_per_frame")) == (MODEL, "fastervlm-video", 64)
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("gpt-4o")
    assert caught.value.code == "model_not_found"


def test_the_readmes_example(service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    readme = (Path(__file__).parent.parent.parent / "README.md").read_text()
    (example,) = re.findall(r"```python\n(from openai import .*?)```", readme, re.DOTALL)
    path = tmp_path / "demo-output" / "shapes.mp4"
    path.parent.mkdir()
    write_video(path, render_scene(random_scene(8)), fps=12)  # as the demo makes it
    monkeypatch.chdir(tmp_path)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(example.replace("http://localhost:8000", service.url), {})
    promised = re.findall(r"print\(.*\)  # (.*)", example)
    assert printed.getvalue().splitlines() == promised
