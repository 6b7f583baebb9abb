"""Transformers' continuous batching, as this project uses it. Its inner names are known here and in ``cached_pages``.

The engine is transformers' own: paged cache, chunked prefill, prefix sharing, scheduling. It gets here what it
lacks for serving strangers (as of 5.23):

* a turn of one's own before each step, on its thread, so that admission and cancellation need no locks and take
  effect at once;
* tokens handed over on its thread, as they come, with the count of prompt tokens that were shared;
* one way of choosing tokens that is the caller's: per row, with the row's own randomness;
* attention that reads whole pages, so that nothing is listed token by token (``StepPlan``);
* prefixes that end before a video's tokens are not shared: they may be another client's words;
* a cache of prefixes that gives up what is oldest first, and of that the end first, where the original gives up all;
* a thread that does not keep the process alive, says so when it ends, for whatever reason, and leaves no memory behind.

Its thread does not survive an exception: what is given to :meth:`ContinuousBatcher.add` must have been checked.
"""

import gc
import sys
import threading
import traceback
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from torch import Tensor
from transformers import ContinuousBatchingConfig, GenerationConfig, PreTrainedModel
from transformers.generation.continuous_batching.continuous_api import (
    ContinuousBatchingManager,
    ContinuousBatchProcessor,
    OutputRouter,
)
from transformers.generation.continuous_batching.requests import GenerationOutput, RequestState

from fastervlm_video.language.cached_pages import CachedPages
from fastervlm_video.language.paged_attention import StepPlan

__all__ = ["BatcherLimits", "BatcherListener", "ContinuousBatcher"]

_EVICTED_SHARE = 4  # a fourth of the prefixes that nobody uses is given up at a time


@dataclass(frozen=True, slots=True)
class BatcherLimits:
    """Sizes of the engine.

    Attributes:
        page_tokens: of the paged cache; prefixes are shared in whole pages.
        pages: of the cache.
        batch_tokens: most tokens in one forward pass; longer prompts are computed in several.
        batch_size: most requests in one forward pass.
        private_from: prefixes are shared from the first token on whose id is at least this.
    """

    page_tokens: int
    pages: int
    batch_tokens: int
    batch_size: int
    private_from: int = 0


class BatcherListener(Protocol):
    """Told what happens, on the engine's thread. Exceptions end the engine."""

    def on_turn(self) -> None:
        """The engine is between two steps; it may be given requests, or have some cancelled."""

    def choose(self, request_ids: Sequence[str], logits: Tensor) -> Tensor:
        """The next token of each row: int64 [rows], of float32 [rows, vocabulary]; there is at least one row."""

    def on_token(self, request_id: str, token_id: int, shared_tokens: int) -> None:
        """A request has its next token; of its prompt, ``shared_tokens`` had been computed before."""

    def on_end(self, error: BaseException | None) -> None:
        """The engine has ended, and nothing will be heard of whatever was in it."""


class ContinuousBatcher:
    """Runs a model's requests in one batch that they join and leave at any step.

    All methods but :meth:`start`, :meth:`wake` and :meth:`close` are for the engine's thread, between two steps.

    Args:
        model: a causal language model with ``PAGED_ATTENTION``, for this object alone.
        limits: sizes.
        listener: told what happens.
        end_ids: token ids that end an answer.

    Raises:
        MemoryError: the cache does not fit.
    """

    def __init__(
        self, model: PreTrainedModel, limits: BatcherLimits, listener: BatcherListener, end_ids: Collection[int]
    ) -> None:
        self._end_ids = sorted(end_ids)
        self._manager = _Manager(model, limits, listener)

    def start(self) -> None:
        """Begin to listen for requests, and to tell the listener."""
        self._manager.start()

    @property
    def alive(self) -> bool:
        """Whether its thread runs and takes requests; from any thread."""
        return self._manager.is_running() and self._manager.background_thread_status.can_accept_new_requests() is None

    @property
    def free_pages(self) -> int:
        """Pages that hold nothing of use; from any thread, as it was a moment ago."""
        return self._manager.pages.free if self._manager.pages else 0

    @property
    def idle_pages(self) -> int:
        """Pages that nobody holds but that may be shared; from any thread, as it was a moment ago."""
        return self._manager.pages.idle if self._manager.pages else 0

    def wake(self) -> None:
        """Have the next turn come soon."""
        self._manager.wake()

    def shared_tokens(self, prompt_ids: Sequence[int]) -> int:
        """Tokens at a prompt's beginning that need not be computed, as things stand; in whole pages."""
        return self._manager.require_pages().shared_tokens(list(prompt_ids))

    def add(self, request_id: str, prompt_ids: Sequence[int], max_tokens: int) -> None:
        """Begin a request. Old prefixes make room for all that it may need.

        Args:
            request_id: of nobody before in this engine.
            prompt_ids: at least one, each below 2**31.
            max_tokens: longest answer.
        """
        state = RequestState(
            request_id=request_id,
            initial_tokens=list(prompt_ids),
            max_new_tokens=max_tokens,
            eos_token_id=self._end_ids,
            streaming=True,
        )
        self._manager.add(state)

    def cancel(self, request_id: str) -> None:
        """Drop a request and free its pages. One that has ended is forgotten."""
        self._manager.drop(request_id)

    def forget_prefixes(self) -> None:
        """Share nothing with what was computed so far. Only while no request is in the engine."""
        self._manager.forget_prefixes()

    def close(self, timeout_seconds: float) -> bool:
        """End the thread after the step in progress; False if it is still there after that time."""
        return self._manager.end(timeout_seconds)


