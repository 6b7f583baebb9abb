"""What happens on the engine's thread between two steps: who leaves, who comes in, and who gets which token.

Each turn::

    let go of cancelled requests -> take in waiting ones, first come, first served -> (the engine's own step)

An idle engine gives those who come at the same time a moment to join, as computing two prompts together costs less
than one after the other.

A video enters as ids of rows in a table, so that questions about one video share the pages of its keys and
values, as far as the text before and between its tokens is the same. While a video is computed for the first time,
other questions about it wait for that.
"""

import itertools
import logging
import time
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from fastervlm_video.errors import UnavailableError
from fastervlm_video.language.admission import PAGE_TOKENS, PagesPromised
from fastervlm_video.language.continuous import ContinuousBatcher
from fastervlm_video.language.embedding import project
from fastervlm_video.language.job import Job
from fastervlm_video.language.row_sampler import RowSampler, choose_tokens
from fastervlm_video.language.visual_table import IdsExhausted, VisualRun, VisualTable
from fastervlm_video.language.waiting import WaitingLine
from fastervlm_video.models.base import LanguageHalf

__all__ = ["Turns"]

logger = logging.getLogger(__name__)

_JOIN_SECONDS = 0.001


class _Resident:
    """A request that the batcher has.

    Attributes:
        job: whom its tokens go to.
        run: its visual tokens.
        sharer: equal for requests that share the pages of their video's keys and values.
        own_pages: pages that it shares with nobody.
        unusable: its last logits were not finite.
    """

    def __init__(self, job: Job, run: VisualRun, sharer: object, own_pages: int) -> None:
        self.job, self.run, self.sharer, self.own_pages = job, run, sharer, own_pages
        self.sampler = RowSampler(job.request.sampling)
        self.unusable = False


class Turns:
    """Listens to a :class:`~fastervlm_video.language.continuous.ContinuousBatcher`; all methods run on its thread.

    Args:
        half: whose projector turns features into rows.
        waiting: who wants in.
        table: of visual rows.
        pages: of the cache of keys and values.
        max_batch_size: most requests at once.
        on_end: called when the thread has ended, with why.
    """

    def __init__(
        self,
        half: LanguageHalf,
        waiting: WaitingLine,
        table: VisualTable,
        *,
        pages: int,
        max_batch_size: int,
        on_end: Callable[[BaseException | None], None],
    ) -> None:
        self._half, self._waiting, self._table = half, waiting, table
        self._promised = PagesPromised(pages)
        self._max_batch_size = max_batch_size
        self._on_end = on_end
        self._names = itertools.count()  # the batcher must never see a name twice
        self._residents: dict[str, _Resident] = {}
        self._computing: dict[object, str] = {}  # which request computes the pages that its sharers wait for
        self._renumbering = False
        self.batcher: ContinuousBatcher | None = None  # set before its thread starts

    def __len__(self) -> int:
        return len(self._residents)

    def jobs(self) -> list[Job]:
        """Those being answered."""
        return [resident.job for resident in list(self._residents.values())]

    def clear(self) -> None:
        """Forget everybody; the thread has ended."""
        self._residents.clear()

    def on_turn(self) -> None:
        """Let go of who has gone, and take in who waits."""
        for name, resident in list(self._residents.items()):
            if resident.job.ended:
                self._leave(name)
        if self._renumbering and not self._residents:
            self._renumber()
        if not self._residents:
            self._let_others_join()
        for job in self._waiting.snapshot():
            if self._renumbering or len(self._residents) >= self._max_batch_size or not self._take(job):
                break

    def choose(self, names: Sequence[str], logits: Tensor) -> Tensor:
        """Each row's next token, by its own settings."""
        residents = [self._residents[name] for name in names]
        tokens = choose_tokens(logits, [resident.sampler for resident in residents])
        for resident, token in zip(residents, tokens, strict=True):
            resident.unusable = token is None
        return torch.tensor([token or 0 for token in tokens], device=logits.device)

    def on_token(self, name: str, token_id: int, shared_tokens: int) -> None:
        """Hand a request its token; with the first one, its video's keys and values are there for others."""
        resident = self._residents.get(name)
        if resident is None:
            return  # it left in this very turn
        self._computing.pop(resident.sharer, None)
        resident.job.cached_tokens = shared_tokens
        resident.job.accept(None if resident.unusable else token_id)
        if resident.job.ended:
            self._leave(name)

    def on_end(self, error: BaseException | None) -> None:
        """The thread has ended."""
        self._on_end(error)

    def _let_others_join(self) -> None:
        """Wait while the line grows, and not for more than fit."""
        before, waiting = 0, len(self._waiting)
        while before < waiting < self._max_batch_size:
            time.sleep(_JOIN_SECONDS)
            before, waiting = waiting, len(self._waiting)

    def _take(self, job: Job) -> bool:
        """Begin a request; False if nobody behind it may begin either."""
        request, key = job.request, job.prefix_key
        shared, own = self._promised.split(request.prompt, request.sampling.max_tokens, shares=key is not None)
        sharer = key if shared else job
        if sharer in self._computing:
            return True  # it waits for the video; others need not
        if not self._promised.fits(sharer, shared, own):
            return False
        run = self._embed(job)
        if run is None:
            return job.ended
        resident = _Resident(job, run, sharer, own)
        if self._waiting.remove(job):
            self._begin(resident, shared)
        else:  # cancelled meanwhile
            self._table.release(run)
        return True

    def _embed(self, job: Job) -> VisualRun | None:
        """Its visual tokens in the table; None if that has failed, which ended it, or there is no room yet."""
        request = job.request
        try:
            rows = partial(project, self._half, request.visual, request.separators)
            return self._table.acquire(job.visual_key, request.prompt.num_visual, rows)
        except IdsExhausted:
            self._renumbering = True
        except Exception as error:
            self._waiting.remove(job)
            logger.error("request %s: its visual tokens could not be embedded", request.request_id, exc_info=error)
            job.fail(UnavailableError(f"the visual tokens could not be embedded ({error!r}); send the request again"))
            if isinstance(error, torch.AcceleratorError):
                raise  # the device is beyond repair
        return None

    def _begin(self, resident: _Resident, shared: int) -> None:
        name = f"{next(self._names)}"
        self._residents[name] = resident
        resident.job.begin()
        prompt = resident.job.request.prompt
        ids = prompt.token_ids(resident.run.ids)
        assert self.batcher is not None
        if shared * PAGE_TOKENS > self.batcher.shared_tokens(ids):
            self._computing[resident.sharer] = name
        self._promised.promise(resident.sharer, shared, resident.own_pages)
        self.batcher.add(name, ids, resident.job.request.sampling.max_tokens)

    def _leave(self, name: str) -> None:
        resident = self._residents.pop(name)
        if self._computing.get(resident.sharer) == name:
            del self._computing[resident.sharer]
        self._promised.give_back(resident.sharer, resident.own_pages)
        self._table.release(resident.run)
        assert self.batcher is not None
        self.batcher.cancel(name)  # it may have ended for a reason of which the batcher knows nothing

    def _renumber(self) -> None:
        """All ids have been used: forget what they stood for, everywhere."""
        assert self.batcher is not None
        self.batcher.forget_prefixes()
        self._table.renumber()
        self._renumbering = False
