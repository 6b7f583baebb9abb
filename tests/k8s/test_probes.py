"""Redis is called healthy if it is, by the probes' own command and a real server."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.k8s.build import Choice, Manifests, Object

PASSWORD = "right"
PATIENCE_SECONDS = 30


def probes(manifests: Manifests) -> list[Object]:
    """Of all Redis containers."""
    templates = [found["spec"]["template"] for found in manifests.all("Deployment", "StatefulSet")]
    containers = [container for template in templates for container in template["spec"]["containers"]]
    return [container[kind] for container in containers for kind in ("readinessProbe", "livenessProbe")]


def commands() -> set[tuple[str, ...]]:
    """What they call."""
    found = probes(Manifests.of(Choice("gpu", ("gcs-fault-tolerance",))))
    assert len(found) == 4
    return {tuple(probe["exec"]["command"]) for probe in found}


@pytest.fixture
def port(tmp_path: Path) -> Iterator[int]:
    """Of a Redis with a password."""
    if shutil.which("redis-server") is None or shutil.which("redis-cli") is None:
        pytest.skip("redis-server and redis-cli are not installed (Debian: the package redis-server)")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        number: int = free.getsockname()[1]
    options = ["--port", str(number), "--requirepass", PASSWORD, "--save", "", "--dir", str(tmp_path)]
    with subprocess.Popen(["redis-server", "--bind", "127.0.0.1", *options], stdout=subprocess.DEVNULL) as server:
        yield number
        server.terminate()


def succeeds(command: tuple[str, ...], port: int, password: str) -> bool:
    """As in the container, where the server has the usual port."""
    environment = {**os.environ, "REDISCLI_AUTH": password}
    called = [command[0], "-p", str(port), *command[1:]]
    return subprocess.run(called, env=environment, capture_output=True, timeout=30, check=False).returncode == 0


def test_a_probe_succeeds_if_redis_answers_and_fails_at_an_error(port: int) -> None:
    (command,) = commands()
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not succeeds(command, port, PASSWORD):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert not succeeds(command, port, "wrong")


def test_a_probe_fails_if_there_is_no_redis() -> None:
    if shutil.which("redis-cli") is None:
        pytest.skip("redis-cli is not installed (Debian: the package redis-server)")
    (command,) = commands()
    assert not succeeds(command, 1, PASSWORD)
