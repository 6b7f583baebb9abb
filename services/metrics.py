"""What this service counts, for Prometheus: shown beside Ray's own metrics, at the same address.

Ray puts ``ray_`` in front of every name; Serve adds the tags ``application``, ``deployment`` and ``replica``. A counter
appears with its first count: Ray refuses to count 0, so nothing can be shown of it before. Outside of a replica
nothing is shown, and nothing else is different.

====================================== ========= ===============================================================
``fastervlm_requests_total``           counter   requests ended; tag ``route``: ``ask`` or ``chat``, the dialects of a
                                                 question, ``files``, ``models`` or ``other``; tag ``status``: ``2xx``,
                                                 ``4xx``, ``5xx``, or ``none`` if nothing was sent; tag ``code``:
                                                 ``ok``, ``client_left``, or the error's, also if it came in the middle
                                                 of a stream. What the HTTP proxy refuses by itself it counts
                                                 itself, without Serve's tags
``fastervlm_answers_total``            counter   answers begun; tag ``cache``: their tokens were there (``hit``) or not;
                                                 tag ``medium``: they are of a ``video`` or an ``image``
``fastervlm_answer_seconds``           histogram time of each complete answer, by tag ``stage``: ``fetch``, ``decode``,
                                                 ``encode``, ``first_token``, ``generate``, ``total``, as in its
                                                 ``seconds``; tag ``cache`` as above
``fastervlm_first_text_seconds``       histogram time from when the Api began to read a question until it handed out the
                                                 first text; tag ``form``: the first piece of a ``stream``, or a
                                                 ``whole`` answer; tag ``cache`` as above
``fastervlm_visual_tokens_total``      counter   visual tokens of prompts; tag ``kind``: ``full``, as many as there
                                                 would be without pruning, or ``kept``
``fastervlm_prompt_tokens_total``      counter   tokens of prompts; tag ``kind``: ``all``, or ``reused``, those of them
                                                 that were not computed again
``fastervlm_answer_tokens_total``      counter   tokens generated
``fastervlm_generator_requests``       gauge     questions in a Generator; tag ``state``: ``waiting`` or ``running``
``fastervlm_generate_batch_size``      histogram answers under way when another one begins, that one included
``fastervlm_decoded_videos_total``     counter   videos and pictures decoded
``fastervlm_decoded_frames_total``     counter   frames taken out of them; a picture is one
``fastervlm_decode_seconds``           histogram time of a decode
``fastervlm_encoder_waiting_frames``   gauge     frames, or views, that wait for their pass or are in it
``fastervlm_encode_batch_frames``      histogram frames, or views, encoded together
``fastervlm_encoded_videos_total``     counter   videos and pictures that have been through the tower
``fastervlm_encoded_frames_total``     counter   their frames, or views, as the tower saw them
``fastervlm_encode_seconds``           histogram time of a pass of the tower, which may be for several of them
``fastervlm_cache_<count>_total``      counter   each count of :class:`~fastervlm_video.cache.CacheStats`: ``hits``,
                                                 ``misses``, ``errors``, ``inserts``, ``read_bytes``, ...
``fastervlm_cache_evicted_keys``       gauge     keys, of a video each, that Redis says it evicted for want of room
====================================== ========= ===============================================================
"""

import dataclasses
import logging
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast

from ray.serve.metrics import Counter, Gauge, Histogram

from fastervlm_video.config import Medium

if TYPE_CHECKING:
    from fastervlm_video.cache import TokenCache  # brings torch along, which the Decoder has no use for

__all__ = [
    "AnswerFacts",
    "AnswerMeter",
    "CacheReporter",
    "EncoderMeter",
    "EngineQueue",
    "GeneratorMeter",
    "RequestMeter",
    "WorkMeter",
]

logger = logging.getLogger(__name__)

_REPORT_SECONDS = 2.0
_SECONDS_BOUNDARIES = [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0]
_ANSWER_BOUNDARIES = [*_SECONDS_BOUNDARIES, 75.0, 120.0]
"""Of what may take as long as a whole answer: up to the default of its time limit."""
_SIZE_BOUNDARIES: list[float] = [1, 2, 4, 8, 16, 32, 64, 128, 256]
_UNIT_LAST = {"bytes_read": "read_bytes", "bytes_written": "written_bytes"}


