"""The load test's own machinery, and sizing, against the running service."""

import json
from pathlib import Path

import pytest

from fastervlm_video.calibrate import measure, with_metrics
from fastervlm_video.media import sniff_medium
from fastervlm_video.sizing import Load, size
from tests.integration.conftest import Service
from tests.integration.scrape import page, scrape, wait_for_growth
from tests.load.__main__ import load
from tests.load.media import Media

SECONDS = 12.0


def test_media_that_nobody_has_seen(service: Service) -> None:
    media = Media(1)
    for made, medium in ((media.new_video, "video"), (media.new_picture, "image")):
        first, second = made(), made()
        assert first != second
        assert sniff_medium(first).value == medium
        answers = [service.answer(file_id=service.upload(content)) for content in (first, second)]
        assert [one["video"]["cache"] for one in answers] == ["miss", "miss"]
        assert answers[0]["answer"] == answers[1]["answer"]


@pytest.fixture(scope="module")
def summary(service: Service, tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """Of a short load test of every kind of user."""
    out = tmp_path_factory.mktemp("load")
    ended = load(service.url, out, seconds=SECONDS, users=10, shape="ramp", mix="typical")
    assert ended.returncode == 0, ended.stdout
    assert (out / "report.html").stat().st_size > 10_000
    assert "TTFT" in (out / "locust.json").read_text()
    found: dict[str, object] = json.loads((out / "summary.json").read_text())
    return found


def test_a_short_load_test(summary: dict[str, object]) -> None:
    assert summary["passed"]
    assert summary["server_errors"] == 0
    by_name = summary["by_name"]
    assert isinstance(by_name, dict)
    assert by_name.keys() <= {"cold", "warm", "stream", "chat", "upload", "delete", "abuse"}
    assert {"warm", "abuse"} <= by_name.keys()
    statuses = summary["statuses"]
    assert isinstance(statuses, dict)
    assert {"200", "400"} <= statuses.keys()  # those that must be refused are refused


def test_a_load_test_that_fails_says_so(tmp_path: Path) -> None:
    ended = load("http://127.0.0.1:1", tmp_path, seconds=2, users=1, mix="warm")
    assert ended.returncode != 0


def test_what_a_running_service_takes_is_measured(service: Service) -> None:
    before, progress = scrape(), list[tuple[int, int]]()
    known = {one["id"] for one in service.client.get("/v1/files").json()["data"]}
    costs = measure(
        service.url, machine="tests", repeats=2, batch_size=4, progress=lambda done, of: progress.append((done, of))
    )
    assert costs.patches_per_frame == 64
    assert costs.model == "fastervlm-video/mini"
    assert progress[-1][0] == progress[-1][1]
    for seconds in (costs.decode_frame_seconds, costs.encode_frame_seconds, costs.step_seconds(1)):
        assert 1e-6 < seconds < 10
    assert costs.step_seconds(4) >= costs.step_seconds(1)
    small, large = (size(Load(rate, 0.5), costs) for rate in (0.1, 100.0))
    assert large.generator.replicas > small.generator.replicas >= 1
    wait_for_growth(before, "fastervlm_encoded_frames_total", 5 * 8)
    real = with_metrics(costs, page())
    assert 1e-6 < real.decode_frame_seconds < 10
    assert {one["id"] for one in service.client.get("/v1/files").json()["data"]} <= known
