"""What do 32 questions cost that come at once for one video nobody has asked about, against one question alone?

    python benchmarks/single_flight.py --json single_flight.json
    python benchmarks/single_flight.py --api-replicas 2

Starts the whole service (Ray Serve, a Redis of its own, the mini model) and speaks HTTP with it. Each round asks one
question on a new video, all questions at once on another new video, and all of them again, when its tokens are cached.
How often something was decoded or encoded is read off the service's own metrics, where Prometheus would.
"""

import argparse
import json
import os
import socket
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from fastervlm_video.media import write_video
from fastervlm_video.mini import random_scene, render_scene
from services.run import running_service
from services.settings import load_settings

FPS, SIDE, NUM_FRAMES, ANSWER_TOKENS = 12, 320, 120, 8
COUNTERS = ("decoded", "encoded")
REPORT_SECONDS = 1
PATIENCE_SECONDS = 120.0


class Client:
    """One service, and a folder for videos that it has not seen."""

    def __init__(self, url: str, folder: Path, most_at_once: int) -> None:
        limits = httpx.Limits(max_connections=most_at_once)
        self._http = httpx.Client(base_url=url, timeout=PATIENCE_SECONDS, limits=limits)
        self._folder, self._made = folder, 0

    def upload_new(self) -> str:
        """The id of a new video."""
        self._made += 1
        path = self._folder / f"{self._made}.mp4"
        scene = random_scene(self._made)
        write_video(path, render_scene(scene, num_frames=NUM_FRAMES, height=SIDE, width=SIDE), fps=FPS)
        answer = self._http.post("/v1/files", files={"file": (path.name, path.read_bytes())})
        return str(answer.raise_for_status().json()["id"])

    def ask(self, file_id: str, count: int) -> tuple[float, list[str]]:
        """Seconds until ``count`` questions, asked at once, are all answered; and whether each hit the cache."""
        questions = [f"What color is the circle number {number}?" for number in range(count)]
        with ThreadPoolExecutor(count) as pool:
            begin = time.perf_counter()
            cache = list(pool.map(lambda question: self._ask(file_id, question), questions))
            return time.perf_counter() - begin, cache

    def _ask(self, file_id: str, question: str) -> str:
        body = {"file_id": file_id, "question": question, "max_tokens": ANSWER_TOKENS}
        answer: dict[str, Any] = self._http.post("/v1/ask", json=body).raise_for_status().json()
        return str(answer["video"]["cache"])


def main() -> int:
    """Run the rounds, print a table; the exit status says whether each video was decoded and encoded once."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=32, help="questions at once (default 32)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds after one that warms up (default 5)")
    parser.add_argument("--api-replicas", type=int, default=1, help="replicas of the Api (default 1)")
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write the numbers here")
    options = parser.parse_args()
    os.environ.setdefault("RAY_metrics_report_interval_ms", str(1000 * REPORT_SECONDS))
    os.environ.setdefault("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", str(PATIENCE_SECONDS))
    with tempfile.TemporaryDirectory(prefix="fv") as folder:
        replicas = {"min_replicas": options.api_replicas, "max_replicas": options.api_replicas, "num_cpus": 0.1}
        settings = load_settings(
            runtime_dir=Path(folder, "run"),
            port=free_port(),
            max_in_flight_requests=max(64, options.requests),
            api={**replicas, "max_ongoing_requests": 2 * max(64, options.requests)},
            decoder={"max_replicas": 1, "max_ongoing_requests": 2},
            generator_max_queue=max(64, options.requests),
            generator={"max_ongoing_requests": 8 + max(64, options.requests)},
        )
        with running_service(settings, show_logs=False) as url:
            client = Client(url, Path(folder), options.requests)
            wait_until_ready(url)
            rounds = [measure(client, options.requests) for _ in range(options.rounds + 1)][1:]
    result = report(rounds, options)
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    return 0 if all(made == [1, 1] for made in result["decodes_and_encodes"]) else 1


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until_ready(url: str) -> None:
    """Return once every stage can be called."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while httpx.get(f"{url}/readyz").status_code != 200:
        if time.monotonic() > deadline:
            raise TimeoutError(f"the service was not ready after {PATIENCE_SECONDS} s")
        time.sleep(0.2)


def measure(client: Client, count: int) -> dict[str, Any]:
    """One round: seconds, and how often the asked video was decoded and encoded."""
    alone, shared = client.upload_new(), client.upload_new()
    alone_seconds, _ = client.ask(alone, 1)
    before = settled(None)
    together_seconds, cache = client.ask(shared, count)
    after = settled(before)
    warm_seconds, warm = client.ask(shared, count)
    assert set(warm) == {"hit"}, warm
    return {
        "alone_seconds": alone_seconds,
        "together_seconds": together_seconds,
        "warm_seconds": warm_seconds,
        "hits_together": cache.count("hit"),
        "made": [round(after[name] - before[name]) for name in COUNTERS],
    }


def settled(before: dict[str, float] | None) -> dict[str, float]:
    """The counters, when all that was counted until now has arrived: each replica sends its own every second."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    found, since = counters(), time.monotonic()
    while time.monotonic() < since + 4 * REPORT_SECONDS or found == before:
        if time.monotonic() > deadline:
            raise TimeoutError("the metrics do not change although something was done")
        time.sleep(REPORT_SECONDS / 2)
        if (now := counters()) != found:
            found, since = now, time.monotonic()
    return found


def counters() -> dict[str, float]:
    """Videos decoded and encoded since the service was started."""
    import ray

    (node,) = ray.nodes()  # type: ignore[no-untyped-call]
    text = httpx.get(f"http://127.0.0.1:{node['MetricsExportPort']}/metrics", timeout=PATIENCE_SECONDS).text
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    names = {name: f"ray_fastervlm_{name}_videos_total" for name in COUNTERS}
    return {name: sum(s.value for s in samples if s.name == full) for name, full in names.items()}


def report(rounds: list[dict[str, Any]], options: argparse.Namespace) -> dict[str, Any]:
    """Print the table and return the numbers."""
    medians = {
        name: statistics.median(one[f"{name}_seconds"] for one in rounds) for name in ("alone", "together", "warm")
    }
    print(
        f"{options.requests} questions at once, {options.api_replicas} Api replica(s), medians of {len(rounds)} rounds"
    )
    print("| | s | decodes | encodes |\n| --- | ---: | ---: | ---: |")
    made = [one["made"] for one in rounds]
    most = [max(counts) for counts in zip(*made, strict=True)]
    print(f"| one question, new video | {medians['alone']:.3f} | 1 | 1 |")
    print(f"| {options.requests} at once, new video | {medians['together']:.3f} | {most[0]} | {most[1]} |")
    print(f"| {options.requests} at once, cached video | {medians['warm']:.3f} | 0 | 0 |")
    ratio = medians["together"] / medians["alone"]
    print(f"{options.requests} at once / one alone: {ratio:.2f} in time; each by itself would be {options.requests}")
    return {
        "requests": options.requests,
        "api_replicas": options.api_replicas,
        "rounds": rounds,
        "decodes_and_encodes": made,
        **{f"{name}_median_seconds": value for name, value in medians.items()},
        "together_over_alone": ratio,
    }


if __name__ == "__main__":
    sys.exit(main())