class EngineQueue(Protocol):
    """What of an engine is measured; see :class:`~fastervlm_video.language.Engine`."""

    @property
    def queue_depth(self) -> int:
        """Requests that wait and have not begun."""

    @property
    def running(self) -> int:
        """Requests being answered now."""


@dataclass(frozen=True, slots=True)
class AnswerFacts:
    """What is counted of a complete answer.

    Attributes:
        cache: whether its tokens were there.
        seconds: that it took, by stage.
        tokens_full: visual tokens that there would be without pruning.
        tokens_kept: visual tokens that there were.
        prompt_tokens: of the whole prompt.
        reused_tokens: of these, not computed again.
        answer_tokens: generated.
    """

    cache: Literal["hit", "miss"]
    seconds: Mapping[str, float]
    tokens_full: int
    tokens_kept: int
    prompt_tokens: int
    reused_tokens: int
    answer_tokens: int


def _counter(name: str, description: str, *tags: str) -> Counter:
    return Counter(name, description, tag_keys=cast("Any", tags))  # annotated as if there were one only


def _histogram(name: str, description: str, boundaries: list[float], *tags: str) -> Histogram:
    return Histogram(name, description, boundaries=boundaries, tag_keys=cast("Any", tags))


class RequestMeter:
    """Counts of requests by their end. Callers see to it that tags have few values."""

    def __init__(self) -> None:
        self._requests = _counter("fastervlm_requests_total", "Requests ended.", "route", "status", "code")

    def record(self, *, route: str, status: str, code: str) -> None:
        """Count one request."""
        self._requests.inc(tags={"route": route, "status": status, "code": code})


class AnswerMeter:
    """Counts of answers, by what they are about, and by whether the tokens for them were cached; what each took."""

    def __init__(self) -> None:
        self._answers = _counter(
            "fastervlm_answers_total", "Answers begun, by cache: hit or miss, and by medium.", "cache", "medium"
        )
        self._seconds = _histogram(
            "fastervlm_answer_seconds", "Seconds per answer and stage.", _ANSWER_BOUNDARIES, "stage", "cache"
        )
        self._first_text = _histogram(
            "fastervlm_first_text_seconds", "Seconds until the first text.", _ANSWER_BOUNDARIES, "form", "cache"
        )
        self._visual = _counter("fastervlm_visual_tokens_total", "Visual tokens, by kind: full or kept.", "kind")
        self._prompt = _counter("fastervlm_prompt_tokens_total", "Prompt tokens, by kind: all or reused.", "kind")
        self._answer = _counter("fastervlm_answer_tokens_total", "Tokens generated.")

    def record(self, *, cache: Literal["hit", "miss"], medium: Medium) -> None:
        """Count one answer that begins."""
        self._answers.inc(tags={"cache": cache, "medium": medium.value})

    def first_text(self, cache: Literal["hit", "miss"], seconds: float, *, streamed: bool) -> None:
        """Count the first text of an answer, and what its user has waited for it."""
        self._first_text.observe(seconds, tags={"form": "stream" if streamed else "whole", "cache": cache})

    def complete(self, answer: AnswerFacts) -> None:
        """Count what one complete answer took."""
        for stage, seconds in answer.seconds.items():
            self._seconds.observe(seconds, tags={"stage": stage, "cache": answer.cache})
        _add(self._visual, {"full": answer.tokens_full, "kept": answer.tokens_kept})
        _add(self._prompt, {"all": answer.prompt_tokens, "reused": answer.reused_tokens})
        if answer.answer_tokens:
            self._answer.inc(answer.answer_tokens)


def _add(counter: Counter, amounts: dict[str, int]) -> None:
    for kind, amount in amounts.items():
        if amount:  # counters refuse 0
            counter.inc(amount, tags={"kind": kind})


