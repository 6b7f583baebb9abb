"""Replicas of each stage through a step of load: from rest, to many questions at once, and back to rest.

    python benchmarks/autoscaling.py --rest 10 --load 60 --after 40

Starts the whole service (Ray Serve, a Redis of its own, the mini model) with short delays, and speaks HTTP with it.
``cold`` callers ask for frames of a video that nobody has asked for, ``warm`` ones for long answers about what is
cached, each without a pause. A line of the table is printed whenever the number of replicas has changed, and at the end
of each phase; "served" and "lost" are counts since the line before, and what is not answered 200 is lost.
"""

import argparse
import itertools
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from ray import serve

from fastervlm_video.media import write_video
from fastervlm_video.mini import random_scene, render_scene
from services.app import APP_NAME
from services.run import running_service
from services.settings import Settings, load_settings

FPS, SIDE, NUM_FRAMES = 12, 128, 96
STAGES = ("Api", "Decoder", "Encoder", "Generator")
METHODS = ("cls_attention", "cls_dpp", "visionzip", "vispruner", "divprune", "uniform_grid", "random", "evs")
COLD_FRAMES = range(33, 65)
LOOK_SECONDS = 0.5
PATIENCE_SECONDS = 180.0


def settings_for(folder: Path) -> Settings:
    """Small targets and short delays: a handful of questions is much for the mini model on two cores."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    quick = {"upscale_delay_seconds": 1.0, "downscale_delay_seconds": 10.0}
    return load_settings(
        runtime_dir=folder,
        port=port,
        log_level="ERROR",
        encoder_target_frames=8,
        generator_target_tokens=600,
        scaling_look_back_seconds=6.0,
        decoder={"min_replicas": 0, "max_replicas": 2, "max_ongoing_requests": 2, **quick},
        encoder={"min_replicas": 0, "max_replicas": 2, "max_ongoing_requests": 64, **quick},
        generator={"min_replicas": 1, "max_replicas": 2, **quick},
    )


@dataclass
class Callers:
    """Those who ask, and what became of it."""

    url: str
    file_id: str
    served: int = 0
    lost: int = 0
    stop: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _new: Iterator[tuple[str, int]] = field(default_factory=lambda: itertools.product(METHODS, COLD_FRAMES))

    def keep_asking(self, *, cold: bool) -> None:
        """Ask until told to stop."""
        with httpx.Client(base_url=self.url, timeout=PATIENCE_SECONDS) as client:
            while not self.stop.is_set():
                self.ask(client, cold=cold)

    def ask(self, client: httpx.Client, *, cold: bool) -> None:
        """One question, counted."""
        body: dict[str, Any] = {"file_id": self.file_id, "question": "What is in the video?", "max_tokens": 1000}
        if cold:
            with self._lock:
                method, frames = next(self._new)
            body |= {"method": method, "num_frames": frames, "max_tokens": 8}
        try:
            served = client.post("/v1/ask", json=body).status_code == httpx.codes.OK
        except httpx.HTTPError:
            served = False
        with self._lock:
            self.served, self.lost = self.served + served, self.lost + (not served)

    def take_counts(self) -> tuple[int, int]:
        """Served and lost since the last time."""
        with self._lock:
            counts, self.served, self.lost = (self.served, self.lost), 0, 0
        return counts


def replicas() -> tuple[int, ...]:
    """Running replicas of each stage."""
    stages = serve.status().applications[APP_NAME].deployments
    return tuple(
        sum(count for state, count in stages[name].replica_states.items() if state == "RUNNING") for name in STAGES
    )


class Table:
    """Prints a line for each change."""

    def __init__(self) -> None:
        self._begin = time.monotonic()
        print(f"| seconds | callers cold + warm | {' | '.join(STAGES)} | served | lost |")
        print("|---" * (len(STAGES) + 4) + "|", flush=True)

    def line(self, offered: str, found: tuple[int, ...], served: int, lost: int) -> None:
        """One line."""
        counts = " | ".join(map(str, found))
        print(f"| {time.monotonic() - self._begin:.0f} | {offered} | {counts} | {served} | {lost} |", flush=True)

    def phase(self, callers: Callers, *, cold: int, warm: int, seconds: float) -> None:
        """Load for a while, and what happens meanwhile."""
        callers.stop.clear()
        offered, seen, end = f"{cold} + {warm}", replicas(), time.monotonic() + seconds
        with ThreadPoolExecutor(max(1, cold + warm)) as pool:
            for number in range(cold + warm):
                pool.submit(callers.keep_asking, cold=number < cold)
            while time.monotonic() < end:
                time.sleep(LOOK_SECONDS)
                found = replicas()
                if found != seen:
                    seen = found
                    self.line(offered, found, *callers.take_counts())
            callers.stop.set()
        self.line(offered, replicas(), *callers.take_counts())


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cold", type=int, default=6, help="callers for new frames")
    parser.add_argument("--warm", type=int, default=6, help="callers for what is cached")
    for phase, seconds in (("rest", 10.0), ("load", 60.0), ("after", 40.0)):
        parser.add_argument(f"--{phase}", type=float, default=seconds, help="seconds of this phase")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fv-") as folder:
        settings, video = settings_for(Path(folder)), Path(folder) / "video.mp4"
        write_video(video, render_scene(random_scene(1), num_frames=NUM_FRAMES, height=SIDE, width=SIDE), fps=FPS)
        with running_service(settings, show_logs=False) as url:
            answer = httpx.post(
                f"{url}/v1/files", files={"file": (video.name, video.read_bytes())}, timeout=PATIENCE_SECONDS
            )
            callers, table = Callers(url, answer.raise_for_status().json()["id"]), Table()
            table.phase(callers, cold=0, warm=0, seconds=args.rest)
            table.phase(callers, cold=0, warm=1, seconds=args.rest)  # its first question wakes what is away
            table.phase(callers, cold=args.cold, warm=args.warm, seconds=args.load)
            table.phase(callers, cold=0, warm=1, seconds=args.after)


if __name__ == "__main__":
    main()
