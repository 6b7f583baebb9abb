"""What the service counts, where Prometheus finds it, and what it logs."""

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import ray
import redis

from tests.integration.conftest import MAX_INLINE_BYTES, Service, serve_log_folder
from tests.integration.scrape import PATIENCE_SECONDS, POLL_SECONDS, scrape, settled, wait_for_growth

APP = {"application": "fastervlm-video"}
ROUNDING_SECONDS = 0.001


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
        "fastervlm_visual_tokens_total": 3 * (6 * 64 + 6 * 9),
        "fastervlm_generate_batch_size_count": 3,
        "fastervlm_encode_batch_frames_count": 1,
        "fastervlm_encode_batch_frames_sum": 6,
    }
    for name, amount in expected.items():
        now = wait_for_growth(before, name, amount, **APP)
    assert {name: now.total(name, **APP) - before.total(name, **APP) for name in expected} == expected
    for cache, amount in (("miss", 1), ("hit", 2)):
        tags = {"cache": cache, **APP}
        assert now.total("fastervlm_answers_total", **tags) - before.total("fastervlm_answers_total", **tags) == amount


def _kind(name: str) -> str:
    if name.endswith(("_evicted_keys", "_generator_requests", "_waiting_frames")):
        return "gauge"
    if "_cache_" in name:  # counts of seconds among them
        return "counter"
    return "histogram" if name.endswith(("_seconds", "_batch_size", "_batch_frames")) else "counter"


def test_where_the_time_goes_and_what_was_reused(service: Service) -> None:
    file_id = service.upload(service.new_video())
    before = settled()
    found = [service.answer(file_id=file_id, question=f"Is it number {n}?") for n in range(3)]
    name = "fastervlm_answer_seconds_count"
    wait_for_growth(before, name, 3, stage="total", **APP)
    now = settled()

    def grown(name: str, **tags: str) -> float:
        return now.total(name, **tags, **APP) - before.total(name, **tags, **APP)

    for stage, hits, misses in (
        ("fetch", 2, 1),
        ("decode", 0, 1),
        ("encode", 0, 1),
        ("generate", 2, 1),
        ("total", 2, 1),
    ):
        assert grown(name, stage=stage, cache="hit") == hits, stage
        assert grown(name, stage=stage, cache="miss") == misses, stage
    for kind, field in (("all", lambda u: u["prompt_tokens"]), ("reused", _reused)):
        counted = grown("fastervlm_prompt_tokens_total", kind=kind)
        assert counted == sum(field(one["usage"]) for one in found) > 0
    first_token, total = (grown("fastervlm_answer_seconds_sum", stage=stage) for stage in ("first_token", "total"))
    assert 0 < first_token < total


def test_the_first_text_is_timed_from_the_request_on(service: Service) -> None:
    file_id, name = service.upload(service.new_video()), "fastervlm_first_text_seconds"
    before = settled()
    service.answer(file_id=file_id)
    question = {"file_id": file_id, "question": "What happens?", "stream": True}
    with service.client.stream("POST", "/v1/ask", json=question) as response:
        response.read()
    wait_for_growth(before, f"{name}_count", 2, **APP)
    now = settled()

    def grown(name: str, **tags: str) -> float:
        return now.total(name, **tags, **APP) - before.total(name, **tags, **APP)

    for form, cache in (("whole", "miss"), ("stream", "hit")):
        assert grown(f"{name}_count", form=form, cache=cache) == 1
        in_generator = grown("fastervlm_answer_seconds_sum", stage="first_token", cache=cache)
        total = grown("fastervlm_answer_seconds_sum", stage="total", cache=cache)
        assert 0 < in_generator < grown(f"{name}_sum", form=form, cache=cache) < total + ROUNDING_SECONDS


def _reused(usage: dict[str, Any]) -> int:
    reused: int = usage["prompt_tokens_details"]["cached_tokens"]
    return reused


def _requests(service: Service) -> dict[tuple[str, str, str], int]:
    """Some of every kind, by what they are to be counted as."""
    file_id = service.upload(service.new_video())
    service.answer(file_id=file_id)
    with service.client.stream(
        "POST", "/v1/ask", json={"file_id": file_id, "question": "What?", "stream": True}
    ) as one:
        one.read()
    service.ask(file_id="file-" + "0" * 64)
    service.ask(file_id=file_id, keep_ratio=7)
    service.client.post("/v1/chat/completions", json={"model": "another", "messages": []})
    service.client.get("/nowhere")
    service.client.get("/v1/models")
    big = {"content-type": "application/json"}
    service.client.post("/v1/chat/completions", content=bytes(3 * MAX_INLINE_BYTES), headers=big)  # cut by the proxy
    return {
        ("files", "2xx", "ok"): 1,
        ("ask", "2xx", "ok"): 2,
        ("ask", "4xx", "not_found"): 1,
        ("ask", "4xx", "invalid_request"): 1,
        ("chat", "4xx", "invalid_request"): 1,
        ("other", "4xx", "not_found"): 1,
        ("models", "2xx", "ok"): 1,
        ("chat", "4xx", "payload_too_large"): 1,
    }


