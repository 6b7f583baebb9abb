"""One running service for all integration tests: real Ray Serve, real Redis, real HTTP, real videos."""

import json
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import ray

from fastervlm_video.media import write_video
from fastervlm_video.mini import random_scene, render_scene
from services.run import running_service
from services.settings import Settings, load_settings

MAX_UPLOAD_BYTES = 64 * 1024**2
MAX_INLINE_BYTES = 2 * 1024**2
MAX_IN_FLIGHT = 32
TIMEOUT_SECONDS = 60.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


@dataclass
class Service:
    """The service under test and a client for it."""

    url: str
    settings: Settings
    client: httpx.Client
    folder: Path
    video_host: str
    made: int = field(default=0)

    def new_video(self, *, seed: int | None = None, num_frames: int = 24, fps: int = 12, size: int = 128) -> bytes:
        """A video that the service has not seen."""
        self.made += 1
        scene = random_scene(1000 + self.made if seed is None else seed)
        path = self.folder / f"video-{self.made}.mp4"
        write_video(path, render_scene(scene, num_frames=num_frames, height=size, width=size), fps=fps)
        return path.read_bytes()

    def upload(self, content: bytes, name: str = "clip.mp4") -> str:
        answer = self.client.post("/v1/files", files={"file": (name, content)})
        assert answer.status_code == 200, answer.text
        file_id: str = answer.json()["id"]
        return file_id

    def ask(self, **body: Any) -> httpx.Response:
        return self.client.post("/v1/ask", json={"question": "What is it?", "max_tokens": 6, **body})

    def answer(self, **body: Any) -> dict[str, Any]:
        response = self.ask(**body)
        assert response.status_code == 200, response.text
        found: dict[str, Any] = response.json()
        return found


def serve_log_folder() -> Path:
    """Where Serve writes a log for each replica."""
    node: Any = ray._private.worker._global_node
    return Path(node.get_logs_dir_path()) / "serve"


def read_events(response: httpx.Response) -> list[tuple[str, Any]]:
    """Server-sent events as (name, data)."""
    events = []
    for block in response.read().decode().strip().split("\n\n"):
        name, data = block.split("\n")
        events.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return events


@pytest.fixture(scope="package")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder, video_host = tmp_path_factory.mktemp("service"), f"127.0.0.1:{free_port()}"
    with pytest.MonkeyPatch.context() as patch:
        # The proxy, in another process, reads its limits from the environment.
        patch.setenv("FASTERVLM_MAX_UPLOAD_BYTES", str(MAX_UPLOAD_BYTES))
        patch.setenv("FASTERVLM_MAX_INLINE_BYTES", str(MAX_INLINE_BYTES))
        patch.setenv("RAY_metrics_report_interval_ms", "1000")
        settings = load_settings(
            runtime_dir=folder / "run",
            port=free_port(),
            metrics_port=free_port(),
            log_format="json",
            max_in_flight_requests=MAX_IN_FLIGHT,
            max_duration_seconds=60.0,
            decode_timeout_seconds=20.0,
            video_url_allowed_hosts=(video_host,),
            video_url_allowed_networks="127.0.0.0/8",
            api={"min_replicas": 2, "max_replicas": 2, "max_ongoing_requests": 128, "num_cpus": 0.1},
            decoder={"max_replicas": 1, "max_ongoing_requests": 2},
        )
        with (
            running_service(settings, show_logs=False) as url,
            httpx.Client(base_url=url, timeout=TIMEOUT_SECONDS) as client,
        ):
            yield Service(url, settings, client, folder, video_host)
