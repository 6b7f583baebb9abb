"""Whether every panel of the Grafana dashboard shows something: ``make dashboard-check``.

Starts the service, lets it answer requests of every kind, has a real Prometheus read its metrics, and evaluates each
panel's queries there, as Grafana would. Needs ``prometheus`` on the path (Debian: the package ``prometheus``).
"""

import functools
import json
import math
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml

from fastervlm_video.errors import FasterVLMError
from tests.load.media import make_picture, make_video, unlike_any_picture, unlike_any_video

__all__ = ["DASHBOARD", "PROMETHEUS_CONFIG", "Query", "make_traffic", "queries", "running_prometheus", "wait_for_data"]

ROOT = Path(__file__).parent.parent
DASHBOARD = ROOT / "ops" / "grafana" / "dashboards" / "fastervlm.json"
PROMETHEUS_CONFIG = ROOT / "ops" / "prometheus.yml"
_INTERVAL_VARIABLE, _INTERVAL = "$__rate_interval", "1m"
_SCRAPE_INTERVAL = "3s"  # also how long a look may take, which on a busy machine is more than a moment
_PATIENCE_SECONDS = 180.0
_POLL_SECONDS = 1.0
_TIMEOUT_SECONDS = 60.0


@dataclass(frozen=True)
class Query:
    """One line, or family of lines, of one panel."""

    panel: str
    expr: str


def queries(dashboard: dict[str, Any]) -> list[Query]:
    """All that a dashboard asks of Prometheus, with Grafana's own variables filled in.

    Raises:
        FasterVLMError: a panel asks nothing, or uses a variable that is not known here.
    """
    found = []
    for panel in (panel for panel in dashboard["panels"] if panel["type"] != "row"):
        exprs = [target["expr"].replace(_INTERVAL_VARIABLE, _INTERVAL) for target in panel["targets"]]
        if not exprs or any("$" in expr for expr in exprs):
            raise FasterVLMError(f"the panel {panel['title']!r} asks {exprs}")
        found += [Query(panel["title"], expr) for expr in exprs]
    return found


@contextmanager
def running_prometheus(metrics_port: int, folder: Path) -> Iterator[str]:
    """A Prometheus with this repository's configuration, but for where the service is and how often it looks.

    Yields:
        Its URL.

    Raises:
        FasterVLMError: there is no Prometheus, or it does not start.
    """
    if shutil.which("prometheus") is None:
        raise FasterVLMError("prometheus is not installed (Debian: apt-get install prometheus)")
    config = yaml.safe_load(PROMETHEUS_CONFIG.read_text())
    config["global"] = {"scrape_interval": _SCRAPE_INTERVAL, "scrape_timeout": _SCRAPE_INTERVAL}
    (scrape,) = config["scrape_configs"]
    scrape["static_configs"] = [{"targets": [f"127.0.0.1:{metrics_port}"]}]
    path, port = folder / "prometheus.yml", free_port()
    path.write_text(yaml.safe_dump(config))
    command = ["prometheus", f"--config.file={path}", f"--storage.tsdb.path={folder / 'data'}"]
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen([*command, f"--web.listen-address=127.0.0.1:{port}"], stdout=log, stderr=log)
    try:
        url = f"http://127.0.0.1:{port}"
        _wait(lambda: _is_ready(url) or process.poll() is not None, "Prometheus to start")
        if process.poll() is not None:
            raise FasterVLMError(f"Prometheus has ended: {(folder / 'prometheus.log').read_text()[-500:]}")
        yield url
    finally:
        process.terminate()
        process.wait(_TIMEOUT_SECONDS)


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def _is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/-/ready", timeout=_TIMEOUT_SECONDS).is_success
    except httpx.TransportError:
        return False


