"""What the service counts, where Prometheus finds it, and what it logs."""

import pytest
import redis

from tests.integration.conftest import Service, serve_log_folder
from tests.integration.scrape import scrape, settled, wait_for_growth

APP = {"application": "fastervlm-video"}


def _entry_bytes(service: Service) -> dict[bytes, int]:
    """Size of each entry in the service's Redis."""
    with redis.Redis(unix_socket_path=str(service.settings.runtime_dir / "redis.sock")) as client:
        sizes = {}
        for name in client.keys("fastervlm:video:*"):
            for field in client.hkeys(name):
                if field.endswith(b".b"):
                    sizes[name + field] = int(client.hstrlen(name, field.decode()))
        return sizes


def test_a_miss_and_a_hit_are_counted_to_the_byte(service: Service) -> None:
    file_id, known = service.upload(service.new_video()), _entry_bytes(service)
    before = settled()
    found = [service.answer(file_id=file_id, num_frames=6, keep_tokens=9) for _ in range(3)]
    assert [one["video"]["cache"] for one in found] == ["miss", "hit", "hit"]
    (size,) = (size for name, size in _entry_bytes(service).items() if name not in known)
    expected = {
        "fastervlm_decoded_videos_total": 1,
        "fastervlm_decoded_frames_total": 6,
        "fastervlm_decode_seconds_count": 1,
        "fastervlm_encoded_videos_total": 1,
        "fastervlm_encoded_frames_total": 6,
        "fastervlm_encode_seconds_count": 1,
        "fastervlm_cache_inserts_total": 1,
        "fastervlm_cache_written_bytes_total": size,
        "fastervlm_cache_hits_total": 2,
        "fastervlm_cache_read_bytes_total": 2 * size,
        "fastervlm_cache_misses_total": 0,
        "fastervlm_cache_errors_total": 0,
        "fastervlm_answers_total": 3,
    }
    for name, amount in expected.items():
        now = wait_for_growth(before, name, amount, **APP)
    assert {name: now.total(name, **APP) - before.total(name, **APP) for name in expected} == expected
    for cache, amount in (("miss", 1), ("hit", 2)):
        tags = {"cache": cache, **APP}
        assert now.total("fastervlm_answers_total", **tags) - before.total("fastervlm_answers_total", **tags) == amount


def test_names_kinds_and_tags(service: Service) -> None:
    service.answer(file_id=service.upload(service.new_video()))
    shown = wait_for_growth(scrape(), "fastervlm_answers_total", 0)
    for name, kind in shown.kinds.items():
        if not name.endswith("_evicted_keys"):
            assert kind == ("histogram" if name.endswith("code_seconds") else "counter"), name
    for stage, name in (("Decoder", "decoded_videos"), ("Encoder", "cache_inserts"), ("Api", "answers")):
        samples = shown.select(f"fastervlm_{name}_total", deployment=stage, **APP)
        assert samples
        assert all(sample.labels["replica"] for sample in samples)
    # Nothing that names a tenant, a video or a question.
    tags = {tag for sample in shown.samples for tag in sample.labels}
    assert not tags & {"tenant", "owner", "file_id", "digest", "question"}


@pytest.mark.parametrize(("stage", "line"), [("Decoder", "decoded FrameBatch"), ("Encoder", "encoded 1 videos")])
def test_replicas_log_where_serve_logs(service: Service, stage: str, line: str) -> None:
    service.answer(file_id=service.upload(service.new_video()))
    lines = "".join(
        path.read_text() for path in serve_log_folder().glob(f"replica_fastervlm-video_{stage}_*.log")
    ).splitlines()
    found = [text for text in lines if line in text]
    assert found
    assert all(text.startswith("INFO ") for text in found)
