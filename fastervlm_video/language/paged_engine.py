"""The engine: transformers' continuous batching over visual tokens.

It puts three parts together: a line of requests that wait (any thread), what happens between two steps
(:mod:`fastervlm_video.language.turns`, the engine's thread), and the steps themselves
(:mod:`fastervlm_video.language.continuous`).
"""

import atexit
import logging
from collections.abc import Iterable
from copy import deepcopy
from types import TracebackType
from typing import cast

from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fastervlm_video.errors import ContextLengthError, UnavailableError
from fastervlm_video.language.admission import PAGE_TOKENS, EngineLimits, check_full_attention
from fastervlm_video.language.continuous import BatcherLimits, ContinuousBatcher
from fastervlm_video.language.end_ids import end_token_ids
from fastervlm_video.language.engine import EventCallback, GenerationRequest, check_request
from fastervlm_video.language.job import Job
from fastervlm_video.language.paged_attention import PAGED_ATTENTION
from fastervlm_video.language.turns import Turns
from fastervlm_video.language.visual_table import VisualEmbedding, VisualTable
from fastervlm_video.language.waiting import WaitingLine
from fastervlm_video.models.base import LanguageHalf

__all__ = ["PagedEngine"]

logger = logging.getLogger(__name__)

_CLOSE_TIMEOUT_SECONDS = 60.0


class PagedEngine:
    """Batches requests on one model. See :class:`~fastervlm_video.language.engine.Engine`.

    Greedy answers equal those of ``generate(inputs_embeds=..., do_sample=False)`` for the request alone.

    Args:
        half: projector and language model, on their device, in evaluation mode; they are not changed.
        tokenizer: the checkpoint's tokenizer.
        limits: sizes.

    Raises:
        CheckpointError: the model's attention is not supported.
    """

    def __init__(
        self, half: LanguageHalf, tokenizer: PreTrainedTokenizerBase, limits: EngineLimits | None = None
    ) -> None:
        check_full_attention(half.language_model.config)
        limits = limits or EngineLimits()
        self._half, self._tokenizer = half, tokenizer
        self._end_ids = end_token_ids(half.language_model, tokenizer)
        self._capacity = limits.max_batch_size + limits.max_queue
        pages = limits.pages(half)
        self._cache_tokens = pages * PAGE_TOKENS
        model, embedding = _own_model(half.language_model, limits.table_pages(half) * PAGE_TOKENS)
        self._vocabulary_size = embedding.first_id
        self._visual_rows = embedding.rows
        self._model, self._embedding = model, embedding
        table = VisualTable(embedding, page_rows=PAGE_TOKENS, largest_id=limits.largest_id)
        self._waiting = WaitingLine(self._capacity, lambda: self.running)
        self._turns = Turns(
            half, self._waiting, table, pages=pages, max_batch_size=limits.max_batch_size, on_end=self._on_end
        )
        # Visual ids belong to a token set, and that to a tenant; text before them may be anybody's.
        sizes = BatcherLimits(
            PAGE_TOKENS, pages, limits.max_batch_tokens, limits.max_batch_size, private_from=embedding.first_id
        )
        self._batcher = ContinuousBatcher(model, sizes, self._turns, self._end_ids)
        self._turns.batcher = self._batcher
        self._batcher.start()
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
        return len(self._turns)

    @property
    def healthy(self) -> bool:
        """Whether it takes requests; once False it stays so."""
        return not self._waiting.closed and self._batcher.alive

    def submit(self, request: GenerationRequest, on_event: EventCallback) -> Job:
        """Take a request and return at once. See :meth:`Engine.submit`."""
        self._check(request)
        job = Job(request, on_event, self._tokenizer, self._end_ids, on_cancel=self._cancelled)
        self._waiting.push(job)
        self._batcher.wake()
        return job

    def close(self) -> None:
        """Fail whatever is in the engine and end its thread; waits for the step in progress."""
        atexit.unregister(self.close)
        reason = self._waiting.close("the language engine was closed; send the request again")
        _fail(self._waiting.empty(), reason)
        if not self._batcher.close(_CLOSE_TIMEOUT_SECONDS):
            logger.error("the language engine's step did not end within %.0f s", _CLOSE_TIMEOUT_SECONDS)
            _fail(self._turns.jobs(), reason)

    def __enter__(self) -> "PagedEngine":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _check(self, request: GenerationRequest) -> None:
        """Whatever could break the engine's thread is refused here."""
        check_request(
            request,
            vision_width=self._half.vision_width,
            vocabulary_size=self._vocabulary_size,
            context_length=self._half.context_length,
            has_separator=self._half.separator is not None,
        )
        needed = len(request.prompt) + request.sampling.max_tokens
        if needed > self._cache_tokens:
            raise ContextLengthError(
                f"the request may take {needed} cache slots, but the engine has {self._cache_tokens}; "
                "lower keep_ratio, num_frames or max_tokens"
            )
        if request.prompt.num_visual > self._visual_rows:
            raise ContextLengthError(
                f"the prompt has {request.prompt.num_visual} visual tokens, but the engine keeps {self._visual_rows}; "
                "lower keep_ratio or num_frames"
            )

    def _cancelled(self, job: Job) -> None:
        """It gives up its place in the line at once; its pages, before the next step."""
        self._waiting.remove(job)
        self._batcher.wake()

    def _on_end(self, error: BaseException | None) -> None:
        """The thread has ended, by itself or because it was told to; on it, so that no token comes behind the end."""
        if error is not None:
            logger.error("the language engine broke and must be restarted", exc_info=error)
        what = f"{type(error).__name__}: {error}" if error is not None else "its thread ended"
        reason = self._waiting.close(f"the language engine broke ({what}) and must be restarted")
        jobs = [*self._turns.jobs(), *self._waiting.empty()]
        self._turns.clear()
        self._embedding.release()
        _fail(jobs, reason)


def _fail(jobs: Iterable[Job], reason: str) -> None:
    for job in jobs:
        job.fail(UnavailableError(reason))


def _own_model(shared: PreTrainedModel, visual_rows: int) -> tuple[PreTrainedModel, VisualEmbedding]:
    """The model with an embedding and an attention of the engine's own; its weights stay where they are, shared."""
    tensors = [*shared.parameters(), *shared.buffers()]
    model = deepcopy(shared, {id(tensor): tensor for tensor in tensors})
    embedding = VisualEmbedding(cast("nn.Embedding", model.get_input_embeddings()), visual_rows)
    model.set_input_embeddings(embedding)
    model.config.get_text_config()._attn_implementation = PAGED_ATTENTION
    model.config._attn_implementation = PAGED_ATTENTION
    return model, embedding
