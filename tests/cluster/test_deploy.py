"""The application of the overlay for one machine, started from its own ``serveConfigV2`` on a real Ray cluster.

As KubeRay does it, the configuration goes to the head's REST API, with a token; the cluster has the sum of what the
overlay's groups offer, and its processes have the environment of their pods. Only places differ: addresses, ports and
folders.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from fastervlm_video.media import write_video
from fastervlm_video.mini import random_scene, render_scene
from tests.integration.conftest import free_port
from tests.integration.external_redis import RedisProcess
from tests.k8s.build import Choice, Manifests
from tests.k8s.pods import worker_of

LOOPBACK = "127.0.0.1"
RAY_TOKEN = "0123456789abcdef" * 4
API_KEY = "sk-one-of-the-mounted-secret"
LOG = "ray.log"
START_ATTEMPTS = 3
PATIENCE_SECONDS = 420.0
STOP_SECONDS = 60.0


@dataclass
class Head:
    """A running head, and how to speak to it."""

    dashboard: str
    environment: dict[str, str]
    folder: Path
    client: httpx.Client
    process: subprocess.Popen[bytes]

    def log(self) -> str:
        """What it has printed."""
        return (self.folder / LOG).read_text()

    def command(self, name: str, *arguments: str) -> None:
        """One of Ray's commands."""
        program = str(Path(sys.executable).with_name(name))
        command = [program, *arguments]
        done = subprocess.run(
            command, env=self.environment, cwd=self.folder, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def application(self) -> dict[str, Any]:
        """What the REST API says of the application, or nothing yet."""
        answer = self.client.get("/api/serve/applications/")
        answer.raise_for_status()
        found: dict[str, Any] = answer.json()["applications"].get("fastervlm-video", {})
        return found


def offered(manifests: Manifests) -> dict[str, float]:
    """What the pods of all groups offer together; the head offers nothing."""
    total: dict[str, float] = {}
    for group in manifests.groups:
        for name, amount in worker_of(manifests, group).offers.items():
            total[name] = total.get(name, 0.0) + amount * group["replicas"]
    return total


def environment_of(manifests: Manifests, folder: Path, redis_url: str) -> dict[str, str]:
    """The pods' variables, with this machine's places."""
    keys = folder / "api-keys"
    keys.write_text(f"{API_KEY}:somebody\n")
    places = {
        "HOME": str(folder),
        "FASTERVLM_RUNTIME_DIR": str(folder / "run"),
        "FASTERVLM_BLOB_URL": (folder / "blobs").as_uri(),
        "FASTERVLM_API_KEYS_FILE": str(keys),
    }
    assert places.keys() <= manifests.variables.keys()
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("FASTERVLM_", "RAY_"))}
    ray = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": RAY_TOKEN, "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "180"}
    return {**kept, **manifests.variables, **places, "FASTERVLM_REDIS_URL": redis_url, **ray}


def start_command(folder: Path, resources: dict[str, float], dashboard_port: int) -> list[str]:
    """``ray start`` for the head: every port its own, so that it gets in nobody's way."""
    custom = {name: amount for name, amount in resources.items() if name not in {"CPU", "GPU"}}
    ports = ("port", "dashboard-agent-listen-port", "ray-client-server-port", "metrics-export-port")
    return [
        str(Path(sys.executable).with_name("ray")),
        "start",
        "--head",
        "--block",
        "--disable-usage-stats",
        f"--node-ip-address={LOOPBACK}",
        f"--dashboard-host={LOOPBACK}",
        f"--dashboard-port={dashboard_port}",
        *(f"--{name}={free_port()}" for name in ports),
        "--min-worker-port=0",
        "--max-worker-port=0",
        f"--temp-dir={folder}",
        f"--object-store-memory={256 * 1024**2}",
        f"--num-cpus={resources['CPU']:g}",
        f"--num-gpus={resources['GPU']:g}",
        f"--resources={json.dumps(custom)}",
    ]


@contextmanager
def running_head(manifests: Manifests, folder: Path, redis_url: str) -> Iterator[Head]:
    """Ray, with its dashboard up, for as long as the block runs."""
    environment = environment_of(manifests, folder, redis_url)
    for attempt in range(START_ATTEMPTS):
        port = free_port()
        command = start_command(folder / f"ray{attempt}", offered(manifests), port)
        with started(command, environment, folder) as process, dashboard_client(port) as client:
            head = Head(str(client.base_url), environment, folder, client, process)
            if is_up(head):
                yield head
                return
    pytest.fail(head.log())


