"""An engine on plain transformers: one worker thread, batching at iteration level.

Requests join the running batch between two decoding steps and leave it with their last token, so nobody
waits for the longest answer. Each pass of the worker's loop::

    forget cancelled rows -> admit newcomers (one padded prefill) -> one decoding step for all rows

A request is taken in only if the batch, padded to its longest possible row, stays within a number of
cache slots; requests wait their turn, first come, first served.
"""

import atexit
import logging
import threading
from collections import deque
from types import TracebackType

import torch
from transformers import PreTrainedTokenizerBase

from fastervlm_video.errors import (
    ContextLengthError,
    InvalidRequestError,
    OverloadedError,
    UnavailableError,
)
from fastervlm_video.language.decoder import BatchDecoder, RowSampler
from fastervlm_video.language.engine import EventCallback, GenerationRequest, check_request
from fastervlm_video.language.job import Job
from fastervlm_video.models.base import LanguageHalf

__all__ = ["BatchEngine"]

logger = logging.getLogger(__name__)

_CLOSE_TIMEOUT_SECONDS = 60.0


class BatchEngine:
    """Batches requests on one model. See :class:`~fastervlm_video.language.engine.Engine`.

    Greedy answers equal those of ``generate(inputs_embeds=..., do_sample=False)`` for the request alone.

    Args:
        half: projector and language model, on their device, in evaluation mode.
        tokenizer: the checkpoint's tokenizer.
        max_batch_size: most requests answered at once.
        max_queue: most requests waiting beside them.
        max_batch_tokens: most cache slots, rows x longest possible row; by default what
            ``max_batch_size`` rows of the model's full context take.

    Raises:
        InvalidRequestError: a limit is out of range.
        CheckpointError: the model's attention is not supported.
    """

    def __init__(
        self,
        half: LanguageHalf,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_batch_size: int = 16,
        max_queue: int = 64,
        max_batch_tokens: int | None = None,
    ) -> None:
        slots = max_batch_size * half.context_length if max_batch_tokens is None else max_batch_tokens
        if max_batch_size < 1 or max_queue < 0 or slots < 1:
            raise InvalidRequestError(
                "max_batch_size and max_batch_tokens must be at least 1 and max_queue at least 0, "
                f"got {max_batch_size}, {max_batch_tokens} and {max_queue}"
            )
        self._half = half
        self._tokenizer = tokenizer
        self._max_batch_size = max_batch_size
        self._max_batch_tokens = slots
        self._capacity = max_batch_size + max_queue
        self._end_ids = _end_token_ids(half, tokenizer)
        self._decoder = BatchDecoder(half)
        self._changed = threading.Condition()  # guards the next four; the lists only the worker changes
        self._waiting: deque[Job] = deque()
        self._joining: list[Job] = []  # taken from the queue, prompt not computed yet
        self._jobs: list[Job] = []  # one per row of the decoder, in its order
        self._stopped = ""  # why, once it is
        self._worker = threading.Thread(target=self._run, name="language-engine", daemon=True)
        self._worker.start()
        atexit.register(self.close)

    @property
    def capacity(self) -> int:
        """Most requests in the engine, running and waiting together."""
        return self._capacity

    @property
    def queue_depth(self) -> int:
        """Requests that wait and have not begun."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Requests being answered now."""
        return len(self._jobs) + len(self._joining)

    @property
    def healthy(self) -> bool:
        """Whether it takes requests; once False it stays so."""
        return not self._stopped and self._worker.is_alive()

    def submit(self, request: GenerationRequest, on_event: EventCallback) -> Job:
        """Take a request and return at once. See :meth:`Engine.submit`."""
        check_request(
            request,
            vision_width=self._half.vision_width,
            vocabulary_size=self._decoder.vocabulary_size,
            context_length=self._half.context_length,
        )
        job = Job(request, on_event, self._tokenizer, self._end_ids, on_cancel=self._forget)
        if job.most_tokens > self._max_batch_tokens:
            raise ContextLengthError(
                f"the request may take {job.most_tokens} cache slots, but the engine has {self._max_batch_tokens}; "
                "lower keep_ratio, num_frames or max_tokens"
            )
        with self._changed:
            if self._stopped:
                raise UnavailableError(self._stopped)
            if self.queue_depth + self.running >= self._capacity:
                raise OverloadedError(
                    f"the language engine is full: {self.running} requests running, {self.queue_depth} waiting; "
                    "try again later"
                )
            self._waiting.append(job)
            self._changed.notify_all()
        return job

    def close(self) -> None:
        """Fail whatever is in the engine and end its thread; waits for the step in progress."""
        atexit.unregister(self.close)
        self._stop("the language engine was closed; send the request again")
        if threading.current_thread() is not self._worker:
            self._worker.join(timeout=_CLOSE_TIMEOUT_SECONDS)
            if self._worker.is_alive():
                logger.error("the language engine's step did not end within %.0f s", _CLOSE_TIMEOUT_SECONDS)
        self._fail_all()

    def __enter__(self) -> "BatchEngine":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _forget(self, job: Job) -> None:
        """A cancelled job gives up its place in the queue at once; its row, before the next step."""
        with self._changed:
            if job in self._waiting:
                self._waiting.remove(job)

    def _stop(self, reason: str) -> None:
        with self._changed:
            self._stopped = self._stopped or reason
            self._changed.notify_all()

    def _fail_all(self) -> None:
        with self._changed:
            jobs = [*self._jobs, *self._joining, *self._waiting]
            self._waiting.clear()
            self._jobs, self._joining = [], []
        for job in jobs:
            job.fail(UnavailableError(self._stopped))

    def _run(self) -> None:
        try:
            with torch.inference_mode():
                while self._wait_for_work():
                    self._drop_ended()
                    self._admit()
                    self._step()
        except BaseException as error:  # a worker that died in silence would leave its callers waiting
            logger.exception("the language engine's worker died")
            self._stop(f"the language engine broke ({_describe(error)}) and must be restarted")
        finally:
            self._fail_all()
            self._decoder.retain([])

    def _wait_for_work(self) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._jobs or self._stopped)
            return not self._stopped

    def _drop_ended(self) -> None:
        """Take finished, failed and cancelled rows out of the batch."""
        stay = [row for row, job in enumerate(self._jobs) if not job.ended]
        if len(stay) == len(self._jobs):
            return
        try:
            self._decoder.retain(stay)
        except Exception as error:
            self._lose_batch(error)
            return
        with self._changed:
            self._jobs = [self._jobs[row] for row in stay]

    def _take_newcomers(self) -> list[Job]:
        """Those that fit, in order; one that does not fit keeps the ones behind it waiting, too."""
        with self._changed:
            longest = max((job.most_tokens for job in self._jobs), default=0)
            while self._waiting:
                rows = self.running + 1
                longest = max(longest, self._waiting[0].most_tokens)
                if rows > self._max_batch_size or rows * longest > self._max_batch_tokens:
                    break
                self._joining.append(self._waiting.popleft())
            return list(self._joining)

    def _admit(self) -> None:
        """Compute the prompts of newcomers; a failure here leaves the rows that are there alone."""
        embeds = {}
        newcomers = self._take_newcomers()
        for job in newcomers:
            job.begin()
            try:
                embeds[job] = self._decoder.embed(job.request.prompt, job.request.visual)
            except Exception as error:
                self._fail([job], error)
        tokens: list[int | None] = []
        if embeds:
            samplers = [RowSampler(job.request.sampling) for job in embeds]
            try:
                tokens = self._decoder.join(list(embeds.values()), samplers)
            except Exception as error:
                self._fail(newcomers, error)
        with self._changed:
            self._joining = []
            if tokens:
                self._jobs = [*self._jobs, *embeds]
        for job, token in zip(embeds, tokens, strict=False):  # no tokens if the pass failed
            job.accept(token)

    def _step(self) -> None:
        """One more token for every row."""
        self._drop_ended()
        jobs = self._jobs
        if not jobs:
            return
        try:
            tokens = self._decoder.step()
        except Exception as error:
            self._lose_batch(error)
            return
        for job, token in zip(jobs, tokens, strict=True):
            job.accept(token)

    def _lose_batch(self, error: Exception) -> None:
        """After a failure that may have left the cache half written: end every row."""
        self._decoder.retain([])
        lost = self._jobs
        with self._changed:
            self._jobs = []
        self._fail(lost, error)

    def _fail(self, jobs: list[Job], error: Exception) -> None:
        """End jobs after an exception in the model, and go on, unless the device itself is beyond repair."""
        ids = [job.request.request_id for job in jobs]
        logger.error("the language model failed; requests %s are lost", ids, exc_info=error)
        for job in jobs:
            job.fail(UnavailableError(f"the language model failed ({_describe(error)}); send the request again"))
        if isinstance(error, torch.AcceleratorError):
            raise error


def _describe(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


def _end_token_ids(half: LanguageHalf, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Ids that end an answer, from the first of the three places that names any."""
    model = half.language_model
    named: list[int | list[int] | None] = [
        getattr(model.generation_config, "eos_token_id", None),
        getattr(model.config, "eos_token_id", None),
        tokenizer.eos_token_id,
    ]
    ids = next((ids for ids in named if ids is not None), [])
    return frozenset([ids] if isinstance(ids, int) else ids)
