"""The commands of docker-compose.yml, started by hand: the very arguments and environment, but for places and ports."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis

from fastervlm_video.media import write_video
from fastervlm_video.mini import random_scene, render_scene
from tests.compose import ROOT, compose, env_file
from tests.integration.conftest import free_port

PATIENCE_SECONDS = 180.0
ETC_PROMETHEUS = "/etc/prometheus"
PASSWORD = "a-password-of-a-test"


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    variables = {**env_file(), "REDIS_PASSWORD": PASSWORD, "REDIS_MAXMEMORY": "3mb"}
    found: dict[str, Any] = compose(variables)["services"]
    return found


@contextmanager
def running(command: list[str], folder: Path, ready: Callable[[], bool], **environment: str) -> Iterator[None]:
    log = folder / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=folder, stdout=output, stderr=output, env={**os.environ, **environment})
    try:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not ready():
            assert process.poll() is None, log.read_text()[-3000:]
            assert time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(0.2)
        yield
    finally:
        process.terminate()
        process.wait(60)


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=5).is_success
    except httpx.TransportError:
        return False


@contextmanager
def running_redis(services: dict[str, Any], folder: Path) -> Iterator[redis.Redis]:
    folder.mkdir()
    port, server = free_port(), services["redis"]["command"]
    assert server[0] == "redis-server"
    assert shutil.which("redis-server"), "Debian: apt-get install redis-server"
    environment = {**os.environ, **services["redis"]["environment"], "PATH": os.environ["PATH"]}
    check = services["redis"]["healthcheck"]["test"][1].replace("redis-cli", f"redis-cli -p {port}")

    def healthy() -> bool:
        return subprocess.run(["sh", "-c", check], env=environment, capture_output=True, check=False).returncode == 0

    with (
        running([*server, "--port", str(port), "--bind", "127.0.0.1"], folder, healthy),
        redis.Redis(port=port, password=PASSWORD) as client,
    ):
        yield client


def test_redis_is_a_cache_and_asks_for_its_password(services: dict[str, Any], tmp_path: Path) -> None:
    with running_redis(services, tmp_path / "redis") as client:
        with pytest.raises(redis.AuthenticationError), redis.Redis(port=_port(client)) as stranger:
            stranger.ping()
        for number in range(100):
            client.set(f"key-{number}", bytes(100_000))
        assert client.info("stats")["evicted_keys"] > 0
        assert client.get("key-99") is not None
        assert client.config_get("save")["save"] == ""
        assert client.info("persistence")["aof_enabled"] == 0
    assert {path.name for path in (tmp_path / "redis").iterdir()} == {"log"}


def _port(client: redis.Redis) -> int:
    port: int = client.connection_pool.connection_kwargs["port"]
    return port


def test_prometheus_takes_its_command_and_configuration(services: dict[str, Any], tmp_path: Path) -> None:
    config = _laid_out(services["prometheus"]["volumes"], tmp_path / "etc") / "prometheus.yml"
    subprocess.run(["promtool", "check", "config", config], check=True, capture_output=True)
    port = free_port()
    places = {
        f"{ETC_PROMETHEUS}/prometheus.yml": str(config),
        "path=/prometheus": f"path={tmp_path / 'data'}",
        "0.0.0.0:9090": f"127.0.0.1:{port}",
    }
    options = services["prometheus"]["command"]
    for old, new in places.items():
        assert sum(old in option for option in options) == 1
        options = [option.replace(old, new) for option in options]
    url = services["prometheus"]["healthcheck"]["test"][-1].replace("9090", str(port))
    with running(["prometheus", *options], tmp_path, lambda: _answers(url)):
        targets = _targets(port)
    assert [target["scrapeUrl"] for target in targets] == [
        f"http://service:{services['service']['environment']['FASTERVLM_METRICS_PORT']}/metrics"
    ]


def _laid_out(volumes: list[str], folder: Path) -> Path:
    """What the container finds in Prometheus' folder: the configuration, and the rules that it names."""
    for source, place, *_ in (volume.split(":") for volume in volumes):
        if place.startswith(ETC_PROMETHEUS):
            copy = folder / Path(place).relative_to(ETC_PROMETHEUS)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / source, copy)
    return folder


def _targets(port: int) -> list[dict[str, Any]]:
    """What a Prometheus reads; it is ready some seconds before it has looked for that."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        found: list[dict[str, Any]] = httpx.get(f"http://127.0.0.1:{port}/api/v1/targets").json()["data"][
            "activeTargets"
        ]
        if found or time.monotonic() > deadline:
            return found
        time.sleep(0.5)


def test_the_service_with_its_redis(services: dict[str, Any], tmp_path: Path) -> None:
    service = services["service"]
    with ExitStack() as stack:
        client = stack.enter_context(running_redis(services, tmp_path / "redis"))
        port, metrics_port = free_port(), free_port()
        changed = {
            "FASTERVLM_REDIS_URL": service["environment"]["FASTERVLM_REDIS_URL"].replace(
                "@redis:6379", f"@127.0.0.1:{_port(client)}"
            ),
            "FASTERVLM_HOST": "127.0.0.1",
            "FASTERVLM_PORT": str(port),
            "FASTERVLM_METRICS_PORT": str(metrics_port),
            "FASTERVLM_RUNTIME_DIR": str(tmp_path / "run"),
            "PYTHONPATH": str(ROOT),
        }
        # Without a value it is the one of the shell that Compose is started from, if there is one.
        given = {name: value for name, value in service["environment"].items() if value is not None}
        environment = {**given, **changed}
        ready = service["healthcheck"]["test"][-1].replace("127.0.0.1:8000", f"127.0.0.1:{port}")
        command = [sys.executable, "-c", "from fastervlm_video.cli import main; main()", "serve"]
        stack.enter_context(running(command, tmp_path, lambda: _answers(ready), **environment))
        clip = tmp_path / "clip.mp4"
        write_video(clip, render_scene(random_scene(1), num_frames=12), fps=12)
        url = f"http://127.0.0.1:{port}/v1/ask"
        found = [
            httpx.post(url, files={"file": clip.read_bytes()}, data={"question": "What?"}, timeout=60).json()
            for _ in range(2)
        ]
        assert [one["video"]["cache"] for one in found] == ["miss", "hit"]
        assert client.keys("fastervlm:video:*")
        assert "ray_" in httpx.get(f"http://127.0.0.1:{metrics_port}/metrics", timeout=30).text
