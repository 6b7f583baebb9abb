"""Declarative deployment, as on Kubernetes: defaults and bounds change in place, no replica is replaced."""

import time
from collections.abc import Iterator
from typing import Any

import httpx
import psutil
import pytest
from ray import serve
from ray.serve.context import _get_global_client
from ray.serve.schema import ServeDeploySchema

from services.app import APP_NAME
from services.live import LiveConfig
from tests.integration.conftest import TIMEOUT_SECONDS, Service

NAME, PREFIX = "declared", "/declared"


def _config(service: Service, live: LiveConfig) -> dict[str, Any]:
    """What a ``serveConfigV2`` would hold for the same service under a second name."""
    return {
        "applications": [
            {
                "name": NAME,
                "route_prefix": PREFIX,
                "import_path": "services.app:build_app",
                "args": {"runtime_dir": str(service.settings.runtime_dir), "decode_timeout_seconds": 20.0},
                "deployments": [{"name": "Api", "user_config": live.model_dump()}],
            }
        ]
    }


def _apply(config: dict[str, Any]) -> None:
    client: Any = _get_global_client()
    client.deploy_apps(ServeDeploySchema.model_validate(config), _blocking=False)


def _pids() -> set[int]:
    marker = f"ServeReplica:{NAME}:"
    return {p.pid for p in psutil.process_iter(["cmdline"]) if marker in " ".join(p.info["cmdline"] or [])}


@pytest.fixture
def declared(service: Service) -> Iterator[str]:
    yield service.url + PREFIX
    serve.delete(NAME)


def _wait_for_default(url: str, keep_ratio: float) -> None:
    deadline = time.monotonic() + 2 * TIMEOUT_SECONDS
    seen: list[float | None] = []
    while seen[-8:] != [keep_ratio] * 8:  # of all replicas
        assert time.monotonic() < deadline, (seen, serve.status())
        seen.append(_default_of(url))
        time.sleep(0.1)


def _default_of(url: str) -> float | None:
    """None as long as no replica answers."""
    try:
        response = httpx.get(f"{url}/v1/models", timeout=TIMEOUT_SECONDS / 4)
    except httpx.TimeoutException:
        return None
    if response.status_code != 200:
        return None
    ratio: float = response.json()["data"][0]["default_keep_ratio"]
    return ratio


def _ask(url: str, **body: Any) -> httpx.Response:
    """Once the stages are there: the Api comes up first, and says so with a 503."""
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while True:
        response = httpx.post(f"{url}/v1/ask", json={"question": "What is it?", **body}, timeout=TIMEOUT_SECONDS)
        if response.status_code != 503 or time.monotonic() > deadline:
            return response
        time.sleep(0.5)


def test_defaults_and_bounds_change_in_place(service: Service, declared: str) -> None:
    file_id, live = service.upload(service.new_video()), LiveConfig.from_settings(service.settings)
    _apply(_config(service, live))
    _wait_for_default(declared, live.default_keep_ratio)
    first = _ask(declared, file_id=file_id)
    assert first.json()["video"]["tokens_per_frame"] == [6] * 8, first.text
    pids = _pids()
    assert len(pids) >= 4
    _apply(_config(service, live.model_copy(update={"default_keep_ratio": 0.5, "max_num_frames": 8})))
    _wait_for_default(declared, 0.5)
    assert _ask(declared, file_id=file_id).json()["video"]["tokens_per_frame"] == [32] * 8
    refused = _ask(declared, file_id=file_id, num_frames=9)
    assert (refused.status_code, "num_frames=9" in refused.text) == (400, True)
    assert _pids() == pids
    assert service.client.get("/readyz").status_code == 200, f"{APP_NAME} is another application"
