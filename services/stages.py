"""What the stages say to each other: small frozen messages, one way round.

::

    Api ── DecodeOrder ──▶ Decoder ── DecodedVideo ──▶ Encoder ── EncodedTokens ──▶ Generator ── StageEvent… ──▶ Api
                                                          ▲ EncodeOrder               ▲ AnswerOrder

``DecodedVideo`` and ``EncodedTokens`` travel by reference through Ray's object store, past the Api.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from fastervlm_video.config import (
    FrameResize,
    FrameSampling,
    Medium,
    ModelOptions,
    PruneSpec,
    SamplingParams,
    Tiling,
)
from fastervlm_video.media import FrameBatch
from services.tenants import ANONYMOUS

if TYPE_CHECKING:  # these bring torch along, which the Decoder has no use for
    from fastervlm_video.cache import CacheKey
    from fastervlm_video.language import Message

__all__ = [
    "AnswerDone",
    "AnswerOrder",
    "AnswerText",
    "DecodeOrder",
    "DecodedVideo",
    "EncodeOrder",
    "EncodedTokens",
    "StageEvent",
    "TokensMissing",
    "TokensReady",
]

_DEFAULT_OPTIONS = ModelOptions()


@dataclass(frozen=True, slots=True)
class DecodeOrder:
    """To the Decoder: which stored file, which moments, which frame size.

    Attributes:
        digest: SHA-256 of the stored file.
        sampling: which frames of a video.
        resize: the model's resize and crop, done while decoding so that memory stays bounded.
        owner: name of the tenant whose file it is.
        medium: what the file is decoded as.
        tiling: how further views are cut out of a picture or a frame, by models that look at several.
    """

    digest: str
    sampling: FrameSampling
    resize: FrameResize
    owner: str = ANONYMOUS
    medium: Medium = Medium.VIDEO
    tiling: Tiling | None = None


@dataclass(frozen=True, slots=True)
class DecodedVideo:
    """From the Decoder to the Encoder.

    Attributes:
        frames: the sampled frames, or their views, at the model's size.
        seconds: time spent, by stage.
    """

    frames: FrameBatch
    seconds: dict[str, float]


@dataclass(frozen=True, slots=True)
class EncodeOrder:
    """To the Encoder: how to prune, and where in the cache the result belongs.

    Attributes:
        digest: SHA-256 of the stored file.
        key: cache key of the result.
        prune: method and budget.
        fingerprint: the tower that the asker means; another one is refused.
        owner: name of the tenant whose file it is.
        medium: what the file is.
        options: how the asker understands the architecture; another understanding is refused.
    """

    digest: str
    key: "CacheKey"
    prune: PruneSpec
    fingerprint: str
    owner: str = ANONYMOUS
    medium: Medium = Medium.VIDEO
    options: ModelOptions = _DEFAULT_OPTIONS


@dataclass(frozen=True, slots=True)
class EncodedTokens:
    """From the Encoder to the Generator: exactly the bytes that are in the cache.

    Attributes:
        blob: tokens as the codec wrote them.
        seconds: time spent, by stage, decoding included.
    """

    blob: bytes = field(repr=False)
    seconds: dict[str, float]


@dataclass(frozen=True, slots=True)
class AnswerOrder:
    """To the Generator: one question about one token set.

    Attributes:
        request_id: unique among requests in flight.
        messages: the conversation, which ends with the question.
        key: where the tokens are cached.
        tokens_per_frame: the budget; a larger entry is cut to it.
        fingerprint: the tower that the asker means.
        sampling: how to decode the answer.
        medium: what the tokens are of.
        options: how the asker understands the architecture; another understanding is refused.
    """

    request_id: str
    messages: "tuple[Message, ...]"
    key: "CacheKey"
    tokens_per_frame: int
    fingerprint: str
    sampling: SamplingParams
    medium: Medium = Medium.VIDEO
    options: ModelOptions = _DEFAULT_OPTIONS

    @property
    def token_set(self) -> str:
        """See :meth:`~fastervlm_video.cache.CacheKey.token_set`."""
        return self.key.token_set(self.tokens_per_frame)


@dataclass(frozen=True, slots=True)
class TokensMissing:
    """From the Generator: the cache holds too little for this order (any more); nothing was generated."""


@dataclass(frozen=True, slots=True)
class TokensReady:
    """From the Generator, first: which tokens the answer will be based on.

    Attributes:
        pts_seconds: presentation time of each frame; one for a picture.
        method: the pruning method.
        tokens_per_frame: patches kept in each view, frame by frame.
        tokens_full: visual tokens that the language model would see without pruning, separators included.
        tokens_kept: visual tokens that it sees, separators included.
        seconds: time spent by stage before the Generator, if anything was.
        medium: what the tokens are of.
        views_per_picture: views in which the tower saw each frame, or the picture.
    """

    pts_seconds: tuple[float, ...]
    method: str
    tokens_per_frame: tuple[int, ...]
    tokens_full: int
    tokens_kept: int
    seconds: dict[str, float]
    medium: Medium = Medium.VIDEO
    views_per_picture: int = 1


@dataclass(frozen=True, slots=True)
class AnswerText:
    """From the Generator: the answer's next piece."""

    text: str


@dataclass(frozen=True, slots=True)
class AnswerDone:
    """From the Generator, last.

    Attributes:
        finish_reason: ``stop`` at an end-of-sequence token or a stop string, ``length`` at the token limit.
        prompt_tokens: positions of the prompt, visual tokens included.
        completion_tokens: tokens generated.
        cached_tokens: prompt positions whose keys and values were reused.
        seconds: time spent by the Generator: to the first token, and in all.
    """

    finish_reason: Literal["stop", "length"]
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    seconds: dict[str, float]


StageEvent = TokensMissing | TokensReady | AnswerText | AnswerDone
