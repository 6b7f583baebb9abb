"""What reaches the metrics of what a cache has counted. Numbers at Prometheus' end are in tests/integration."""

import contextlib
import gc
import threading
from collections import defaultdict
from typing import Any

import pytest

from fastervlm_video.cache import CacheStats, MemoryStore, TokenCache, encode_tokens
from fastervlm_video.config import Medium
from services import metrics
from services.logs import join_replica_log
from services.metrics import (
    AnswerFacts,
    AnswerMeter,
    CacheReporter,
    EncoderMeter,
    GeneratorMeter,
    RequestMeter,
    WorkMeter,
)
from services.settings import load_settings
from tests.cache.samples import FINGERPRINT, make_cache_key, make_tokens
from tests.services.live import PATIENCE_SECONDS


class Board:
    """Stands for Ray's registry: what each metric was told."""

    def __init__(self) -> None:
        self.totals: dict[str, float] = defaultdict(float)
        self.tagged: dict[tuple[str, tuple[tuple[str, str], ...]], float] = defaultdict(float)
        self.gauges: dict[str, float] = {}
        self.observed: dict[tuple[str, tuple[tuple[str, str], ...]], list[float]] = defaultdict(list)
        self.boundaries: dict[str, list[float]] = {}
        self.changed = threading.Event()

    def counter(self, name: str, description: str, **_: object) -> Any:
        assert description.endswith(".")
        return _Counter(self, name)

    def gauge(self, name: str, description: str, **_: object) -> Any:
        return _Gauge(self, name)

    def histogram(self, name: str, description: str, *, boundaries: list[float], **_: object) -> Any:
        assert boundaries == sorted(set(boundaries))
        self.boundaries[name] = boundaries
        return _Histogram(self, name)


class _Counter:
    def __init__(self, board: Board, name: str) -> None:
        self._board, self._name = board, name

    def inc(self, value: float = 1.0, tags: dict[str, str] | None = None) -> None:
        assert value > 0  # Ray refuses others
        self._board.totals[self._name] += value
        self._board.tagged[self._name, tuple(sorted((tags or {}).items()))] += value
        self._board.changed.set()


class _Gauge:
    def __init__(self, board: Board, name: str) -> None:
        self._board, self._name = board, name

    def set(self, value: float, tags: dict[str, str] | None = None) -> None:
        self._board.gauges["/".join((self._name, *(tags or {}).values()))] = value


class _Histogram:
    def __init__(self, board: Board, name: str) -> None:
        self._board, self._name = board, name

    def observe(self, value: float, tags: dict[str, str] | None = None) -> None:
        self._board.observed[self._name, tuple(sorted((tags or {}).items()))].append(value)


@pytest.fixture
def board(monkeypatch: pytest.MonkeyPatch) -> Board:
    made = Board()
    monkeypatch.setattr(metrics, "Counter", made.counter)
    monkeypatch.setattr(metrics, "Gauge", made.gauge)
    monkeypatch.setattr(metrics, "Histogram", made.histogram)
    return made


@pytest.fixture
def cache() -> TokenCache:
    return TokenCache(MemoryStore(10**7))


def test_reports_add_up_to_what_the_cache_has_counted(board: Board, cache: TokenCache) -> None:
    key, blob = make_cache_key(), encode_tokens(make_tokens())
    assert cache.lookup(key, None, FINGERPRINT) is None  # counted before anybody looks after it
    reporter = CacheReporter(cache)
    for _ in range(3):
        cache.insert(key, blob)
        assert cache.lookup(key, None, FINGERPRINT) is not None
        assert reporter.report()
    assert reporter.report()
    stats = cache.stats()
    assert {name: total for name, total in board.totals.items() if "seconds" not in name} == {
        "fastervlm_cache_hits_total": 3,
        "fastervlm_cache_misses_total": 1,
        "fastervlm_cache_inserts_total": stats.inserts,
        "fastervlm_cache_read_bytes_total": 3 * len(blob),
        "fastervlm_cache_written_bytes_total": stats.bytes_written,
    }


def test_answers_are_told_apart_by_what_they_are_about(board: Board) -> None:
    meter = AnswerMeter()
    for medium in (Medium.VIDEO, Medium.IMAGE, Medium.IMAGE):
        meter.record(cache="hit", medium=medium)
    name = "fastervlm_answers_total"
    assert board.tagged[name, (("cache", "hit"), ("medium", "image"))] == 2
    assert board.tagged[name, (("cache", "hit"), ("medium", "video"))] == 1


def test_what_a_complete_answer_took(board: Board) -> None:
    meter = AnswerMeter()
    for reused in (0, 32):
        meter.complete(AnswerFacts("hit", {"fetch": 0.25, "total": 1.5}, 512, 48, 60, reused, 3))
    assert board.observed["fastervlm_answer_seconds", (("cache", "hit"), ("stage", "fetch"))] == [0.25, 0.25]
    assert board.observed["fastervlm_answer_seconds", (("cache", "hit"), ("stage", "total"))] == [1.5, 1.5]
    tokens = {
        (name, *(value for _, value in tags)): total for (name, tags), total in board.tagged.items() if "tokens" in name
    }
    assert tokens == {
        ("fastervlm_visual_tokens_total", "full"): 1024,
        ("fastervlm_visual_tokens_total", "kept"): 96,
        ("fastervlm_prompt_tokens_total", "all"): 120,
        ("fastervlm_prompt_tokens_total", "reused"): 32,
        ("fastervlm_answer_tokens_total",): 6,
    }


