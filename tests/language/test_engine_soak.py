"""Many requests from many threads: each ends exactly once, and the engine is then as it was."""

import gc
import logging
import random
import threading
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from fastervlm_video.errors import OverloadedError, UnavailableError
from fastervlm_video.language import (
    CancelHandle,
    EngineLimits,
    Event,
    Failed,
    Finished,
    GenerationRequest,
    PagedEngine,
    TextDelta,
)
from fastervlm_video.models.base import LanguageHalf
from tests.language.kit import PATIENCE_SECONDS, Gate, Listener, holdings, wait_until
from tests.language.toys import Oracle, make_half, make_question, make_request

THREADS, REQUESTS = 4, 250


class Once:
    """Counts how a request ends, and what is said behind that."""

    def __init__(self, rng: random.Random) -> None:
        self.ends = 0
        self.late = 0
        self.cancelled = False
        self.last_event: Event | None = None
        self.cancel_after = rng.choice([None, None, None, 0, 1, 3])
        self.done = threading.Event()
        self._events = 0

    def __call__(self, event: Event) -> None:
        self.late += self.ends
        self._events += 1
        self.last_event = event
        if not isinstance(event, TextDelta):
            self.ends += 1
            self.done.set()

    def may_cancel(self) -> bool:
        return self.cancel_after is not None and self._events >= self.cancel_after


def _request(half: LanguageHalf, rng: random.Random) -> GenerationRequest:
    request = _any_request(half, rng)
    stop = tuple(rng.sample("acdeilnorst ", 4)) if rng.random() < 0.6 else ()
    return replace(request, sampling=replace(request.sampling, stop=stop))


def _any_request(half: LanguageHalf, rng: random.Random) -> GenerationRequest:
    inserts, separators = (((4, (33,)),), (2,)) if rng.random() < 0.3 else ((), ())
    if rng.random() < 0.3:
        temperature = rng.choice([0.0, 1.0])
        return make_request(half, seed=rng.randrange(50), num_visual=rng.choice([0, 5, 20]), temperature=temperature)
    return make_question(
        half,
        video=rng.randrange(12),
        question=rng.randrange(9),
        num_visual=30,
        max_tokens=rng.choice([1, 2, 4, 9, 20]),
        identity=None if rng.random() < 0.2 else "",
        inserts=inserts,
        separators=separators,
    )


def _client(engine: PagedEngine, half: LanguageHalf, seed: int, ends: list[Once]) -> None:
    """Submits its share, a few at a time; cancels some at once, some on the way, some when they are done."""
    rng = random.Random(seed)
    under_way: list[tuple[Once, CancelHandle]] = []
    for _ in range(REQUESTS):
        once = Once(rng)
        while True:
            try:
                handle = engine.submit(_request(half, rng), once)
                break
            except OverloadedError:
                under_way[0][0].done.wait(0.01)
        ends.append(once)
        under_way.append((once, handle))
        for other, held in under_way:
            if other.may_cancel() and not other.cancelled:
                other.cancelled = True
                held.cancel()
        under_way = [(other, held) for other, held in under_way if not other.cancelled and not other.done.is_set()]
        while len(under_way) > 8:
            assert under_way[0][0].done.wait(PATIENCE_SECONDS)
            under_way.pop(0)
    for once, _ in under_way:
        assert once.done.wait(PATIENCE_SECONDS)


def test_a_thousand_requests_end_exactly_once_and_leave_nothing_behind(tokenizer: PreTrainedTokenizerFast) -> None:
    end_ids = [2, *range(60, 90)]
    half = make_half(tokenizer, end_ids=end_ids, context_length=128)
    limits = EngineLimits(max_batch_size=12, max_queue=30, max_batch_tokens=64, kv_cache_tokens=512, visual_rows=256)
    ends: list[list[Once]] = [[] for _ in range(THREADS)]
    with PagedEngine(half, tokenizer, limits) as engine:
        before = holdings(engine)
        clients = [threading.Thread(target=_client, args=(engine, half, n, mine)) for n, mine in enumerate(ends)]
        for client in clients:
            client.start()
        for client in clients:
            client.join()
        assert engine.healthy
        assert holdings(engine) == before
    everyone = [once for mine in ends for once in mine]
    assert len(everyone) == THREADS * REQUESTS
    assert sum(once.cancelled for once in everyone) > 100
    finished = [once.last_event for once in everyone if isinstance(once.last_event, Finished)]
    stopped = [end for end in finished if end.finish_reason == "stop" and end.token_ids[-1] not in end_ids]
    assert len(stopped) > 20  # by a stop string, of which the batcher beneath knows nothing
    for once in everyone:
        assert once.ends == 1 or (once.cancelled and once.ends == 0)
        assert once.late == 0


