"""Requests and responses of the HTTP API, as pydantic models. The OpenAPI page is made of them."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

__all__ = [
    "ASK_EXAMPLES",
    "FILE_ID_EXAMPLE",
    "AskRequest",
    "AskResponse",
    "DeletedFile",
    "FileList",
    "FileObject",
    "FilePurpose",
    "Health",
    "ModelList",
    "ModelObject",
    "PromptTokensDetails",
    "Readiness",
    "Usage",
    "VideoBlock",
]

FILE_ID_EXAMPLE = "file-9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"


class AskRequest(BaseModel):
    """A question about one video or picture. Name it in one of the fields, or upload it with the question."""

    model_config = ConfigDict(extra="forbid", str_strip_whitespace=True)

    question: Annotated[str, StringConstraints(min_length=1)] = Field(
        description="What to ask about the video or picture."
    )
    file_id: str | None = Field(default=None, description="Id of an uploaded file.", examples=[FILE_ID_EXAMPLE])
    video_url: str | None = Field(
        default=None, description="http(s) address of a video; only hosts on the server's allow-list."
    )
    image_url: str | None = Field(
        default=None, description="http(s) address of a JPEG, PNG or WebP picture; only hosts on the allow-list."
    )
    num_frames: int | None = Field(
        default=None, ge=1, description="Frames of a video to look at, evenly spread in time."
    )
    method: str | None = Field(default=None, description="Pruning method, see `methods` in /v1/models.")
    keep_ratio: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="Share of each frame's visual tokens to keep; the default is the server's.",
    )
    keep_tokens: int | None = Field(
        default=None, ge=1, description="Visual tokens to keep per frame, instead of a ratio."
    )
    keep_cls: bool = Field(default=False, description="Keep each frame's [CLS] token as well.")
    max_tokens: int | None = Field(default=None, ge=1, description="Longest answer, in tokens.")
    temperature: float = Field(default=0.0, ge=0, le=2, description="0 is greedy; higher is more random.")
    top_p: float = Field(default=1.0, gt=0, le=1, description="Nucleus sampling.")
    seed: int | None = Field(default=None, ge=0, description="Makes sampling repeatable.")
    stream: bool = Field(default=False, description="Answer as server-sent events.")


ASK_EXAMPLES: dict[str, Any] = {
    "picture": {
        "summary": "About a picture on the web",
        "value": {"image_url": "https://example.com/square.png", "question": "What color is the square?"},
    },
    "uploaded": {
        "summary": "About an uploaded file",
        "value": {"file_id": FILE_ID_EXAMPLE, "question": "What color is the square?", "keep_ratio": 0.1},
    },
    "streamed": {
        "summary": "Streamed, 26 tokens per frame",
        "value": {"file_id": FILE_ID_EXAMPLE, "question": "What happens?", "keep_tokens": 26, "stream": True},
    },
}


class PromptTokensDetails(BaseModel):
    """What became of a prompt's positions."""

    cached_tokens: int = Field(description="Positions whose computation was reused from an earlier request.")


class Usage(BaseModel):
    """Token counts of one answer."""

    prompt_tokens: int = Field(description="Positions of the prompt, visual tokens included.")
    completion_tokens: int = Field(description="Tokens generated.")
    total_tokens: int = Field(description="Both together.")
    prompt_tokens_details: PromptTokensDetails


class VideoBlock(BaseModel):
    """What was done with the video or picture."""

    file_id: str = Field(description="Id under which it can be asked about again.")
    medium: Literal["image", "video"] = Field(description="What it is, by its content.")
    frames: int = Field(description="Frames looked at; 1 of a picture.")
    frame_seconds: list[float] = Field(description="When each of them is shown, from the video's start.")
    views_per_picture: int = Field(
        description="Views in which the vision tower saw each frame, or the picture: 1, or for some models the whole "
        "and tiles of it."
    )
    method: str = Field(description="Pruning method.")
    tokens_full: int = Field(
        description="Visual tokens that the language model would have seen without pruning, separators included."
    )
    tokens_kept: int = Field(
        description="Visual tokens that the language model saw; separators between rows of a picture, which some "
        "models have, are counted."
    )
    tokens_per_frame: list[int] = Field(
        description="Kept patches in each view, frame by frame; one number per frame where frames have one view."
    )
    cache: Literal["hit", "miss"] = Field(description="Whether the kept tokens were in the cache.")
    seconds: dict[str, float] = Field(
        description="Time by stage: `fetch` (upload or download), `decode`, `encode`, `first_token` (from the "
        "language stage's start), `generate`, and `total`. A cache hit has no `decode` and no `encode`."
    )


class AskResponse(BaseModel):
    """An answer, and how it came about."""

    id: str = Field(description="`ask-` and the request id, which is also in the `x-request-id` header.")
    object: Literal["video.answer"] = "video.answer"
    created: int = Field(description="Seconds since 1970.")
    model: str = Field(description="The model that answered.")
    answer: str = Field(description="The text.")
    finish_reason: Literal["stop", "length"] = Field(description="`length` if `max_tokens` cut the answer.")
    usage: Usage
    video: VideoBlock


FilePurpose = Literal["user_data", "vision"]


class FileObject(BaseModel):
    """A stored file."""

    id: str = Field(description="`file-` and the SHA-256 of the content.", examples=[FILE_ID_EXAMPLE])
    object: Literal["file"] = "file"
    bytes: int
    created_at: int = Field(description="Seconds since 1970.")
    expires_at: int = Field(description="Seconds since 1970; uploading again renews it.")
    filename: str
    purpose: FilePurpose = Field(description="As given with the upload; it makes no difference here.")
    medium: Literal["image", "video"] = Field(
        description="What it is by its first bytes; everything that is no JPEG, PNG or WebP counts as a video until it "
        "is decoded. OpenAI's API has no such field."
    )
    status: Literal["processed"] = "processed"


class FileList(BaseModel):
    """Files, a page of them."""

    object: Literal["list"] = "list"
    data: list[FileObject]
    has_more: bool = Field(description="Whether there are more; ask for those `after` the last one.")
    first_id: str | None
    last_id: str | None


class DeletedFile(BaseModel):
    """What became of a file."""

    id: str
    object: Literal["file"] = "file"
    deleted: bool = Field(description="False if there was no such file.")


class ModelObject(BaseModel):
    """A served model, with what it means for tokens."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str
    context_length: int
    patches_per_frame: int
    media: list[Literal["image", "video"]] = Field(description="What can be asked about.")
    max_views_per_picture: int = Field(
        description="Most views in which a picture, or a frame, is seen; each has `patches_per_frame` visual tokens."
    )
    methods: list[str]
    default_method: str
    default_keep_ratio: float
    default_num_frames: int


class ModelList(BaseModel):
    """The served models."""

    object: Literal["list"] = "list"
    data: list[ModelObject]


class Health(BaseModel):
    """The process is alive."""

    status: Literal["ok"] = "ok"


class Readiness(BaseModel):
    """Whether every stage can serve."""

    status: Literal["ready", "not_ready"]
    stages: dict[str, str] = Field(description="State of each stage.")
