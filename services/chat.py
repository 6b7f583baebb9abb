"""OpenAI's chat completions: from their request to an inquiry, and from an answer's events to their form."""

import json
import time
from typing import Any, TypeVar

from pydantic import BaseModel

from fastervlm_video.config import Medium
from fastervlm_video.errors import InvalidRequestError, UnsupportedParameterError
from fastervlm_video.language import Message
from services.answers import AnswerBuilder, CompleteAnswer
from services.chat_schemas import (
    DEFAULT_TEMPERATURE,
    ChatChoice,
    ChatChunk,
    ChatCompletion,
    ChatMessage,
    ChatRequest,
    ChunkChoice,
    ChunkDelta,
    ImagePart,
    ReplyMessage,
    TextPart,
    VideoPart,
)
from services.inline import is_data_url
from services.inquiry import FileSource, InlineFile, Inquiry, RemoteFile, StoredFile, require_served
from services.stored_blob import is_file_id

__all__ = ["ChatDialect", "chat_inquiry", "supported_fields"]

_DONE = "data: [DONE]\n\n"
_NEVER: tuple[object, ...] = ()

_WITHOUT_EFFECT = frozenset({"metadata", "prompt_cache_key", "prompt_cache_retention", "safety_identifier", "user"})
"""Parameters that ask for nothing that would show in an answer; taken and not looked at."""

_ONLY_AS: dict[str, tuple[object, ...]] = {
    "audio": _NEVER,
    "frequency_penalty": (0,),
    "function_call": ("none",),
    "functions": ([],),
    "logit_bias": ({},),
    "logprobs": (False,),
    "modalities": (["text"],),
    "moderation": _NEVER,
    "n": (1,),
    "parallel_tool_calls": _NEVER,
    "prediction": _NEVER,
    "presence_penalty": (0,),
    "prompt_cache_options": _NEVER,
    "reasoning_effort": ("none",),
    "response_format": ({"type": "text"},),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "tool_choice": ("none",),
    "tools": ([],),
    "top_logprobs": (0,),
    "verbosity": _NEVER,
    "web_search_options": _NEVER,
}
"""Parameters that this service does not have, and the values that ask for nothing but what it does anyway."""


def supported_fields(body: dict[str, Any]) -> dict[str, Any]:
    """The fields of a request that this service acts on; the others must ask for nothing.

    Raises:
        UnsupportedParameterError: one of them does ask for something; it is refused rather than ignored.
    """
    for name, value in body.items():
        if name in _ONLY_AS and value is not None and value not in _ONLY_AS[name]:
            allowed = " or ".join(json.dumps(one) for one in _ONLY_AS[name])
            hint = f"; the only value is {allowed}" if allowed else ""
            raise UnsupportedParameterError(f"this server does not support `{name}`; leave it out{hint}", param=name)
    return {name: value for name, value in body.items() if name not in _ONLY_AS and name not in _WITHOUT_EFFECT}


def chat_inquiry(chat: ChatRequest, served_model: str) -> Inquiry:
    """What a chat request asks.

    Raises:
        ModelNotFoundError: it asks another model.
        InvalidRequestError: there is not exactly one video or picture, in the user's first message; or two fields
            contradict each other.
    """
    require_served(chat.model, served_model)
    if chat.stream_options is not None and not chat.stream:
        raise InvalidRequestError("stream_options needs stream=true", param="stream_options")
    return Inquiry(
        messages=tuple(_message(message) for message in chat.messages),
        source=_source(_only_file(chat.messages)),
        num_frames=chat.num_frames,
        method=chat.method,
        keep_ratio=chat.keep_ratio,
        keep_tokens=chat.keep_tokens,
        keep_cls=chat.keep_cls,
        max_tokens=_most_tokens(chat),
        temperature=_or_default(chat.temperature, DEFAULT_TEMPERATURE),
        top_p=_or_default(chat.top_p, 1.0),
        seed=chat.seed,
        stop=tuple(dict.fromkeys(chat.stop or ())),
        stream=bool(chat.stream),
    )


T = TypeVar("T")


