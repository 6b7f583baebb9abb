"""Chat completions as OpenAI's clients send and read them, with what this service adds."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints

from services.schemas import FILE_ID_EXAMPLE, Usage, VideoBlock

__all__ = [
    "CHAT_EXAMPLES",
    "DEFAULT_TEMPERATURE",
    "ChatChoice",
    "ChatChunk",
    "ChatCompletion",
    "ChatMessage",
    "ChatRequest",
    "ChunkChoice",
    "ChunkDelta",
    "ImagePart",
    "ImageUrl",
    "ReplyMessage",
    "StreamOptions",
    "TextPart",
    "VideoPart",
    "VideoUrl",
]

DEFAULT_TEMPERATURE = 1.0
"""OpenAI's default; ``/v1/ask`` has its own, which is greedy."""

MAX_MESSAGES = 64
_MAX_PARTS = 16
_MAX_STOPS = 4


def _as_parts(content: object) -> object:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _as_list(stop: object) -> object:
    return [stop] if isinstance(stop, str) else stop


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class TextPart(_Strict):
    """A piece of a message's text."""

    type: Literal["text"]
    text: str


class VideoUrl(_Strict):
    """Where a video is."""

    url: Annotated[str, StringConstraints(min_length=1)] = Field(
        description="Id of an uploaded file (`file-…`), `data:video/mp4;base64,…`, or an http(s) address on the "
        "server's allow-list.",
        examples=[FILE_ID_EXAMPLE],
    )


class VideoPart(_Strict):
    """The video; one video or picture in the whole conversation, in the user's first message."""

    type: Literal["video_url"]
    video_url: VideoUrl


class ImageUrl(_Strict):
    """Where a picture is."""

    url: Annotated[str, StringConstraints(min_length=1)] = Field(
        description="Id of an uploaded JPEG, PNG or WebP file (`file-…`), `data:image/png;base64,…`, or an http(s) "
        "address on the server's allow-list.",
        examples=[FILE_ID_EXAMPLE],
    )
    detail: Literal["auto", "low", "high"] | None = Field(
        default=None, description="Taken, and without effect: the model decides how closely it looks at a picture."
    )


class ImagePart(_Strict):
    """The picture; one video or picture in the whole conversation, in the user's first message."""

    type: Literal["image_url"]
    image_url: ImageUrl


Part = Annotated[TextPart | VideoPart | ImagePart, Field(discriminator="type")]
Parts = Annotated[list[Part], Field(min_length=1, max_length=_MAX_PARTS)]
Content = Annotated[Parts, BeforeValidator(_as_parts, json_schema_input_type=str | list[Part])]
Stops = Annotated[
    list[Annotated[str, StringConstraints(min_length=1)]],
    Field(max_length=_MAX_STOPS),
    BeforeValidator(_as_list, json_schema_input_type=str | list[str]),
]


class ChatMessage(_Strict):
    """One message. What an assistant's message may have besides its text must be empty."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Content
    name: None = None
    refusal: None = None
    audio: None = None
    function_call: None = None
    tool_calls: Annotated[list[Any], Field(max_length=0)] | None = None
    annotations: Annotated[list[Any], Field(max_length=0)] | None = None


class StreamOptions(_Strict):
    """How an answer is streamed."""

    include_usage: bool = Field(default=False, description="End with a chunk that has the usage and no choices.")
    include_obfuscation: Literal[False] | None = None


class ChatRequest(_Strict):
    """A conversation about one video or picture, in OpenAI's form.

    `method`, `keep_…` and `num_frames` go into `extra_body`.
    """

    model: str = Field(description="The served model's id, see /v1/models.")
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=MAX_MESSAGES)] = Field(
        description="Turns of user and assistant, the last one the user's; before them, perhaps, one `system` message."
    )
    max_completion_tokens: int | None = Field(default=None, ge=1, description="Longest answer, in tokens.")
    max_tokens: int | None = Field(default=None, ge=1, description="Older name of `max_completion_tokens`.")
    temperature: float | None = Field(
        default=None, ge=0, le=2, description=f"0 is greedy; the default is {DEFAULT_TEMPERATURE:g}, as OpenAI's."
    )
    top_p: float | None = Field(default=None, gt=0, le=1, description="Nucleus sampling; the default is 1.")
    seed: int | None = Field(default=None, ge=0, description="Makes sampling repeatable.")
    stop: Stops | None = Field(default=None, description="Up to four texts that end the answer.")
    stream: bool | None = Field(default=None, description="Answer as server-sent events, ended by `[DONE]`.")
    stream_options: StreamOptions | None = None
    num_frames: int | None = Field(
        default=None, ge=1, description="Frames of a video to look at, evenly spread in time."
    )
    method: str | None = Field(default=None, description="Pruning method, see `methods` in /v1/models.")
    keep_ratio: float | None = Field(
        default=None, gt=0, le=1, description="Share of each frame's visual tokens to keep."
    )
    keep_tokens: int | None = Field(default=None, ge=1, description="Visual tokens to keep per frame, instead.")
    keep_cls: bool = Field(default=False, description="Keep each frame's [CLS] token as well.")


class ReplyMessage(BaseModel):
    """The answer."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class ChatChoice(BaseModel):
    """The only choice."""

    index: Literal[0] = 0
    message: ReplyMessage
    logprobs: None = None
    finish_reason: Literal["stop", "length"]


class ChatCompletion(BaseModel):
    """A whole answer."""

    id: str = Field(description="`chatcmpl-` and the request id.")
    object: Literal["chat.completion"] = "chat.completion"
    created: int = Field(description="Seconds since 1970.")
    model: str
    choices: list[ChatChoice]
    usage: Usage
    video: VideoBlock


class ChunkDelta(BaseModel):
    """What a chunk adds."""

    role: Literal["assistant"] | None = None
    content: str | None = None


class ChunkChoice(BaseModel):
    """The only choice, a piece of it."""

    index: int = 0
    delta: ChunkDelta
    logprobs: None = None
    finish_reason: Literal["stop", "length"] | None = None


class ChatChunk(BaseModel):
    """A piece of a streamed answer. Fields that were not set are not sent."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: Usage | None = None
    video: VideoBlock | None = None


_MODEL = "fastervlm-video/mini"
# A grey square of 8 x 8 pixels.
_PNG_EXAMPLE = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAIAAABLbSncAAAAFUlEQVR42mNsaGhgwAaYGHCAwSkBADAX"
    "AZDUexXGAAAAAElFTkSuQmCC"
)
CHAT_EXAMPLES: dict[str, Any] = {
    "uploaded": {
        "summary": "About an uploaded file",
        "value": {
            "model": _MODEL,
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "video_url", "video_url": {"url": FILE_ID_EXAMPLE}},
                        {"type": "text", "text": "What color is the square?"},
                    ],
                }
            ],
            "temperature": 0,
            "keep_ratio": 0.1,
        },
    },
    "picture": {
        "summary": "About a picture inside the request",
        "value": {
            "model": _MODEL,
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "image_url", "image_url": {"url": _PNG_EXAMPLE, "detail": "auto"}},
                        {"type": "text", "text": "What color is it?"},
                    ],
                }
            ],
            "temperature": 0,
        },
    },
    "turns": {
        "summary": "A second turn, streamed",
        "value": {
            "model": _MODEL,
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "video_url", "video_url": {"url": FILE_ID_EXAMPLE}},
                        {"type": "text", "text": "How many objects are there?"},
                    ],
                },
                {"role": "assistant", "content": "three"},
                {"role": "user", "content": "Which one appears last?"},
            ],
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        },
    },
}
