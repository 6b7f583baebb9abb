"""What an engine can take in at once: its sizes, and an account of the cache pages it has promised."""

from collections import Counter
from dataclasses import dataclass
from math import ceil

import psutil
import torch
from transformers import DynamicCache, PreTrainedConfig
from transformers.cache_utils import DynamicLayer

from fastervlm_video.errors import CheckpointError, InvalidRequestError
from fastervlm_video.language.prompt import Prompt
from fastervlm_video.language.visual_table import LARGEST_ID
from fastervlm_video.models.base import LanguageHalf

__all__ = ["PAGE_TOKENS", "EngineLimits", "PagesPromised", "check_full_attention"]

PAGE_TOKENS = 16
"""Prefixes are shared in whole pages, so a page is small beside a pruned video."""

_CPU_SHARE, _GPU_SHARE = 0.1, 0.6  # of free memory, for keys and values, where nobody says how much


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """Sizes of a language engine.

    Attributes:
        max_batch_size: most requests answered at once.
        max_queue: most requests waiting beside them.
        max_batch_tokens: most tokens in one forward pass; longer prompts are computed in several, between which
            others go on.
        kv_cache_tokens: tokens whose keys and values are kept, running requests' and past videos' together; None
            takes what ``max_batch_size`` requests of the model's full context need, but no more than a share
            of the free memory.
        visual_rows: visual tokens that are kept embedded; None takes as many as ``kv_cache_tokens``.
        largest_id: of text and visual tokens; when all have been used, running requests are finished and all caches
            emptied before numbering begins again.

    Raises:
        InvalidRequestError: a number is out of range.
    """

    max_batch_size: int = 16
    max_queue: int = 64
    max_batch_tokens: int = 2048
    kv_cache_tokens: int | None = None
    visual_rows: int | None = None
    largest_id: int = LARGEST_ID

    def __post_init__(self) -> None:
        smallest = {"max_batch_size": 1, "max_queue": 0, "max_batch_tokens": 1, "kv_cache_tokens": 1, "visual_rows": 1}
        for name, least in smallest.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise InvalidRequestError(f"{name} must be at least {least}, got {value}")

    def pages(self, half: LanguageHalf) -> int:
        """Pages of the cache of keys and values."""
        tokens = self.kv_cache_tokens
        if tokens is None:
            most = self.max_batch_size * half.context_length
            tokens = max(half.context_length, min(most, _affordable_tokens(half)))
        return ceil(tokens / PAGE_TOKENS)

    def table_pages(self, half: LanguageHalf) -> int:
        """Pages of the table of visual tokens."""
        return self.pages(half) if self.visual_rows is None else ceil(self.visual_rows / PAGE_TOKENS)


def _affordable_tokens(half: LanguageHalf) -> int:
    model = half.language_model
    device = model.device
    if device.type == "cuda":
        free = int(torch.cuda.mem_get_info(device)[0] * _GPU_SHARE)
    else:
        free = int(psutil.virtual_memory().available * _CPU_SHARE)
    return free // _bytes_per_token(model.config.get_text_config(), model.dtype)


def _bytes_per_token(config: PreTrainedConfig, dtype: torch.dtype) -> int:
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(2 * config.num_hidden_layers * heads * width * dtype.itemsize)


class PagesPromised:
    """Pages that running requests may come to need. What several share is counted once.

    Args:
        pages: of the cache.
    """

    def __init__(self, pages: int) -> None:
        self._pages = pages
        self._own = 0
        self._shared: dict[object, int] = {}
        self._sharers: Counter[object] = Counter()

    @property
    def promised(self) -> int:
        """Pages promised now."""
        return self._own + sum(self._shared.values())

    def split(self, prompt: Prompt, max_tokens: int, *, shares: bool) -> tuple[int, int]:
        """(pages that may be shared with other questions about the video, pages of its own)."""
        total = ceil((len(prompt) + max_tokens) / PAGE_TOKENS)
        known = min(prompt.prefix_length, len(prompt) - 1)  # of a prompt, one token is always new
        shared = known // PAGE_TOKENS if shares else 0
        return shared, total - shared

    def fits(self, sharer: object, shared: int, own: int) -> bool:
        """Whether these can be promised beside what is promised."""
        return self.promised + own + (0 if sharer in self._shared else shared) <= self._pages

    def promise(self, sharer: object, shared: int, own: int) -> None:
        """Set pages aside for a request; ``sharer`` stands for what it shares."""
        self._own += own
        self._sharers[sharer] += 1
        self._shared[sharer] = shared

    def give_back(self, sharer: object, own: int) -> None:
        """The request has ended."""
        self._own -= own
        self._sharers[sharer] -= 1
        if not self._sharers[sharer]:
            del self._sharers[sharer], self._shared[sharer]


def check_full_attention(config: PreTrainedConfig) -> None:
    """Refuse models whose cache is more than plain keys and values.

    Raises:
        CheckpointError: some layers use a sliding window, a recurrent state or the like.
    """
    kinds = {type(layer) for layer in DynamicCache(config=config).layers}
    if kinds - {DynamicLayer}:
        names = sorted(kind.__name__ for kind in kinds - {DynamicLayer})
        raise CheckpointError(f"this engine batches models with full attention only, but the cache has {names}")