def _or_default(value: T | None, default: T) -> T:
    return default if value is None else value


def _most_tokens(chat: ChatRequest) -> int | None:
    new, old = chat.max_completion_tokens, chat.max_tokens
    if new is not None and old is not None and new != old:
        raise InvalidRequestError(
            f"max_completion_tokens={new} and max_tokens={old} contradict each other; give one", param="max_tokens"
        )
    return old if new is None else new


def _message(message: ChatMessage) -> Message:
    text = "\n".join(part.text for part in message.content if isinstance(part, TextPart))
    return Message("system" if message.role == "developer" else message.role, text)


def _only_file(messages: list[ChatMessage]) -> VideoPart | ImagePart:
    """The conversation's video or picture."""
    found = [
        (index, part)
        for index, message in enumerate(messages)
        for part in message.content
        if isinstance(part, VideoPart | ImagePart)
    ]
    if len(found) != 1:
        raise InvalidRequestError(
            f"a conversation is about one video or one picture, but this one has {len(found)}; put one part like "
            '{"type": "video_url", "video_url": {"url": "file-…"}}, or the same with image_url, into the first of the '
            "user's messages",
            param="messages",
        )
    index, part = found[0]
    first_user = next((at for at, message in enumerate(messages) if message.role == "user"), None)
    if index != first_user:
        raise InvalidRequestError(
            f"the video or picture must be in the user's first message, but is in message {index} "
            f"({messages[index].role})",
            param=f"messages.{index}",
        )
    return part


def _source(part: VideoPart | ImagePart) -> FileSource:
    if isinstance(part, ImagePart):
        url, medium = part.image_url.url, Medium.IMAGE
    else:
        url, medium = part.video_url.url, Medium.VIDEO
    if is_file_id(url):
        return StoredFile(url, medium)
    return InlineFile(url, medium) if is_data_url(url) else RemoteFile(url, medium)


class ChatDialect:
    """An answer as ``chat.completion``, or as ``chat.completion.chunk`` events.

    Args:
        request_id: of the request.
        model: name of the model.
        include_usage: whether a stream ends with a chunk that has the usage.
    """

    def __init__(self, *, request_id: str, model: str, include_usage: bool) -> None:
        self._id, self._model, self._include_usage = f"chatcmpl-{request_id}", model, include_usage
        self._created = int(time.time())

    def whole(self, answer: CompleteAnswer) -> BaseModel:
        """The answer to a request without ``stream``."""
        choice = ChatChoice(message=ReplyMessage(content=answer.text), finish_reason=answer.finish_reason)
        return ChatCompletion(
            id=self._id,
            created=self._created,
            model=self._model,
            choices=[choice],
            usage=answer.usage,
            video=answer.video,
        )

    def begin(self, _: AnswerBuilder) -> str:
        """The first chunk: who speaks."""
        return self._chunk(ChunkDelta(role="assistant", content=""))

    def piece(self, text: str) -> str:
        """A chunk of text."""
        return self._chunk(ChunkDelta(content=text))

    def end(self, answer: CompleteAnswer) -> str:
        """Why it ended and what was done with the video; the usage, if it was asked for; and the end's mark."""
        last = self._chunk(ChunkDelta(), finish_reason=answer.finish_reason, video=answer.video)
        usage = self._event(choices=[], usage=answer.usage) if self._include_usage else ""
        return last + usage + _DONE

    def error(self, body: dict[str, Any]) -> str:
        """What went wrong, instead of the rest."""
        return f"data: {json.dumps(body)}\n\n"

    def _chunk(self, delta: ChunkDelta, **more: Any) -> str:
        finish_reason = more.pop("finish_reason", None)
        choice = ChunkChoice(index=0, delta=delta, logprobs=None, finish_reason=finish_reason)
        return self._event(choices=[choice], **({"usage": None} if self._include_usage else {}), **more)

    def _event(self, **fields: Any) -> str:
        chunk = ChatChunk(
            id=self._id, object="chat.completion.chunk", created=self._created, model=self._model, **fields
        )
        return f"data: {chunk.model_dump_json(exclude_unset=True)}\n\n"