@contextmanager
def started(command: list[str], environment: dict[str, str], folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process of which nothing is left after the block."""
    with (
        (folder / LOG).open("wb") as log,
        subprocess.Popen(command, env=environment, cwd=folder, stdout=log, stderr=subprocess.STDOUT) as process,
    ):
        try:
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()


def dashboard_client(port: int) -> httpx.Client:
    """With the token that the dashboard asks for."""
    headers = {"Authorization": f"Bearer {RAY_TOKEN}"}
    return httpx.Client(base_url=f"http://{LOOPBACK}:{port}", timeout=30, headers=headers)


def is_up(head: Head) -> bool:
    """Wait until the REST API answers; False if Ray gave up, as it does when it takes 30 seconds."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline and head.process.poll() is None:
        try:
            head.application()
        except httpx.HTTPError:
            time.sleep(1)
        else:
            return True
    return False


def wait_until_running(head: Head) -> dict[str, Any]:
    """Until the application runs."""
    deadline, found = time.monotonic() + PATIENCE_SECONDS, head.application()
    while found.get("status") != "RUNNING":
        assert time.monotonic() < deadline, found
        assert found.get("status") != "DEPLOY_FAILED", found
        time.sleep(1)
        found = head.application()
    return found


def write_config(manifests: Manifests, path: Path) -> int:
    """The configuration as it is, but for where it listens."""
    config, port = yaml.safe_load(manifests.ray_service["spec"]["serveConfigV2"]), free_port()
    config["http_options"] |= {"host": LOOPBACK, "port": port}
    path.write_text(yaml.safe_dump(config))
    return port


@pytest.fixture
def folder() -> Iterator[Path]:
    """With a short path: Ray makes sockets in it."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        yield Path(name)


@pytest.fixture
def redis_url() -> Iterator[str]:
    server = RedisProcess()
    yield server.url
    server.close()


def test_the_overlay_for_one_machine_answers_a_question(folder: Path, redis_url: str) -> None:
    manifests = Manifests.of(Choice("cpu-mini"))
    video = folder / "clip.mp4"
    write_video(video, render_scene(random_scene(7), num_frames=24, height=128, width=128), fps=12)
    with running_head(manifests, folder, redis_url) as head:
        assert httpx.get(f"{head.dashboard}/api/serve/applications/").status_code == 401
        port = write_config(manifests, folder / "serve.yaml")
        head.command("serve", "deploy", "serve.yaml", "--address", head.dashboard)
        application = wait_until_running(head)
        check_stages(manifests, application)
        with httpx.Client(base_url=f"http://{LOOPBACK}:{port}", timeout=60) as client:
            check_answers(client, video)
        head.command("serve", "shutdown", "--yes", "--address", head.dashboard)


def check_stages(manifests: Manifests, application: dict[str, Any]) -> None:
    """Serve took over what the configuration says of each stage."""
    arguments = manifests.serve_config["applications"][0]["args"]
    assert application["deployments"].keys() == {name.capitalize() for name in arguments}
    for name, given in arguments.items():
        taken = application["deployments"][name.capitalize()]["deployment_config"]
        assert taken["ray_actor_options"]["resources"] == given["resources"]
        assert taken["ray_actor_options"]["num_cpus"] == given["num_cpus"]
        scaling = taken["autoscaling_config"]
        assert (scaling["min_replicas"], scaling["max_replicas"]) == (given["min_replicas"], given["max_replicas"])


def check_answers(client: httpx.Client, video: Path) -> None:
    """With a key of the mounted file a question is answered, twice; without one it is not."""
    question = {"question": "How many objects are there?", "max_tokens": "8"}

    def ask(headers: dict[str, str]) -> httpx.Response:
        return client.post("/v1/ask", data=question, files={"file": video.read_bytes()}, headers=headers)

    assert client.get("/readyz").status_code == 200
    assert ask({}).status_code == 401
    answers = [ask({"Authorization": f"Bearer {API_KEY}"}) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [200, 200], [answer.text for answer in answers]
    found = [answer.json() for answer in answers]
    assert found[0]["answer"] == found[1]["answer"] != ""
    assert [answer["video"]["cache"] for answer in found] == ["miss", "hit"]