@pytest.mark.parametrize("how", ["raises", "exits", "closed"])
def test_an_engine_that_ends_under_load_leaves_nobody_waiting(tokenizer: PreTrainedTokenizerFast, how: str) -> None:
    """In the batch, in the line, and on the way in, from several threads, while it ends."""
    half = make_half(tokenizer, end_ids=[])
    listeners: list[Listener] = []
    refused = threading.Barrier(THREADS + 1)

    def client(engine: PagedEngine, seed: int) -> None:
        for number in range(100_000):
            listener = Listener()
            try:
                engine.submit(make_request(half, seed=seed + number, max_tokens=40), listener)
            except OverloadedError:
                continue
            except UnavailableError:
                break
            listeners.append(listener)
        refused.wait(PATIENCE_SECONDS)

    with PagedEngine(half, tokenizer, EngineLimits(max_batch_size=3, max_queue=20)) as engine:
        gate = Gate(engine)
        clients = [threading.Thread(target=client, args=(engine, 1000 * n)) for n in range(THREADS)]
        for thread in clients:
            thread.start()
        wait_until(lambda: engine.queue_depth > 10)
        gate.open(30)
        wait_until(lambda: gate.passes == 30)
        if how != "closed":
            error = RuntimeError("the device is gone") if how == "raises" else SystemExit(1)
            engine._model.register_forward_pre_hook(_raising(error))
            gate.open()
        else:
            threading.Thread(target=engine.close).start()
            wait_until(lambda: not engine.healthy)
            gate.open()
        refused.wait(PATIENCE_SECONDS)
        ends = [listener.end for listener in listeners]
        for thread in clients:
            thread.join()
        wait_until(lambda: not engine._batcher.alive)
        assert engine.running == engine.queue_depth == 0
    assert all(isinstance(end, Finished) or isinstance(end.error, UnavailableError) for end in ends)  # type: ignore[union-attr]
    assert sum(isinstance(end, Failed) for end in ends) >= 10
    for listener in listeners:
        assert sum(not isinstance(event, TextDelta) for event in listener.events) == 1
        assert not isinstance(listener.events[-1], TextDelta)


def _raising(error: BaseException) -> Callable[[torch.nn.Module, object], None]:
    def hook(module: torch.nn.Module, args: object) -> None:
        raise error

    return hook


def test_requests_cancelled_while_they_wait_never_begin(tokenizer: PreTrainedTokenizerFast) -> None:
    half = make_half(tokenizer, end_ids=[])
    listeners = [Listener() for _ in range(12)]
    with PagedEngine(half, tokenizer, EngineLimits(max_batch_size=1)) as engine:
        gate = Gate(engine)
        handles = [engine.submit(make_request(half, seed=n), each) for n, each in enumerate(listeners)]
        wait_until(lambda: engine.running == 1)
        threads = [threading.Thread(target=handle.cancel) for handle in handles[1:-1] for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert engine.queue_depth == 1
        gate.open()
        assert len(listeners[0].finished.token_ids) == len(listeners[-1].finished.token_ids) == 8
    assert gate.passes == 16
    assert not any(listener.events for listener in listeners[1:-1])


@pytest.fixture
def _no_log() -> Iterator[None]:
    """Records of what is logged hold on to tracebacks, and these to what was computed."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.usefixtures("_no_log")
@pytest.mark.parametrize("broken", [False, True])
def test_a_closed_engine_keeps_no_memory_and_no_thread(tokenizer: PreTrainedTokenizerFast, broken: bool) -> None:
    half = make_half(tokenizer, end_ids=[])
    threads = set(threading.enumerate())
    engine = PagedEngine(half, tokenizer)
    cache = weakref.ref(engine._batcher._manager._processor.cache.cache_tensor)
    table = weakref.ref(engine._embedding.get_buffer("table"))
    listener = Listener()
    if broken:
        engine._model.register_forward_pre_hook(_raising(RuntimeError("broken")))
    engine.submit(make_request(half), listener)
    assert isinstance(listener.end, Failed if broken else Finished)
    engine.close()
    gc.collect()
    assert cache() is None
    assert table() is None
    assert set(threading.enumerate()) <= threads
    itself = weakref.ref(engine)
    del engine, listener
    gc.collect()
    assert itself() is None
    assert Oracle(half).answer(make_request(half))  # the weights are the caller's, who may go on
