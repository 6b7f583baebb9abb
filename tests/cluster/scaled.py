"""An application whose stages come and go within seconds, and load for it."""

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from ray import serve

from services.app import build_app
from services.settings import Settings, load_settings

APP = "scaled"
PATIENCE_SECONDS = 300.0
# Each number of frames with each method is another token set: cold questions without new videos.
_COLD_FRAMES = range(33, 65)
_METHODS = ("cls_attention", "cls_dpp", "visionzip", "vispruner", "divprune", "uniform_grid", "random", "evs")


def quick_settings(runtime_dir: Path, **overrides: Any) -> Settings:
    """Two replicas at most of the Encoder, from none, and of the Generator, from one; so little work fills one of them
    that a handful of requests do. None goes sooner than another one needs to start.
    """
    quick = {"upscale_delay_seconds": 0.5, "downscale_delay_seconds": 15.0, "num_cpus": 0.05}
    values: dict[str, Any] = {
        "runtime_dir": runtime_dir,
        "encoder_target_frames": 4,
        "generator_target_tokens": 200,
        "scaling_look_back_seconds": 3.0,
        "request_timeout_seconds": PATIENCE_SECONDS,  # a cold question waits for two stages to start
        "api": {"max_replicas": 1, "max_ongoing_requests": 128, "num_cpus": 0.05},
        "decoder": {"min_replicas": 0, "max_replicas": 1, "max_ongoing_requests": 2, **quick},
        "encoder": {"min_replicas": 0, "max_replicas": 2, "max_ongoing_requests": 64, **quick},
        "generator": {"min_replicas": 1, "max_replicas": 2, **quick},
    }
    return load_settings(**(values | overrides))


@contextmanager
def scaled_application(settings: Settings) -> Iterator[None]:
    """Deploy it under a prefix of its name, in the Ray that this process is connected to; gone afterwards."""
    serve.run(build_app(settings), name=APP, route_prefix=f"/{APP}")
    try:
        yield
    finally:
        serve.delete(APP)


def running_replicas() -> dict[str, int]:
    """Running replicas by stage."""
    stages = serve.status().applications[APP].deployments
    return {name: stage.replica_states.get("RUNNING", 0) for name, stage in stages.items()}  # type: ignore[call-overload]


def wait_for_replicas(**counts: int) -> None:
    """Wait until as many run.

    Raises:
        AssertionError: that took too long.
    """
    _wait(lambda found: counts.items() <= found.items(), counts)


def wait_until_seen(**counts: int) -> None:
    """Wait until each stage has run as many, be it at the same time or not.

    Raises:
        AssertionError: that took too long.
    """
    most = dict.fromkeys(counts, 0)

    def seen(found: dict[str, int]) -> bool:
        most.update({name: max(most[name], found[name]) for name in counts})
        return all(most[name] >= counts[name] for name in counts)

    _wait(seen, counts)


def _wait(condition: Callable[[dict[str, int]], bool], counts: dict[str, int]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition(found := running_replicas()):
        assert time.monotonic() < deadline, f"{found} instead of {counts}"
        time.sleep(0.2)


@dataclass
class Load:
    """What came of the requests so far: how many got 200, and all that did not."""

    served: int = 0
    lost: list[str] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self, response: httpx.Response | Exception) -> None:
        """One more."""
        with self._lock:
            if isinstance(response, httpx.Response) and response.status_code == 200:
                self.served += 1
            else:
                self.lost.append(response.text if isinstance(response, httpx.Response) else repr(response))


@contextmanager
def under_load(url: str, file_id: str, *, cold: int, warm: int) -> Iterator[Load]:
    """For the length of the block, ask without a pause: ``cold`` callers for many frames, new ones each time (as long
    as there are), and ``warm`` ones for long answers about what is cached.
    """
    load, done, new = Load(), threading.Event(), itertools.product(_METHODS, _COLD_FRAMES)
    lock = threading.Lock()

    def cold_question() -> dict[str, Any] | None:
        with lock:
            method, num_frames = next(new, (None, None))
        return None if method is None else {"num_frames": num_frames, "method": method, "max_tokens": 4}

    def warm_question() -> dict[str, Any] | None:
        return {"keep_ratio": 0.1, "max_tokens": 1000}

    def keep_asking(question: Callable[[], dict[str, Any] | None]) -> None:
        with httpx.Client(base_url=url, timeout=PATIENCE_SECONDS) as client:
            while not done.is_set() and (more := question()):
                load.count(_ask(client, {"file_id": file_id, "question": "What is in the video?", **more}))

    with ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(cold + warm))
        stack.callback(done.set)
        calls: list[Future[None]] = [pool.submit(keep_asking, cold_question) for _ in range(cold)]
        calls += [pool.submit(keep_asking, warm_question) for _ in range(warm)]
        yield load
        done.set()
        for call in calls:
            call.result(PATIENCE_SECONDS)


def _ask(client: httpx.Client, body: dict[str, Any]) -> httpx.Response | Exception:
    try:
        return client.post("/v1/ask", json=body)
    except httpx.HTTPError as exc:
        return exc
