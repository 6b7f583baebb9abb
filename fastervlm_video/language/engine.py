"""The narrow interface to a language model engine: requests in, events out.

An engine takes requests from any thread, batches them as it likes and reports to a callback::

    submit(request, on_event) -> CancelHandle
    on_event:  TextDelta*  (Finished | Failed)        nothing more after cancel()

Callbacks run on the engine's own thread and must return quickly; :mod:`fastervlm_video.language.consume`
has the ways to wait for an answer that callers want.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor

from fastervlm_video.config import SamplingParams
from fastervlm_video.errors import FasterVLMError, InvalidRequestError
from fastervlm_video.language.prompt import Prompt, check_context

__all__ = [
    "CancelHandle",
    "Engine",
    "EngineTimings",
    "Event",
    "EventCallback",
    "Failed",
    "FinishReason",
    "Finished",
    "GenerationRequest",
    "TextDelta",
    "Usage",
    "check_request",
]

FinishReason: TypeAlias = Literal["stop", "length"]


@dataclass(frozen=True, slots=True, eq=False)
class GenerationRequest:
    """One question about one video, ready for a language model.

    Attributes:
        request_id: for logs; not interpreted.
        prompt: ids around the visual tokens.
        visual: floating [n, C] tower features of the kept tokens, in the order the model shall see them;
            n is the prompt's ``num_visual``, less the separators. Projecting them is the engine's business.
        sampling: how the answer is decoded.
        cache_identity: equal strings promise equal ``visual`` tensors, for engines that reuse prefixes;
            None promises nothing.
        separators: at which of the prompt's ``num_visual`` visual tokens the model's learnt separator stands
            instead of a feature (LLaVA-NeXT's end of a row of patches); ascending, from 0.

    Raises:
        InvalidRequestError: shape or dtype is wrong, a value is not finite, or the separators are not ascending or
            not among the visual tokens.
    """

    request_id: str
    prompt: Prompt
    visual: Tensor
    sampling: SamplingParams
    cache_identity: str | None = None
    separators: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        visual, expected = self.visual, self.prompt.num_visual - len(self.separators)
        bounds = (-1, *self.separators, self.prompt.num_visual)
        if not all(isinstance(at, int) for at in bounds) or any(left >= right for left, right in pairwise(bounds)):
            raise InvalidRequestError(
                f"separators must be ascending positions in [0, {self.prompt.num_visual}), got {self.separators}"
            )
        if visual.ndim != 2 or not visual.is_floating_point() or len(visual) != expected:
            got = f"{visual.dtype} {list(visual.shape)}"
            raise InvalidRequestError(f"visual tokens must be floating [{expected}, C]{self._beside()}, got {got}")
        if not bool(torch.isfinite(visual).all()):
            bad = int((~torch.isfinite(visual)).sum())
            raise InvalidRequestError(f"{bad} of {visual.numel()} visual features are not finite")

    def __repr__(self) -> str:
        return (
            f"GenerationRequest({self.request_id!r}, {self.prompt!r}, visual {list(self.visual.shape)} "
            f"{self.visual.dtype}{self._beside()}, {self.sampling})"
        )

    def _beside(self) -> str:
        return f" beside {len(self.separators)} separators" if self.separators else ""


def check_request(
    request: GenerationRequest,
    *,
    vision_width: int,
    vocabulary_size: int,
    context_length: int,
    has_separator: bool = False,
) -> None:
    """What only an engine's model can tell of a request; engines call it before taking one.

    A wrong width or an unknown id would otherwise fail inside the model, on some devices beyond repair.

    Args:
        request: what was submitted.
        vision_width: C of the model's projector.
        vocabulary_size: rows of the model's input embedding.
        context_length: most positions the model has.
        has_separator: whether it has learnt one.

    Raises:
        InvalidRequestError: the features have another width, a prompt id is not in the vocabulary, or there are
            separators and the model has none.
        ContextLengthError: prompt, video and answer may exceed the context.
    """
    width = request.visual.shape[1]
    if width != vision_width:
        raise InvalidRequestError(
            f"visual features are {width} wide, but this model's projector takes {vision_width}; "
            "were they made by another checkpoint?"
        )
    if request.separators and not has_separator:
        raise InvalidRequestError(
            f"{len(request.separators)} of {request.prompt.num_visual} visual tokens are separators, but this model "
            "has none; was the prompt made for another checkpoint?"
        )
    ids = request.prompt.text_ids
    if not ids or not 0 <= min(ids) <= max(ids) < vocabulary_size:
        got = f"{len(ids)} in [{min(ids)}, {max(ids)}]" if ids else "none"
        raise InvalidRequestError(f"prompt ids must be in [0, {vocabulary_size}) and at least one, got {got}")
    check_context(request.prompt, request.sampling.max_tokens, context_length)


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one request.

    Attributes:
        prompt_tokens: text and visual tokens the model was given.
        visual_tokens: the visual ones among them.
        completion_tokens: tokens generated, the end-of-answer token included.
        cached_tokens: prompt tokens whose computation was reused.
    """

    prompt_tokens: int
    visual_tokens: int
    completion_tokens: int
    cached_tokens: int = 0


@dataclass(frozen=True, slots=True)
class EngineTimings:
    """Seconds since the request was submitted.

    Attributes:
        queued_seconds: until its prompt began to be computed.
        ttft_seconds: until its first token was there.
        total_seconds: until its last token was there.
    """

    queued_seconds: float
    ttft_seconds: float
    total_seconds: float


@dataclass(frozen=True, slots=True)
class TextDelta:
    """The next piece of an answer; never empty.

    Characters come whole: a replacement character is seen only where the model wrote bytes that are none, or
    where ``max_tokens`` ended the answer inside one.

    Attributes:
        text: to be appended.
        token_count: tokens generated since the previous piece.
    """

    text: str
    token_count: int


@dataclass(frozen=True, slots=True)
class Finished:
    """The answer is complete.

    Attributes:
        finish_reason: ``stop`` if the model or a stop string ended it, ``length`` if ``max_tokens`` did.
        usage: tokens.
        timings: seconds.
        token_ids: all generated ids, the end-of-answer token included.
    """

    finish_reason: FinishReason
    usage: Usage
    timings: EngineTimings
    token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Failed:
    """The answer will not be completed."""

    error: FasterVLMError


Event: TypeAlias = TextDelta | Finished | Failed
EventCallback: TypeAlias = Callable[[Event], None]


@runtime_checkable
class CancelHandle(Protocol):
    """Lets go of a submitted request."""

    def cancel(self) -> None:
        """No event after this returns, save one being delivered just now; does nothing the second time."""


@runtime_checkable
class Engine(Protocol):
    """Answers requests, many at once. Every method may be called from any thread."""

    @property
    def capacity(self) -> int:
        """Most requests in the engine, running and waiting together."""

    @property
    def queue_depth(self) -> int:
        """Requests that wait and have not begun."""

    @property
    def running(self) -> int:
        """Requests being answered now."""

    @property
    def healthy(self) -> bool:
        """Whether it takes requests; once False it stays so and the engine must be replaced."""

    def submit(self, request: GenerationRequest, on_event: EventCallback) -> CancelHandle:
        """Take a request and return at once.

        Unless cancelled, it ends with exactly one :class:`Finished` or :class:`Failed`, whatever happens.

        Raises:
            InvalidRequestError: the request does not fit this engine's model.
            ContextLengthError: prompt and answer may exceed the context.
            OverloadedError: the engine is full.
            UnavailableError: the engine is closed or broken.
        """

    def close(self) -> None:
        """Fail whatever is in the engine and free it. May be called again."""
