"""The pages of transformers' paged cache: whose they are, what they share, and which are given up.

A page is free, held by requests, or idle: held by nobody, but kept since a prompt may begin with what is in it.
With :mod:`fastervlm_video.language.continuous` the only module that knows transformers' inner names.
"""

from collections.abc import Mapping
from itertools import islice
from typing import Any

from fastervlm_video.language.paged_attention import PagedKeysValues, PagedSequence

__all__ = ["CachedPages"]


class CachedPages:
    """Transformers' allocator of pages, which it hands out as requests grow.

    Args:
        allocator: of a model whose layers all attend fully, so that there is one for all layers.
        private_from: ids from here on stand for what is somebody's own. A beginning without any of them is not shared:
            that it is there already would tell one client what another one has written.
    """

    def __init__(self, allocator: Any, private_from: int = 0) -> None:
        self._allocator, self._private_from = allocator, private_from
        self._ledger = allocator.ledger
        self._page_tokens: int = allocator.tokens_per_page
        self._stride = allocator.block_physical_stride // self._page_tokens  # from one page to the next of its layer
        self._may_hold: dict[str, int] = {}  # most pages that each request will come to hold
        self._matched: dict[str, int] = {}  # pages that were there already when a request came

    @property
    def layers(self) -> Mapping[int, PagedKeysValues]:
        """Keys and values by layer."""
        found: Mapping[int, PagedKeysValues] = self._allocator._kv_page_views
        return found

    @property
    def free(self) -> int:
        """Pages that hold nothing of use."""
        pool = self._allocator.pool
        return int(
            pool.count_free_blocks(self._allocator.index) + pool.num_free_sectors * self._allocator.blocks_per_sector
        )

    @property
    def idle(self) -> int:
        """Pages that nobody holds but that may be shared."""
        return len(self._ledger.cached_blocks)

    @property
    def held(self) -> int:
        """Requests that hold pages."""
        return len(self._allocator.block_table)

    def sequence(self, request_id: str, new: int, seen: int) -> PagedSequence:
        """A request's part in a step, for its attention."""
        pages = [page * self._stride for page in self._allocator.block_table[request_id]]
        return PagedSequence(new, seen, pages)

    def shared_tokens(self, prompt_ids: list[int]) -> int:
        """Tokens at a prompt's beginning whose pages are there."""
        return len(self.match(prompt_ids)) * self._page_tokens

    def match(self, prompt_ids: list[int]) -> list[int]:
        """The pages of a prompt's beginning that are there; stands in for the allocator's ``match_prefix_blocks``."""
        matched: list[int] = type(self._allocator).match_prefix_blocks(self._allocator, prompt_ids)
        beginning = prompt_ids[: len(matched) * self._page_tokens]
        return matched if any(token >= self._private_from for token in beginning) else []

    def make_room(self, request_id: str, prompt_ids: list[int], max_tokens: int) -> None:
        """Give up idle pages, the oldest first, until all requests could have all that they may need."""
        matched = self.match(prompt_ids)
        idle = self._ledger.cached_blocks
        for page in reversed(matched):  # these shall not be the ones to go, and if they must, the prompt's end first
            if page in idle:
                idle[page] = idle.pop(page)
        self._may_hold[request_id] = -(-(len(prompt_ids) + max_tokens) // self._page_tokens)
        self._matched[request_id] = len(matched)
        self.evict(sum(self._outstanding(name) for name in self._may_hold) - self.free)

    def evict(self, count: int) -> bool:
        """Give up this many of the idle pages, the oldest first; False if there is none."""
        pages = list(islice(self._ledger.cached_blocks, max(0, count)))
        for page in pages:
            del self._ledger.cached_blocks[page]
            self._ledger.hash_to_block.pop(self._ledger.block_to_hash.pop(page))
        self._allocator.pool.free_blocks(self._allocator.index, pages)
        return bool(pages)

    def release(self, request_id: str, no_cache: bool = False) -> None:
        """Let go of a request's pages, the last one first: the prefix without it is still one, not so the rest."""
        self._allocator.block_table.get(request_id, []).reverse()
        type(self._allocator).free_blocks(self._allocator, request_id, no_cache)

    def forget(self, request_id: str) -> None:
        """A request will need no more."""
        self._may_hold.pop(request_id, None)
        self._matched.pop(request_id, None)

    def _outstanding(self, request_id: str) -> int:
        held = self._allocator.block_table.get(request_id)
        has = self._matched[request_id] if held is None else len(held)
        return max(0, self._may_hold[request_id] - has)