def test_what_users_wait_for_the_first_text(board: Board) -> None:
    meter = AnswerMeter()
    meter.first_text("hit", 0.25, streamed=True)
    meter.first_text("miss", 2.5, streamed=False)
    name = "fastervlm_first_text_seconds"
    assert {tags: seen for (seen_name, tags), seen in board.observed.items() if seen_name == name} == {
        (("cache", "hit"), ("form", "stream")): [0.25],
        (("cache", "miss"), ("form", "whole")): [2.5],
    }


def test_the_longest_answer_fits_the_buckets(board: Board) -> None:
    AnswerMeter()
    WorkMeter("decode")
    limits = load_settings()
    for name in ("fastervlm_answer_seconds", "fastervlm_first_text_seconds"):
        assert board.boundaries[name][-1] >= limits.request_timeout_seconds
    assert board.boundaries["fastervlm_decode_seconds"][-1] >= limits.decode_timeout_seconds


class Queue:
    def __init__(self, waiting: int, running: int) -> None:
        self.queue_depth, self.running = waiting, running


def test_what_a_generator_holds(board: Board) -> None:
    queue = Queue(3, 8)
    meter = GeneratorMeter(queue)
    meter.begin()
    assert meter.report()
    assert board.gauges == {
        "fastervlm_generator_requests/waiting": 3,
        "fastervlm_generator_requests/running": 8,
    }
    queue.running = 0  # the answer has ended before it was counted
    meter.begin()
    assert board.observed["fastervlm_generate_batch_size", ()] == [8, 1]
    del queue
    gc.collect()
    meter.begin()
    assert not meter.report()


def test_frames_wait_until_their_pass_is_over(board: Board) -> None:
    meter, seen = EncoderMeter(), []
    waiting = "fastervlm_encoder_waiting_frames"
    with meter.waiting(8):
        with contextlib.suppress(ValueError), meter.waiting(4):
            seen.append(board.gauges[waiting])
            meter.together(12)
            raise ValueError("boom")
        seen.append(board.gauges[waiting])
    assert [*seen, board.gauges[waiting]] == [12, 8, 0]
    assert board.observed["fastervlm_encode_batch_frames", ()] == [12]


def test_evictions_are_shown_where_the_store_knows_them(board: Board, cache: TokenCache) -> None:
    known: list[int | None] = [None, 3]
    cache.evictions = lambda: known.pop(0)  # type: ignore[attr-defined, method-assign, unused-ignore]
    reporter = CacheReporter(cache)
    reporter.report()
    assert not board.gauges
    reporter.report()
    assert board.gauges == {"fastervlm_cache_evicted_keys": 3}


class FailingOnce(TokenCache):
    failed = False

    def stats(self) -> CacheStats:
        if not self.failed:
            self.failed = True
            raise RuntimeError("boom")
        return super().stats()


def test_the_thread_survives_errors(board: Board, caplog: pytest.LogCaptureFixture) -> None:
    cache = FailingOnce(MemoryStore(10**7))
    CacheReporter(cache).start(every_seconds=0.01)
    cache.lookup(make_cache_key(), None, FINGERPRINT)
    assert board.changed.wait(PATIENCE_SECONDS)
    assert board.totals["fastervlm_cache_misses_total"] == 1
    assert "boom" in caplog.text


def test_the_thread_ends_with_the_cache(board: Board) -> None:
    cache, others = TokenCache(MemoryStore(10**7)), set(threading.enumerate())
    CacheReporter(cache).start(every_seconds=0.01)
    (thread,) = set(threading.enumerate()) - others
    cache.lookup(make_cache_key(), None, FINGERPRINT)
    assert board.changed.wait(PATIENCE_SECONDS)
    del cache
    gc.collect()
    thread.join(PATIENCE_SECONDS)
    assert not thread.is_alive()


def test_outside_of_a_replica_meters_do_no_harm(cache: TokenCache) -> None:
    WorkMeter("decode").record(videos=1, frames=8, seconds=0.1)
    AnswerMeter().record(cache="hit", medium=Medium.IMAGE)
    AnswerMeter().first_text("hit", 0.1, streamed=True)
    AnswerMeter().complete(AnswerFacts("miss", {"total": 1.0}, 4, 1, 9, 0, 1))
    RequestMeter().record(route="ask", status="2xx", code="ok")
    EncoderMeter().together(3)
    queue = Queue(0, 0)
    meter = GeneratorMeter(queue)
    meter.begin()
    assert meter.report()
    cache.lookup(make_cache_key(), None, FINGERPRINT)
    assert CacheReporter(cache).report()
    join_replica_log()
