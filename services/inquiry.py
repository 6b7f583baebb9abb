"""What is asked, whichever dialect it was asked in, and the service's bounds on it."""

from dataclasses import dataclass
from typing import TypeAlias

from fastervlm_video.config import FrameSampling, Medium, PruneSpec, SamplingParams
from fastervlm_video.errors import InvalidRequestError, ModelNotFoundError
from fastervlm_video.language import Message
from fastervlm_video.prune import get_method
from services.live import LiveConfig
from services.uploads import SpooledFile

__all__ = [
    "Choices",
    "FileSource",
    "InlineFile",
    "Inquiry",
    "RemoteFile",
    "StoredFile",
    "check_medium",
    "choose",
    "require_served",
]


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file that was uploaded before.

    Attributes:
        file_id: its id.
        said_to_be: what it must be, by the field that it is named in; None takes either.
    """

    file_id: str
    said_to_be: Medium | None = None


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file that the service is to fetch.

    Attributes:
        url: where it is.
        said_to_be: what it must be, by the field that it is named in.
    """

    url: str
    said_to_be: Medium


@dataclass(frozen=True, slots=True, repr=False)
class InlineFile:
    """A file inside the request, as a ``data:`` URL.

    Attributes:
        url: all of it.
        said_to_be: what it must be, by the field that it stands in.
    """

    url: str
    said_to_be: Medium


FileSource: TypeAlias = StoredFile | RemoteFile | InlineFile | SpooledFile


@dataclass(frozen=True, slots=True)
class Inquiry:
    """A request as the caller made it; None leaves a choice to the server.

    Attributes:
        messages: the conversation; a single question is a conversation of one turn.
        source: the video or picture that it is about.
        num_frames: frames of a video to look at.
        method: pruning method.
        keep_ratio: share of each frame's tokens to keep.
        keep_tokens: tokens to keep in each frame, instead.
        keep_cls: keep [CLS] tokens, too.
        max_tokens: longest answer.
        temperature: 0 is greedy.
        top_p: nucleus sampling.
        seed: makes sampling repeatable.
        stop: texts that end the answer.
        stream: whether the answer is to come piece by piece.
    """

    messages: tuple[Message, ...]
    source: FileSource
    num_frames: int | None = None
    method: str | None = None
    keep_ratio: float | None = None
    keep_tokens: int | None = None
    keep_cls: bool = False
    max_tokens: int | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stream: bool = False


@dataclass(frozen=True, slots=True)
class Choices:
    """What a request asks for, defaults filled in and bounds checked."""

    sampling: FrameSampling
    prune: PruneSpec
    params: SamplingParams


def require_served(model: str, served: str) -> None:
    """Refuse a request for another model than the one that is served.

    Raises:
        ModelNotFoundError: it is another one.
    """
    if model != served:
        raise ModelNotFoundError(
            f"the model {model[:80]!r} is not served here; this server has {served!r}", param="model"
        )


def check_medium(inquiry: Inquiry, medium: Medium) -> None:
    """Refuse what asks for frames of a picture.

    Raises:
        InvalidRequestError: it does.
    """
    if medium is Medium.IMAGE and inquiry.num_frames is not None:
        raise InvalidRequestError(
            f"num_frames is for videos, but num_frames={inquiry.num_frames} came with a picture; leave it out",
            param="num_frames",
        )


def choose(inquiry: Inquiry, live: LiveConfig, patches_per_frame: int) -> Choices:
    """Fill in defaults and enforce the service's bounds.

    Raises:
        InvalidRequestError: a bound is exceeded or the parameters contradict each other.
    """
    for message in inquiry.messages:
        if len(message.text) > live.max_question_chars:
            what = "question" if message.role == "user" else f"{message.role} message"
            raise InvalidRequestError(
                f"the {what} has {len(message.text)} characters, more than the {live.max_question_chars} allowed"
            )
    num_frames = _at_most("num_frames", inquiry.num_frames or live.default_num_frames, live.max_num_frames)
    max_tokens = _at_most("max_tokens", inquiry.max_tokens or live.default_answer_tokens, live.max_answer_tokens)
    params = SamplingParams(max_tokens, inquiry.temperature, inquiry.top_p, inquiry.seed, inquiry.stop)
    return Choices(FrameSampling(num_frames), _budget(inquiry, live, patches_per_frame), params)


def _budget(inquiry: Inquiry, live: LiveConfig, patches_per_frame: int) -> PruneSpec:
    ratio = inquiry.keep_ratio if inquiry.keep_ratio or inquiry.keep_tokens else live.default_keep_ratio
    prune = PruneSpec(
        method=inquiry.method or live.default_method,
        keep_ratio=ratio,
        keep_tokens=inquiry.keep_tokens,
        keep_cls=inquiry.keep_cls,
    )
    if not get_method(prune.method).fixed_total:
        raise InvalidRequestError(
            f"{prune.method!r} keeps a number of tokens that depends on what is seen; use another", param="method"
        )
    fewest = PruneSpec(keep_ratio=live.min_keep_ratio).tokens_per_frame(patches_per_frame)
    wanted = prune.tokens_per_frame(patches_per_frame)
    if wanted < fewest:
        raise InvalidRequestError(
            f"{wanted} tokens per frame are fewer than the {fewest} that this server's smallest keep_ratio of "
            f"{live.min_keep_ratio:g} stands for",
            param="keep_ratio" if inquiry.keep_tokens is None else "keep_tokens",
        )
    return prune


def _at_most(name: str, value: int, limit: int) -> int:
    if value > limit:
        raise InvalidRequestError(f"{name}={value} is more than the {limit} that this server allows", param=name)
    return value
