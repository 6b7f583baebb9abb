"""Changes of configuration while questions are answered: none is lost, and no replica is replaced without need."""

import time
from collections.abc import Iterator
from typing import Any

import httpx
import psutil
import pytest
from ray import serve
from ray.serve.context import _get_global_client
from ray.serve.schema import ServeDeploySchema

from services.live import LiveConfig
from services.scaling import FRAMES
from tests.cluster.scaled import PATIENCE_SECONDS, under_load
from tests.integration.conftest import Service

NAME = "upgraded"
POLICY = {
    "policy_function": "services.scaling:WorkPolicy",
    "policy_kwargs": {"unit": FRAMES, "target_per_replica": 64, "usual_per_request": 8},
}


def _config(service: Service, live: LiveConfig, *, decoders: int, encoders: int) -> dict[str, Any]:
    """What a ``serveConfigV2`` holds: what may change in place stands under ``deployments``, not in ``args``."""
    cores = {stage: {"num_cpus": 0.05} for stage in ("api", "decoder", "encoder", "generator")}
    return {
        "applications": [
            {
                "name": NAME,
                "route_prefix": f"/{NAME}",
                "import_path": "services.app:build_app",
                "args": {"runtime_dir": str(service.settings.runtime_dir), **cores},
                "deployments": [
                    {"name": "Api", "user_config": live.model_dump()},
                    {"name": "Decoder", "autoscaling_config": {"min_replicas": decoders, "max_replicas": decoders}},
                    {
                        "name": "Encoder",
                        "autoscaling_config": {"min_replicas": 1, "max_replicas": encoders, "policy": POLICY},
                    },
                ],
            }
        ]
    }


def _apply(config: dict[str, Any]) -> None:
    client: Any = _get_global_client()
    client.deploy_apps(ServeDeploySchema.model_validate(config), _blocking=False)


def _replicas() -> dict[str, set[int]]:
    """Process ids of the replicas by stage."""
    found: dict[str, set[int]] = {}
    for process in psutil.process_iter(["cmdline"]):
        title = (process.info["cmdline"] or [""])[0]
        if title.startswith(f"ray::ServeReplica:{NAME}:"):
            found.setdefault(title.split(":")[4].split(".")[0], set()).add(process.pid)
    return found


def _scaling_of(stage: str) -> Any:
    client: Any = _get_global_client()
    deployments = client.get_serve_details()["applications"][NAME]["deployments"]
    return deployments[stage]["deployment_config"]["autoscaling_config"]


def _wait_until(condition: Any, what: str) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, (what, serve.status())
        time.sleep(0.2)


@pytest.fixture
def url(service: Service) -> Iterator[str]:
    yield f"{service.url}/{NAME}"
    serve.delete(NAME)


def test_defaults_and_bounds_change_in_place_under_load(service: Service, url: str) -> None:
    live, file_id = LiveConfig.from_settings(service.settings), service.upload(service.new_video())

    def default_ratio() -> float | None:
        response = httpx.get(f"{url}/v1/models", timeout=PATIENCE_SECONDS)
        return float(response.json()["data"][0]["default_keep_ratio"]) if response.status_code == 200 else None

    def is_ready() -> bool:
        return httpx.get(f"{url}/readyz", timeout=PATIENCE_SECONDS).status_code == 200

    _apply(_config(service, live, decoders=1, encoders=1))
    _wait_until(is_ready, "ready")
    before = _replicas()
    assert {stage: len(pids) for stage, pids in before.items()} == dict.fromkeys(
        ("Api", "Decoder", "Encoder", "Generator"), 1
    )

    with under_load(url, file_id, cold=1, warm=2) as load:
        _wait_until(lambda: load.served > 4, "answers")
        _apply(_config(service, live.model_copy(update={"default_keep_ratio": 0.5}), decoders=2, encoders=3))
        _wait_until(lambda: default_ratio() == 0.5, "the new default")
        _wait_until(lambda: len(_replicas()["Decoder"]) == 2, "another Decoder")
        _wait_until(lambda: serve.status().applications[NAME].status == "RUNNING", "the change is done")
        served = load.served
        _wait_until(lambda: load.served > served + 4, "more answers")
    assert load.lost == []

    after = _replicas()
    assert before["Decoder"] < after["Decoder"]
    assert {stage: pids for stage, pids in after.items() if stage != "Decoder"} == {
        stage: pids for stage, pids in before.items() if stage != "Decoder"
    }
    encoder = _scaling_of("Encoder")
    assert (encoder["max_replicas"], encoder["policy"]["policy_function"]) == (3, POLICY["policy_function"])
    answer = httpx.post(f"{url}/v1/ask", json={"file_id": file_id, "question": "What is it?"}, timeout=PATIENCE_SECONDS)
    assert answer.json()["video"]["tokens_per_frame"] == [32] * 8, answer.text