def test_requests_are_counted_by_their_end(service: Service) -> None:
    before = settled()
    expected = _requests(service)
    for route, status, code in expected:
        wait_for_growth(before, "fastervlm_requests_total", route=route, status=status, code=code)
    now = settled()
    grown = {
        tags: now.total("fastervlm_requests_total", **_tags(tags))
        - before.total("fastervlm_requests_total", **_tags(tags))
        for tags in {
            (s.labels["route"], s.labels["status"], s.labels["code"]) for s in now.select("fastervlm_requests_total")
        }
    }
    assert {tags: amount for tags, amount in grown.items() if amount} == expected


def _tags(tags: tuple[str, str, str]) -> dict[str, str]:
    return dict(zip(("route", "status", "code"), tags, strict=True))


def test_questions_under_way_are_seen(service: Service) -> None:
    file_id = service.upload(service.new_video())
    question = {"file_id": file_id, "question": "Describe it.", "max_tokens": 1000, "temperature": 1.9}
    enough, deadline = threading.Event(), time.monotonic() + PATIENCE_SECONDS

    def go_on_asking() -> None:
        while not enough.is_set():
            assert service.ask(**question).status_code == 200

    with ThreadPoolExecutor(2) as pool:  # an answer may be over between two looks, of which there is one in two seconds
        askers = [pool.submit(go_on_asking) for _ in range(2)]
        try:
            while scrape().total("fastervlm_generator_requests", state="running") < 1:
                assert time.monotonic() < deadline
                time.sleep(POLL_SECONDS)
        finally:
            enough.set()
    assert [asker.result() for asker in askers] == [None, None]
    deadline = time.monotonic() + PATIENCE_SECONDS
    while scrape().total("fastervlm_generator_requests") > 0:  # what is no more goes as well
        assert time.monotonic() < deadline
        time.sleep(POLL_SECONDS)
    assert not scrape().total("fastervlm_encoder_waiting_frames")


def test_the_metrics_port_is_the_chosen_one(service: Service) -> None:
    (node,) = ray.nodes()  # type: ignore[no-untyped-call]
    assert node["MetricsExportPort"] == service.settings.metrics_port


def test_names_kinds_and_tags(service: Service) -> None:
    service.answer(file_id=service.upload(service.new_video()))
    shown = wait_for_growth(scrape(), "fastervlm_answers_total", 0)
    for name, kind in shown.kinds.items():
        assert kind == _kind(name), name
    for stage, name in (("Decoder", "decoded_videos"), ("Encoder", "cache_inserts"), ("Api", "answers")):
        samples = shown.select(f"fastervlm_{name}_total", deployment=stage, **APP)
        assert samples
        assert all(sample.labels["replica"] for sample in samples)
    # Nothing that names a tenant, a video or a question.
    tags = {tag for sample in shown.samples for tag in sample.labels}
    assert not tags & {"tenant", "owner", "file_id", "digest", "question"}


STAGE_LINES = (
    ("Api", "answered from "),
    ("Decoder", "decoded FrameBatch"),
    ("Encoder", "encoded FrameBatch"),
    ("Generator", "generated an answer"),
)


def _log(stage: str) -> list[dict[str, Any]]:
    """What the replicas of a stage have logged: an object per line."""
    paths = serve_log_folder().glob(f"replica_fastervlm-video_{stage}_*.log")
    return [json.loads(line) for path in paths for line in path.read_text().splitlines()]


@pytest.mark.parametrize("sent", ["my-request.7", "no good"], ids=["a client's id", "an id of our own"])
def test_a_requests_id_is_in_the_logs_of_every_stage(service: Service, sent: str) -> None:
    file_id = service.upload(service.new_video())
    body = {"file_id": file_id, "question": "What is it?", "max_tokens": 3}
    response = service.client.post("/v1/ask", json=body, headers={"x-request-id": sent})
    request_id = response.headers["x-request-id"]
    assert (request_id == sent) is (" " not in sent)
    assert response.json()["id"] == f"ask-{request_id}"
    for stage, line in STAGE_LINES:
        records = [one for one in _log(stage) if line in one["message"]]
        assert records
        assert {one["levelname"] for one in records} == {"INFO"}
        assert request_id in {one["request_id"] for one in records}, stage
        assert all(one["deployment"].endswith(stage) for one in records)


def test_what_the_proxy_refuses_has_an_id_too(service: Service) -> None:
    headers = {"content-type": "application/json", "x-request-id": "too-big"}
    response = service.client.post("/v1/ask", content=bytes(3 * MAX_INLINE_BYTES), headers=headers)
    assert response.status_code == 413
    assert response.headers.get_list("x-request-id") == [response.json()["error"]["request_id"]] == ["too-big"]
