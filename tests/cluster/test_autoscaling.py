"""Stages that grow with their work, shrink when it is done, and may be away altogether."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from ray import serve

from tests.cluster.scaled import (
    APP,
    PATIENCE_SECONDS,
    quick_settings,
    running_replicas,
    scaled_application,
    under_load,
    wait_for_replicas,
    wait_until_seen,
)
from tests.integration.conftest import Service


@pytest.fixture
def url(service: Service) -> Iterator[str]:
    with scaled_application(quick_settings(service.settings.runtime_dir)):
        yield f"{service.url}/{APP}"


def _cache(url: str, **body: Any) -> str:
    body = {"question": "What is it?", "max_tokens": 4, **body}
    response = httpx.post(f"{url}/v1/ask", json=body, timeout=PATIENCE_SECONDS)
    assert response.status_code == 200, response.text
    return str(response.json()["video"]["cache"])


def test_replicas_come_with_the_load_and_go_with_it(service: Service, url: str) -> None:
    wait_for_replicas(Api=1, Decoder=0, Encoder=0, Generator=1)
    ready = service.client.get(f"/{APP}/readyz")
    assert (ready.status_code, ready.json()["stages"]["Encoder"]) == (200, "idle")
    file_id = service.upload(service.new_video())

    assert _cache(url, file_id=file_id) == "miss"  # it waits for a Decoder and an Encoder to start

    with under_load(url, file_id, cold=4, warm=4) as load:
        wait_until_seen(Encoder=2, Generator=2)
    assert load.lost == []
    assert load.served > 0

    with under_load(url, file_id, cold=0, warm=1) as load:  # the other Generator goes while questions are answered
        wait_for_replicas(Decoder=0, Encoder=0)
        assert _cache(url, file_id=file_id) == "hit"
        assert service.client.get(f"/{APP}/readyz").status_code == 200
    assert load.lost == []
    wait_for_replicas(Decoder=0, Encoder=0, Generator=1)
    assert _cache(url, file_id=file_id) == "hit"
    assert running_replicas()["Encoder"] == 0, serve.status()
