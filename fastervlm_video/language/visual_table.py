"""Visual tokens as ids: a bounded table of projected rows, which the input embedding looks ids up in.

An engine that knows only token ids can then run prompts with visual tokens in them, and recognise a video it
has seen by its ids, as it recognises text. An id, once given to a video, never stands for anything else::

    id = first_id + generation(page) x rows + row        row = (id - first_id) mod rows

so finding the row is arithmetic, and a page that goes to another video moves on to the next generation.
"""

from collections import OrderedDict, deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from fastervlm_video.errors import InvalidRequestError

__all__ = ["LARGEST_ID", "IdsExhausted", "VisualEmbedding", "VisualRun", "VisualTable"]

LARGEST_ID = 2**31 - 1
"""Ids travel as int32."""


class IdsExhausted(Exception):  # noqa: N818 - a state of the table, to be mended by renumbering; not an error
    """No page is left with ids that were never used; :meth:`VisualTable.renumber` gives new ones."""


@dataclass(slots=True, eq=False)
class VisualRun:
    """The ids of one token set.

    Attributes:
        ids: one per visual token, in order.
        key: whom it may be shared with: whoever brings the same key; None is nobody.
        pages: where its rows are.
        pins: requests that need it now.
    """

    ids: tuple[int, ...]
    key: Hashable | None
    pages: tuple[int, ...] = field(repr=False)
    pins: int = 1


class VisualEmbedding(nn.Module):
    """A text embedding that knows visual ids too; stands in for the language model's own.

    Args:
        text: the language model's input embedding.
        rows: visual tokens that it can hold.
    """

    def __init__(self, text: nn.Embedding, rows: int) -> None:
        super().__init__()
        self.text = text
        self.first_id = text.num_embeddings
        table = torch.zeros(rows, text.embedding_dim, dtype=text.weight.dtype, device=text.weight.device)
        self.register_buffer("table", table, persistent=False)

    @property
    def rows(self) -> int:
        """Visual tokens that it can hold."""
        return len(self.get_buffer("table"))

    @property
    def weight(self) -> Tensor:
        """The text's, for whoever asks an embedding for its dtype or ties it."""
        return self.text.weight

    def release(self) -> None:
        """Give the rows' memory back; nothing can be looked up any more."""
        self.register_buffer("table", self.text.weight.new_empty(0, self.text.embedding_dim), persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        """Embeddings [..., H] of text and visual ids alike."""
        table = self.get_buffer("table")
        behind = ids - self.first_id
        visual = table[behind.remainder(self.rows)]
        return torch.where((behind >= 0)[..., None], visual, self.text(ids.clamp(max=self.first_id - 1)))


class VisualTable:
    """Hands out ids for token sets and keeps their rows as long as they are needed, and a while longer.

    Not for use from several threads.

    Args:
        embedding: holds the rows.
        page_rows: rows are handed out in pages of this size.

    Raises:
        InvalidRequestError: there is not even one page.
    """

    def __init__(self, embedding: VisualEmbedding, *, page_rows: int = 16, largest_id: int = LARGEST_ID) -> None:
        self._embedding = embedding
        self._rows = embedding.rows
        if page_rows < 1 or self._rows % page_rows or not self._rows:
            raise InvalidRequestError(f"{self._rows} rows cannot be divided into pages of {page_rows}")
        self._page_rows, self._first_id = page_rows, embedding.first_id
        self._generations = (min(largest_id, LARGEST_ID) + 1 - self._first_id) // self._rows
        if self._generations < 1:
            raise InvalidRequestError(f"{self._rows} rows behind id {self._first_id} need ids above {largest_id}")
        self._used_generations = [0] * (self._rows // page_rows)
        self._free = deque(range(self._rows // page_rows))  # longest free first, so that ids are used up evenly
        self._spent = 0  # pages that have no generation left
        self._shared: OrderedDict[Hashable, VisualRun] = OrderedDict()  # least recently used first

    @property
    def rows(self) -> int:
        """Visual tokens that fit."""
        return self._rows

    @property
    def free_rows(self) -> int:
        """Rows in pages that belong to nobody."""
        return len(self._free) * self._page_rows

    @property
    def pinned_runs(self) -> int:
        """Shared runs that a request needs."""
        return sum(run.pins > 0 for run in self._shared.values())

    def find(self, key: Hashable | None) -> VisualRun | None:
        """The run that is shared under a key, if there is one."""
        return self._shared.get(key) if key is not None else None

    def acquire(self, key: Hashable | None, count: int, rows: Callable[[], Tensor]) -> VisualRun | None:
        """Ids for a token set, pinned until they are released.

        Args:
            key: equal keys promise equal rows, and as many; None promises nothing.
            count: visual tokens.
            rows: makes them, [count, H], if they are not there.

        Returns:
            None if there is no room until somebody releases what is pinned.

        Raises:
            IdsExhausted: there is room, but there are no ids.
        """
        run = self.find(key)
        if run is not None and key is not None:
            assert len(run.ids) == count, (len(run.ids), count)
            run.pins += 1
            self._shared.move_to_end(key)
            return run
        pages = self._take_pages(-(-count // self._page_rows))
        if pages is None:
            return None
        try:
            run = self._fill(key, count, pages, rows())
        except BaseException:
            self._free.extend(pages)
            raise
        if key is not None:
            self._shared[key] = run
        return run

    def release(self, run: VisualRun) -> None:
        """Unpin; what nobody shares is gone at once."""
        run.pins -= 1
        if run.pins == 0 and run.key is None:
            self._give_back(run)

    def evict(self) -> None:
        """Forget every run that nobody needs."""
        for run in [run for run in self._shared.values() if not run.pins]:
            self._forget(run)

    def renumber(self) -> None:
        """Begin with the first generation again. Only when nobody remembers any id: nothing runs, no prefix is kept."""
        self.evict()
        assert not self._shared, "renumbering while runs are pinned"
        self._used_generations = [0] * len(self._used_generations)
        self._free = deque(range(len(self._used_generations)))
        self._spent = 0

    def _take_pages(self, count: int) -> tuple[int, ...] | None:
        idle = [run for run in self._shared.values() if not run.pins]
        if len(self._free) + self._spent + sum(len(run.pages) for run in idle) < count:
            return None
        while len(self._free) < count and idle:
            self._forget(idle.pop(0))
        if len(self._free) < count:
            raise IdsExhausted
        return tuple(self._free.popleft() for _ in range(count))

    def _fill(self, key: Hashable | None, count: int, pages: tuple[int, ...], rows: Tensor) -> VisualRun:
        table = self._embedding.get_buffer("table")
        assert rows.shape == (count, table.shape[1]), rows.shape
        size = self._page_rows
        at = [page * size + offset for page in pages for offset in range(size)][:count]
        table[torch.tensor(at, dtype=torch.long, device=table.device)] = rows.to(table)
        starts = [self._first_id + self._used_generations[page] * self._rows + page * size for page in pages]
        for page in pages:
            self._used_generations[page] += 1
        ids = tuple(start + offset for start in starts for offset in range(size))[:count]
        return VisualRun(ids, key, pages)

    def _forget(self, run: VisualRun) -> None:
        assert run.key is not None
        del self._shared[run.key]
        self._give_back(run)

    def _give_back(self, run: VisualRun) -> None:
        for page in run.pages:
            if self._used_generations[page] < self._generations:
                self._free.append(page)
            else:
                self._spent += 1
