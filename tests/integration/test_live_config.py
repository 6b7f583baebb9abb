"""Defaults and bounds change while the service runs, without a replica being replaced."""

import time

import psutil
import pytest
from ray import serve

from services.app import APP_NAME, build_app
from services.live import LiveConfig
from services.settings import Settings
from tests.integration.conftest import TIMEOUT_SECONDS, Service


def _api_pids() -> set[int]:
    marker = f"ServeReplica:{APP_NAME}:Api"
    return {p.pid for p in psutil.process_iter(["cmdline"]) if marker in " ".join(p.info["cmdline"] or [])}


def _deploy(service: Service, live: LiveConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    def replaced(_: Settings) -> LiveConfig:
        return live

    with monkeypatch.context() as patch:
        patch.setattr("services.app.LiveConfig.from_settings", replaced)
        serve.run(build_app(service.settings), name=APP_NAME, route_prefix="/", logging_config=None)


def _wait_for_default(service: Service, keep_ratio: float) -> None:
    deadline = time.monotonic() + TIMEOUT_SECONDS
    seen: list[float] = []
    while seen[-8:] != [keep_ratio] * 8:  # of all replicas
        assert time.monotonic() < deadline, seen
        seen.append(service.client.get("/v1/models").json()["data"][0]["default_keep_ratio"])
        time.sleep(0.05)


def test_defaults_and_bounds_change_in_place(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    file_id, pids = service.upload(service.new_video()), _api_pids()
    before = LiveConfig.from_settings(service.settings)
    assert service.answer(file_id=file_id)["video"]["tokens_per_frame"] == [6] * 8
    _deploy(service, before.model_copy(update={"default_keep_ratio": 0.5, "max_num_frames": 8}), monkeypatch)
    try:
        _wait_for_default(service, 0.5)
        assert service.answer(file_id=file_id)["video"]["tokens_per_frame"] == [32] * 8
        refused = service.ask(file_id=file_id, num_frames=9)
        assert (refused.status_code, "num_frames=9" in refused.text) == (400, True)
    finally:
        _deploy(service, before, monkeypatch)
        _wait_for_default(service, before.default_keep_ratio)
    assert _api_pids() == pids