def _wait(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise FasterVLMError(f"waited for {what} for {_PATIENCE_SECONDS:.0f} s")
        time.sleep(_POLL_SECONDS)


@functools.cache
def _media() -> tuple[bytes, bytes]:
    """A video and a picture, drawn once for all traffic."""
    return make_video(1), make_picture(1)


def make_traffic(client: httpx.Client) -> None:
    """Requests of every kind: cold, warm, streamed, in chat, about a picture, and mistaken ones."""
    video, picture = _media()
    video, picture = unlike_any_video(video), unlike_any_picture(picture)
    question = {"question": "What color is the square?", "max_tokens": "8"}
    _checked(client.post("/v1/ask", files={"file": ("clip.mp4", video)}, data=question))
    file_id = _checked(client.post("/v1/files", files={"file": ("clip.mp4", video)})).json()["id"]
    for _ in range(2):
        _checked(client.post("/v1/ask", json={"file_id": file_id, "question": question["question"]}))
    body = {"file_id": file_id, "question": "What happens?", "stream": True}
    with client.stream("POST", "/v1/ask", json=body) as response:
        _checked(response).read()
    _checked(client.post("/v1/ask", files={"file": ("picture.png", picture)}, data=question))
    model = _checked(client.get("/v1/models")).json()["data"][0]["id"]
    content = [{"type": "video_url", "video_url": {"url": file_id}}, {"type": "text", "text": "What happens?"}]
    chat = {"model": model, "messages": [{"role": "user", "content": content}], "temperature": 0, "max_tokens": 8}
    _checked(client.post("/v1/chat/completions", json=chat))
    for mistaken in ({"file_id": "file-" + "0" * 64}, {"file_id": file_id, "keep_ratio": 7}):
        refused = client.post("/v1/ask", json={"question": "?", **mistaken})
        if not refused.is_client_error:
            raise FasterVLMError(f"{mistaken} was answered {refused.status_code}")


def _checked(response: httpx.Response) -> httpx.Response:
    if response.is_error:
        response.read()
        raise FasterVLMError(f"the service answered {response.status_code}: {response.text[:300]}")
    return response


def wait_for_data(prometheus: str, asked: list[Query], traffic: Callable[[], None]) -> dict[Query, list[float]]:
    """Evaluate queries until each has a number for an answer.

    Args:
        prometheus: its address.
        asked: the queries.
        traffic: makes the service count; called again and again, for a rate needs a series that grows before
            Prometheus's eyes, and the parts of the service send what they have counted when it suits each.

    Returns:
        What each gives now, a number per line of its panel; those that give none after a while have none.
    """
    found: dict[Query, list[float]] = {}
    deadline = time.monotonic() + _PATIENCE_SECONDS
    with httpx.Client(base_url=prometheus, timeout=_TIMEOUT_SECONDS) as client:
        while len(found) < len(asked) and time.monotonic() < deadline:
            traffic()
            for query in (query for query in asked if query not in found):
                if numbers := _evaluate(client, query.expr):
                    found[query] = numbers
            time.sleep(_POLL_SECONDS)
    return {query: found.get(query, []) for query in asked}


def _evaluate(client: httpx.Client, expr: str) -> list[float]:
    response = client.get("/api/v1/query", params={"query": expr})
    if response.is_error:
        raise FasterVLMError(f"Prometheus refuses {expr!r}: {response.text[:300]}")
    values = [float(series["value"][1]) for series in response.json()["data"]["result"]]
    return [value for value in values if math.isfinite(value)]


def main() -> int:
    """Run the check; returns the exit status."""
    asked = queries(json.loads(DASHBOARD.read_text()))
    os.environ.setdefault("RAY_metrics_report_interval_ms", "1000")  # read by Ray when it is started
    from services.run import running_service
    from services.settings import load_settings

    with tempfile.TemporaryDirectory(prefix="fastervlm-dashboard-") as name:
        folder, metrics_port = Path(name), free_port()
        settings = load_settings(
            runtime_dir=folder / "run", port=free_port(), metrics_port=metrics_port, log_level="WARNING"
        )
        with (
            running_service(settings, show_logs=False) as url,
            running_prometheus(metrics_port, folder) as prometheus,
            httpx.Client(base_url=url, timeout=_TIMEOUT_SECONDS) as client,
        ):
            found = wait_for_data(prometheus, asked, lambda: make_traffic(client))
    for query, numbers in found.items():
        shown = ", ".join(f"{number:.4g}" for number in numbers[:6]) or "NO DATA"
        print(f"{query.panel:45} {shown}")
    without = [query for query, numbers in found.items() if not numbers]
    print(f"{len(found)} queries, {len(without)} without data")
    return 1 if without else 0


if __name__ == "__main__":
    sys.exit(main())
