"""The language stage: prompt layout, engine interface and engines."""

from fastervlm_video.language.admission import EngineLimits
from fastervlm_video.language.consume import GenerationResult, generate, iter_events, stream
from fastervlm_video.language.engine import (
    CancelHandle,
    Engine,
    EngineTimings,
    Event,
    EventCallback,
    Failed,
    Finished,
    FinishReason,
    GenerationRequest,
    TextDelta,
    Usage,
    check_request,
)
from fastervlm_video.language.paged_engine import PagedEngine
from fastervlm_video.language.prompt import Prompt, check_context
from fastervlm_video.language.prompt_builder import (
    IMAGE_TOKEN,
    VICUNA_CHAT_TEMPLATE,
    VIDEO_TOKEN,
    Message,
    PromptBuilder,
)
from fastervlm_video.language.sampling import sample_tokens

__all__ = [
    "IMAGE_TOKEN",
    "VICUNA_CHAT_TEMPLATE",
    "VIDEO_TOKEN",
    "CancelHandle",
    "Engine",
    "EngineLimits",
    "EngineTimings",
    "Event",
    "EventCallback",
    "Failed",
    "FinishReason",
    "Finished",
    "GenerationRequest",
    "GenerationResult",
    "Message",
    "PagedEngine",
    "Prompt",
    "PromptBuilder",
    "TextDelta",
    "Usage",
    "check_context",
    "check_request",
    "generate",
    "iter_events",
    "sample_tokens",
    "stream",
]
