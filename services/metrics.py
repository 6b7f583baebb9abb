"""What this service counts, for Prometheus: shown beside Ray's own metrics, at the same address.

Ray puts ``ray_`` in front of every name; Serve adds the tags ``application``, ``deployment`` and ``replica``. A counter
appears with its first count. Outside of a replica nothing is shown, and nothing else is different.

================================== ========= ===================================================================
``fastervlm_answers_total``        counter   answers begun; tag ``cache``: their tokens were there (``hit``) or not;
                                             tag ``medium``: they are of a ``video`` or an ``image``
``fastervlm_decoded_videos_total`` counter   videos and pictures decoded
``fastervlm_decoded_frames_total`` counter   frames taken out of them; a picture is one
``fastervlm_decode_seconds``       histogram time of a decode
``fastervlm_encoded_videos_total`` counter   videos and pictures that have been through the tower
``fastervlm_encoded_frames_total`` counter   their frames, or views, as the tower saw them
``fastervlm_encode_seconds``       histogram time of a pass of the tower, which may be for several of them
``fastervlm_cache_<count>_total``  counter   each count of :class:`~fastervlm_video.cache.CacheStats`: ``hits``,
                                             ``misses``, ``errors``, ``inserts``, ``read_bytes``, ...
``fastervlm_cache_evicted_keys``   gauge     keys, of a video each, that Redis says it evicted for want of room
================================== ========= ===================================================================
"""

import dataclasses
import logging
import threading
import time
import weakref
from typing import TYPE_CHECKING, Any, Literal, cast

from ray.serve.metrics import Counter, Gauge, Histogram

from fastervlm_video.config import Medium

if TYPE_CHECKING:
    from fastervlm_video.cache import TokenCache  # brings torch along, which the Decoder has no use for

__all__ = ["AnswerMeter", "CacheReporter", "WorkMeter"]

logger = logging.getLogger(__name__)

_REPORT_SECONDS = 2.0
_SECONDS_BOUNDARIES = [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0]
_UNIT_LAST = {"bytes_read": "read_bytes", "bytes_written": "written_bytes"}


class AnswerMeter:
    """Counts of answers, by what they are about, and by whether the tokens for them were cached."""

    def __init__(self) -> None:
        self._answers = Counter(
            "fastervlm_answers_total",
            "Answers begun, by cache: hit or miss, and by medium: video or image.",
            tag_keys=cast("Any", ("cache", "medium")),  # annotated as if there were one only
        )

    def record(self, *, cache: Literal["hit", "miss"], medium: Medium) -> None:
        """Count one answer."""
        self._answers.inc(tags={"cache": cache, "medium": medium.value})


class WorkMeter:
    """Counts of one kind of work on videos and pictures, and how long it takes. Thread-safe.

    Args:
        verb: what is done.
    """

    def __init__(self, verb: Literal["decode", "encode"]) -> None:
        self._videos = Counter(f"fastervlm_{verb}d_videos_total", f"Videos {verb}d.")
        self._frames = Counter(f"fastervlm_{verb}d_frames_total", f"Frames {verb}d.")
        self._seconds = Histogram(f"fastervlm_{verb}_seconds", f"Seconds per {verb}.", boundaries=_SECONDS_BOUNDARIES)

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
        threading.Thread(target=self._run, args=(every_seconds,), name="cache-metrics", daemon=True).start()

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
            self._counters[name] = Counter(metric, f"Token cache: {name.replace('_', ' ')}.")
        return self._counters[name]

    def _run(self, every_seconds: float) -> None:
        there = True
        while there:
            time.sleep(every_seconds)
            try:
                there = self.report()
            except Exception:  # whatever it is, it must not end the reporting
                logger.exception("the cache's counts were not shown")