class _Manager(ContinuousBatchingManager):
    """Transformers' engine with the additions that this module's docstring lists."""

    def __init__(self, model: PreTrainedModel, limits: BatcherLimits, listener: BatcherListener) -> None:
        config = ContinuousBatchingConfig(
            page_size=limits.page_tokens,
            num_blocks=limits.pages,
            max_batch_tokens=limits.batch_tokens,
            max_requests_per_batch=limits.batch_size,
            max_blocks_per_request=0,  # the fast path for single tokens needs flash-attention's kernels
            use_async_batching=False,  # tokens are chosen outside of CUDA graphs, one step at a time
            use_cuda_graph=False,
            auto_switch_to_flash=False,
            safety_margin=0.0,  # the caller admits no more than fits
        )
        super().__init__(cast("Any", model), GenerationConfig(do_sample=False), config)
        self._listener = listener
        self._shared: dict[str, int] = {}  # prompt tokens of each request that had been computed before
        self._prompt_lengths: dict[str, int] = {}
        self.output_router = _Tokens(listener, self._shared)
        self._thread: threading.Thread | None = None
        processor: Any = self._create_batch_processor()  # the thread takes it from here; sizes that do not fit raise
        self.batch_processor = processor
        # All layers attend fully, so there is one allocator. It is dropped with the processor.
        self.pages: CachedPages | None = CachedPages(processor.cache.layer_to_allocator[0], limits.private_from)
        self._make_additions(processor)

    def _make_additions(self, processor: Any) -> None:
        """In the places where the processor looks its parts' methods up."""
        pages = self.require_pages()
        processor.cache.search_prefix_match = self._search
        processor.cache.mark_complete_blocks = self._mark_complete
        processor.cache.evict_cached_blocks = lambda: pages.evict(-(-pages.idle // _EVICTED_SHARE))
        processor.cache.extend_read_and_write_indices = self._list_writes
        processor.cache.layer_to_allocator[0].free_blocks = pages.release
        processor.cache.layer_to_allocator[0].match_prefix_blocks = pages.match
        processor.cache.max_tokens_read = sys.maxsize  # it bounds a list of single tokens that is not made here
        processor.model_runner._sample = self._sample
        processor.inputs_and_outputs.compute_stream = None  # visual tokens are written on the thread's own stream

    def require_pages(self) -> CachedPages:
        """The cache's pages, which are there while the thread is."""
        assert self.pages is not None, "the engine has ended"
        return self.pages

    @property
    def _processor(self) -> Any:
        assert self.batch_processor is not None, "the engine has ended"
        return self.batch_processor

    def add(self, state: RequestState) -> None:
        self.require_pages().make_room(state.request_id, state.initial_tokens, state.max_new_tokens or 0)
        self._prompt_lengths[state.request_id] = len(state.initial_tokens)
        self._processor.scheduler.add_waiting_request(state)

    def drop(self, request_id: str) -> None:
        scheduler = self._processor.scheduler
        scheduler.set_request_cancellation(request_id)
        scheduler.clear_cancelled_requests()
        self.require_pages().forget(request_id)
        self._prompt_lengths.pop(request_id, None)
        self._shared.pop(request_id, None)

    def forget_prefixes(self) -> None:
        pages = self.require_pages()
        assert not pages.held, "a request would leave its pages behind as a prefix"
        pages.evict(pages.idle)

    def start(self) -> None:
        """As the original's, but the thread is no reason for the process to stay."""
        self._thread = threading.Thread(target=self._run_generation_loop, name="language-engine", daemon=True)
        cast("Any", self)._generation_thread = self._thread
        self._thread.start()

    def wake(self) -> None:
        self._wake_up_loop.set()

    def end(self, timeout_seconds: float) -> bool:
        status = self.background_thread_status
        status.request_stop(status.HARD_STOP, self.distributed_helper.global_rank)
        self.wake()
        if self._thread is None or self._thread is threading.current_thread():
            return True
        self._thread.join(timeout_seconds)
        return not self._thread.is_alive()

    def _run_generation_loop(self) -> None:
        status, error = self.background_thread_status, None
        try:
            with torch.inference_mode():
                super()._run_generation_loop()
        except BaseException as caught:  # the original lets these pass, and nobody would hear of them
            error = caught
        error = error or status.fatal_error
        try:
            self._listener.on_end(error)
        finally:
            if error is not None:  # whose frames hold on to the cache, and who knows who to the error
                traceback.clear_frames(error.__traceback__)
                error.__traceback__ = None
            error = status.fatal_error = self.batch_processor = self.pages = None
            cast("Any", self).model = None
            gc.collect()

    def _generation_loop_body(self, batch_processor: ContinuousBatchProcessor, bootstrapping: bool) -> bool:
        self._listener.on_turn()
        return bool(super()._generation_loop_body(batch_processor, bootstrapping))

    def _generation_step(self) -> None:
        cache, inputs, pages = self._processor.cache, self._processor.inputs_and_outputs, self.require_pages()
        sequences = [
            pages.sequence(future.state.request_id, future.query_length, future.state.position_offset)
            for future in inputs.requests_in_batch
        ]
        writes = inputs.write_index_storage[0, : inputs.true_write_sizes[0]]
        cache.plan = StepPlan(sequences, pages.layers, writes, cache.dtype)
        super()._generation_step()

    def _search(self, request_id: str, prompt_ids: list[int]) -> int:
        """Takes what a prompt shares. A request that lost its pages comes again, with its answer so far behind it."""
        cache = self._processor.cache
        found: int = type(cache).search_prefix_match(cache, request_id, prompt_ids)
        if len(prompt_ids) == self._prompt_lengths[request_id]:
            self._shared[request_id] = found
        return found

    def _mark_complete(self, state: RequestState, pages: dict[str, int]) -> None:
        """Also of a request's last step, which the original leaves out: with it the prompts of one-token answers."""
        for kind, count in pages.items():
            allocator = self._processor.cache.cache_allocators[kind]
            allocator.mark_complete_blocks(state.request_id, state.initial_tokens + state.generated_tokens, count)

    def _list_writes(
        self, request_id: str, past_length: int, query_length: int, _reads: Any, writes: list[list[int]]
    ) -> None:
        cache = self._processor.cache
        type(cache).extend_read_and_write_indices(cache, request_id, past_length, query_length, None, writes)

    def _sample(self, scores: Tensor, output_ids: Tensor) -> None:
        """Of [1, rows, vocabulary]; requests still inside their prompts have rows too, last and meaningless."""
        batch = self._processor.inputs_and_outputs.requests_in_batch
        names = [future.state.request_id for future in batch if future.has_new_token]
        if names:
            output_ids[0, : len(names)].copy_(self._listener.choose(names, scores[0, : len(names)]))


class _Tokens(OutputRouter):
    """Hands tokens to the listener instead of a queue."""

    def __init__(self, listener: BatcherListener, shared_tokens: dict[str, int]) -> None:
        super().__init__()
        self._listener = listener
        self._shared_tokens = shared_tokens

    def deliver(self, output: GenerationOutput) -> None:
        """One request's news. A failed one needs none: whatever fails here ends the engine."""
        shared = self._shared_tokens.get(output.request_id, 0)
        if output.generated_tokens and output.error is None:
            self._listener.on_token(output.request_id, output.generated_tokens[-1], shared)

    def deliver_batch(self, outputs: list[GenerationOutput]) -> None:
        for output in outputs:
            self.deliver(output)
