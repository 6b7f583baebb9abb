"""The service as a process of its own: start, time limits, and a clean end on Ctrl-C."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import pytest

from fastervlm_video.media import write_video
from fastervlm_video.mini import random_scene, render_scene
from tests.integration.conftest import free_port

START_SECONDS = 120.0


@dataclass
class ServiceProcess:
    process: "subprocess.Popen[bytes]"
    url: str
    runtime_dir: Path
    log: Path


@pytest.fixture
def started(tmp_path: Path) -> Iterator[ServiceProcess]:
    port, log, runtime_dir = free_port(), tmp_path / "log", tmp_path / "run"
    environment = {
        **os.environ,
        "FASTERVLM_PORT": str(port),
        "FASTERVLM_RUNTIME_DIR": str(runtime_dir),
        "FASTERVLM_REQUEST_TIMEOUT_SECONDS": "0.05",
        "FASTERVLM_DECODE_TIMEOUT_SECONDS": "0.05",
        "FASTERVLM_VIDEO_URL_ALLOWED_HOSTS": "127.0.0.1:1",
    }
    command = [sys.executable, "-c", "from fastervlm_video.cli import main; main()", "serve", "--port", str(port)]
    with log.open("wb") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
    try:
        yield ServiceProcess(process, f"http://127.0.0.1:{port}", runtime_dir, log)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            process.wait(START_SECONDS)


def _wait_until_ready(service: ServiceProcess) -> set[int]:
    """Statuses that /readyz had before it was 200."""
    seen: set[int] = set()
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        assert service.process.poll() is None, service.log.read_text()
        try:
            status = httpx.get(f"{service.url}/readyz", timeout=5).status_code
        except httpx.TransportError:
            status = 0
        if status == 200:
            return seen
        seen.add(status)
        time.sleep(0.2)
    raise AssertionError(service.log.read_text())


def test_from_start_to_ctrl_c(started: ServiceProcess, tmp_path: Path) -> None:
    assert _wait_until_ready(started) <= {0, 404, 503}
    clip = tmp_path / "clip.mp4"
    write_video(clip, render_scene(random_scene(1), num_frames=200, height=480, width=640), fps=12)
    with httpx.Client(base_url=started.url, timeout=30) as client:
        late = client.post("/v1/ask", files={"file": clip.read_bytes()}, data={"question": "What?"})
        assert late.status_code in {504, 422}, late.text  # whichever limit was noticed first
        assert late.json()["error"]["code"] in {"deadline_exceeded", "media_limit_exceeded"}
        streamed = client.post("/v1/ask", files={"file": clip.read_bytes()}, data={"question": "?a", "stream": "true"})
        assert streamed.status_code in {504, 422}
        nobody = client.post("/v1/ask", json={"question": "What?", "video_url": "http://127.0.0.1:1/x.mp4"})
        assert nobody.json()["error"]["code"] == "url_not_allowed"  # on the list, but not a public address
    children = psutil.Process(started.process.pid).children(recursive=True)
    assert any(child.name() == "redis-server" for child in children)
    started.process.send_signal(signal.SIGINT)
    assert started.process.wait(60) == 0, started.log.read_text()
    _, alive = psutil.wait_procs(children, timeout=20)
    assert not alive, [child.cmdline() for child in alive]
    text = started.log.read_text()
    assert "Ready at" in text
    assert "Traceback" not in text


def test_a_model_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    environment = {**os.environ, "FASTERVLM_RUNTIME_DIR": str(tmp_path / "run"), "FASTERVLM_PORT": str(free_port())}
    command = [sys.executable, "-m", "services"]
    environment["FASTERVLM_MODEL"] = "/nowhere/model"
    done = subprocess.run(command, env=environment, capture_output=True, timeout=START_SECONDS, check=False)
    assert done.returncode == 2
    assert done.stderr.decode() == "error: no model folder at /nowhere/model\n"


def _wait_for_serve(process: "subprocess.Popen[bytes]") -> list[psutil.Process]:
    """Until Ray is there, and Serve's controller: the service's children."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        children = psutil.Process(process.pid).children(recursive=True)
        for child in children:
            with suppress(psutil.NoSuchProcess):
                if "ServeController" in " ".join(child.cmdline()):
                    return children
        time.sleep(0.1)
    raise AssertionError(process.returncode)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_before_it_is_ready(tmp_path: Path, number: signal.Signals) -> None:
    environment = {**os.environ, "FASTERVLM_RUNTIME_DIR": str(tmp_path / "run"), "FASTERVLM_PORT": str(free_port())}
    with subprocess.Popen([sys.executable, "-m", "services"], env=environment, stderr=subprocess.PIPE) as process:
        try:
            children = _wait_for_serve(process)
            process.send_signal(number)
            _, error = process.communicate(timeout=START_SECONDS)
        finally:
            process.kill()
    assert process.returncode == 130, error.decode()
    assert error.decode().strip().splitlines()[-1] == "Stopped before it was ready."
    assert not psutil.wait_procs(children, timeout=20)[1]


def test_settings_that_cannot_be_used_are_one_line(tmp_path: Path) -> None:
    environment = {**os.environ, "FASTERVLM_MIN_KEEP_RATIO": "0.5", "FASTERVLM_DEFAULT_KEEP_RATIO": "0.1"}
    command = [sys.executable, "-m", "services"]
    done = subprocess.run(command, env=environment, capture_output=True, timeout=60, check=False)
    assert done.returncode == 2
    assert b"min_keep_ratio=0.5" in b" ".join(done.stderr.split())
