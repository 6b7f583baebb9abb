"""What the engine tests watch and hold engines with."""

import math
import queue
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerFast

from fastervlm_video.errors import FasterVLMError
from fastervlm_video.language import Event, Failed, Finished, GenerationRequest, PagedEngine, TextDelta
from fastervlm_video.language.admission import PAGE_TOKENS
from fastervlm_video.models.base import LanguageHalf
from tests.language.toys import Oracle, make_request, random_inserts, random_separators, whole_text

PATIENCE_SECONDS = 60.0


class Listener:
    """Collects one request's events and can be waited for."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.done = threading.Event()

    def __call__(self, event: Event) -> None:
        self.events.append(event)
        if not isinstance(event, TextDelta):
            self.done.set()

    @property
    def end(self) -> Event:
        assert self.done.wait(PATIENCE_SECONDS)
        return self.events[-1]

    @property
    def finished(self) -> Finished:
        end = self.end
        assert isinstance(end, Finished), end
        assert all(isinstance(event, TextDelta) and event.text for event in self.events[:-1])
        return end

    @property
    def error(self) -> FasterVLMError:
        end = self.end
        assert isinstance(end, Failed), end
        return end.error

    @property
    def text(self) -> str:
        return "".join(event.text for event in self.events if isinstance(event, TextDelta))


class Gate:
    """Lets as many of an engine's forward passes through as it is told to, and counts them.

    Args:
        engine: which has not been given any request yet. It runs a copy of the model, which shares the weights only.
    """

    def __init__(self, engine: PagedEngine) -> None:
        self.passes = 0
        self.rows: list[int] = []
        self.tokens: list[int] = []
        self._allowed = 0.0
        self._changed = threading.Condition()
        engine._model.register_forward_pre_hook(self._hook, with_kwargs=True)

    def _hook(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: self.passes < self._allowed, PATIENCE_SECONDS)
            self.passes += 1
            self.rows.append(len(kwargs["cu_seq_lens_q"]) - 1)
            self.tokens.append(kwargs["input_ids"].shape[1])

    def open(self, passes: float = math.inf) -> None:
        """Let this many through in all."""
        with self._changed:
            self._allowed = passes
            self._changed.notify_all()


def run_on_engine(engine: PagedEngine, action: Callable[[], Any]) -> Any:
    """Run something between two of an engine's steps, on its thread."""
    result: queue.SimpleQueue[Any] = queue.SimpleQueue()
    turns: Any = engine._turns
    on_turn = turns.on_turn

    def once() -> None:
        turns.on_turn = on_turn
        result.put(action())
        on_turn()

    turns.on_turn = once
    engine._batcher.wake()
    return result.get(timeout=PATIENCE_SECONDS)


@dataclass(frozen=True)
class Holdings:
    """What requests have left behind in an engine, once prefixes are given up."""

    free_pages: int
    free_rows: int
    promised: int
    remembered: tuple[int, ...]


def holdings(engine: PagedEngine) -> Holdings:
    """Of an engine without requests; its prefixes are given up."""

    def count() -> Holdings:
        turns, batcher = engine._turns, engine._batcher
        batcher.forget_prefixes()
        turns._table.evict()
        manager: Any = batcher._manager
        scheduler = manager._processor.scheduler
        pages: Any = manager.pages
        remembered: list[Any] = [turns._residents, turns._computing, turns._promised._shared, turns._promised._sharers]
        remembered += [manager._shared, manager._prompt_lengths, pages._may_hold, pages._matched]
        remembered += [scheduler.active_requests, scheduler.waiting_requests, scheduler.waiting_requests_order]
        remembered += [scheduler._requests_to_cancel, pages._allocator.block_table, *vars(pages._ledger).values()]
        remembered += [engine._waiting.snapshot()]
        return Holdings(
            batcher.free_pages, turns._table.free_rows, turns._promised.promised, tuple(map(len, remembered))
        )

    wait_until(lambda: engine.running == engine.queue_depth == 0)
    found = run_on_engine(engine, count)
    assert isinstance(found, Holdings)
    return found


def wait_until(condition: Callable[[], bool]) -> None:
    """Poll, for what has no event to wait for."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def random_request(half: LanguageHalf, rng: random.Random) -> GenerationRequest:
    """Any shape, from one token without a video to most of the context."""
    num_visual = rng.choice([0, 1, 7, 20, 40])
    return make_request(
        half,
        seed=rng.randrange(2**31),
        num_before=rng.randint(1, 6),
        num_visual=num_visual,
        num_after=rng.randint(1, 12),
        max_tokens=rng.choice([1, 2, 5, 12, 30]),
        inserts=random_inserts(half, rng, num_visual),
        separators=random_separators(rng, num_visual),
    )


def check_answer(
    request: GenerationRequest, listener: Listener, oracle: Oracle, tokenizer: PreTrainedTokenizerFast
) -> str:
    """Ids, text and counts as Hugging Face would have them; returns the finish reason."""
    finished = listener.finished
    assert finished.token_ids == oracle.answer(request)
    ended = finished.token_ids[-1] in oracle.model.config.eos_token_id
    assert finished.finish_reason == ("stop" if ended else "length")
    assert listener.text == whole_text(tokenizer, list(finished.token_ids[: -1 if ended else None]))
    assert finished.usage.prompt_tokens == len(request.prompt)
    assert finished.usage.visual_tokens == request.prompt.num_visual
    assert finished.usage.completion_tokens == len(finished.token_ids)
    assert 0 <= finished.usage.cached_tokens < len(request.prompt)
    assert finished.usage.cached_tokens % PAGE_TOKENS == 0
    times = finished.timings
    assert 0 <= times.queued_seconds <= times.ttft_seconds <= times.total_seconds
    return finished.finish_reason