class GeneratorMeter:
    """What is in a Generator's engine.

    Args:
        queue: of the engine; is not kept alive.
    """

    def __init__(self, queue: EngineQueue) -> None:
        self._queue = weakref.ref(queue)
        self._requests = Gauge(
            "fastervlm_generator_requests", "Questions, waiting or running.", tag_keys=cast("Any", ("state",))
        )
        self._batch = _histogram("fastervlm_generate_batch_size", "Answers under way.", _SIZE_BOUNDARIES)

    def start(self, *, every_seconds: float = _REPORT_SECONDS) -> None:
        """Look from a thread of its own, which ends with the process, or soon after the engine is gone."""
        _repeat(self.report, every_seconds, "generator-metrics")

    def report(self) -> bool:
        """Show what is there now. False if the engine is gone."""
        queue = self._queue()
        if queue is None:
            return False
        self._requests.set(queue.queue_depth, tags={"state": "waiting"})
        self._requests.set(queue.running, tags={"state": "running"})
        return True

    def begin(self) -> None:
        """Count an answer that has begun."""
        queue = self._queue()
        if queue is not None:
            self._batch.observe(max(1, queue.running))  # it may have ended already


class EncoderMeter:
    """What an Encoder has to do. For use from one event loop."""

    def __init__(self) -> None:
        self._frames = 0
        self._waiting = Gauge("fastervlm_encoder_waiting_frames", "Frames that wait for a pass or are in it.")
        self._batch = _histogram("fastervlm_encode_batch_frames", "Frames encoded together.", _SIZE_BOUNDARIES)

    @contextmanager
    def waiting(self, frames: int) -> Iterator[None]:
        """These frames wait, or are encoded, while the block runs."""
        self._add(frames)
        try:
            yield
        finally:
            self._add(-frames)

    def together(self, frames: int) -> None:
        """Count a batch of so many frames."""
        self._batch.observe(frames)

    def _add(self, frames: int) -> None:
        self._frames += frames
        self._waiting.set(self._frames)


class WorkMeter:
    """Counts of one kind of work on videos and pictures, and how long it takes. Thread-safe.

    Args:
        verb: what is done.
    """

    def __init__(self, verb: Literal["decode", "encode"]) -> None:
        self._videos = _counter(f"fastervlm_{verb}d_videos_total", f"Videos {verb}d.")
        self._frames = _counter(f"fastervlm_{verb}d_frames_total", f"Frames {verb}d.")
        self._seconds = _histogram(f"fastervlm_{verb}_seconds", f"Seconds per {verb}.", _SECONDS_BOUNDARIES)

    def record(self, *, videos: int, frames: int, seconds: float) -> None:
        """Count work that was done.

        Args:
            videos: at least 1.
            frames: of all of them; at least 1.
            seconds: that it took together.
        """
        self._videos.inc(videos)
        self._frames.inc(frames)
        self._seconds.observe(seconds)


class CacheReporter:
    """Shows a cache's counts as metrics.

    The cache counts by itself, for a fraction of what a metric costs; here is looked after it now and then.

    Args:
        cache: is not kept alive.
    """

    def __init__(self, cache: "TokenCache") -> None:
        self._cache = weakref.ref(cache)
        self._shown: dict[str, float] = {}
        self._counters: dict[str, Counter] = {}
        self._evicted = Gauge("fastervlm_cache_evicted_keys", "Keys that Redis says it evicted for want of room.")

    def start(self, *, every_seconds: float = _REPORT_SECONDS) -> None:
        """Report from a thread of its own, which ends with the process, or soon after the cache is gone."""
        _repeat(self.report, every_seconds, "cache-metrics")

    def report(self) -> bool:
        """Add to the metrics what has been counted since the last report. False if the cache is gone."""
        cache = self._cache()
        if cache is None:
            return False
        for name, value in dataclasses.asdict(cache.stats()).items():
            grown = value - self._shown.get(name, 0)
            if grown > 0:
                self._counter(name).inc(grown)
                self._shown[name] = value
        evicted = cache.evictions()
        if evicted is not None:
            self._evicted.set(evicted)
        return True

    def _counter(self, name: str) -> Counter:
        if name not in self._counters:
            metric = f"fastervlm_cache_{_UNIT_LAST.get(name, name)}_total"
            self._counters[name] = _counter(metric, f"Token cache: {name.replace('_', ' ')}.")
        return self._counters[name]


def _repeat(report: Callable[[], bool], every_seconds: float, name: str) -> None:
    """Report now and then, from a thread of its own, until it says that there is nothing left to report."""

    def run() -> None:
        there = True
        while there:
            time.sleep(every_seconds)
            try:
                there = report()
            except Exception:  # whatever it is, it must not end the reporting
                logger.exception("what %s counts was not shown", name)

    threading.Thread(target=run, name=name, daemon=True).start()
