"""Parts that die while the service runs."""

import concurrent.futures
import itertools
import os
import signal
import time
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import ray

from tests.integration.conftest import TIMEOUT_SECONDS, Service


def _replicas(stage: str) -> list[psutil.Process]:
    marker = f"ServeReplica:fastervlm-video:{stage}"
    return [p for p in psutil.process_iter() if marker in " ".join(_command(p)[:1])]


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def _descends_from_us(process: psutil.Process) -> bool:
    return any(parent.pid == os.getpid() for parent in process.parents())


@pytest.mark.parametrize("stage", ["Decoder", "Encoder", "Generator"])
def test_a_killed_replica_costs_time_but_no_request(service: Service, stage: str) -> None:
    content = service.new_video()
    file_id = service.upload(content)
    (victim,) = [p for p in _replicas(stage) if _descends_from_us(p)]
    victim.send_signal(signal.SIGKILL)
    response = service.ask(file_id=file_id)
    assert response.status_code == 200, response.text
    assert response.json()["answer"]


def _actor(stage: str) -> Any:
    """The only replica of a stage."""
    (name,) = [
        actor["name"]
        for actor in ray.util.list_named_actors(all_namespaces=True)
        if f"fastervlm-video#{stage}#" in actor["name"] and actor["namespace"] == "serve"
    ]
    return ray.get_actor(name, namespace="serve")


def _hang_in_the_middle(replica: Any, marker: Path) -> None:
    """Runs in the replica's process: it stops working after it has begun, and leaves a sign when that is so."""
    stage = replica._replica_impl._user_callable_wrapper._callable
    passes = itertools.count()

    def hang(*_: object, **__: object) -> None:
        if next(passes) >= 3 or not hasattr(stage, "_engine"):  # a Generator has then handed out tokens
            marker.touch()
            time.sleep(10 * TIMEOUT_SECONDS)

    if hasattr(stage, "_engine"):
        stage._engine._model.register_forward_pre_hook(hang)
    elif hasattr(stage, "_encoders"):
        for encoder in stage._encoders.values():
            encoder.tower.embeddings.register_forward_pre_hook(hang)
    else:
        stage._sandbox.decode = hang


@pytest.mark.parametrize("stage", ["Decoder", "Encoder", "Generator"])
def test_a_replica_that_is_lost_in_the_middle_of_its_work_costs_no_request(
    service: Service, tmp_path: Path, stage: str
) -> None:
    file_id, marker = service.upload(service.new_video()), tmp_path / "hangs"
    (victim,) = [p for p in _replicas(stage) if _descends_from_us(p)]
    ray.get(_actor(stage).__ray_call__.remote(_hang_in_the_middle, marker))
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        calls = [pool.submit(service.ask, file_id=file_id) for _ in range(3)]
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while not marker.exists():
            assert time.monotonic() < deadline, f"the {stage} was not asked"
            time.sleep(0.05)
        victim.kill()
        answers = [call.result() for call in calls]
    assert [answer.status_code for answer in answers] == [200] * 3, [answer.text for answer in answers]
    assert len({answer.json()["answer"] for answer in answers}) == 1


def _break_engine(replica: Any) -> None:
    """Runs in the Generator's process: the next forward pass of its engine raises, which ends the engine's thread."""

    def fail(module: object, args: object) -> None:
        raise RuntimeError("the device is gone")

    generator = replica._replica_impl._user_callable_wrapper._callable
    generator._engine._model.register_forward_pre_hook(fail)


def test_a_broken_engine_is_replaced_and_its_requests_are_told(service: Service) -> None:
    file_id = service.upload(service.new_video())
    before = service.answer(file_id=file_id)["answer"]
    (victim,) = [p for p in _replicas("Generator") if _descends_from_us(p)]
    ray.get(_actor("Generator").__ray_call__.remote(_break_engine))
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        held = [call.result() for call in [pool.submit(service.ask, file_id=file_id) for _ in range(6)]]
    for response in held:  # tried again, and refused with the reason if no other replica came in time
        assert response.status_code in (200, 503), response.text
        assert response.status_code == 200 or "the language engine broke" in response.json()["error"]["message"]
    victim.wait(TIMEOUT_SECONDS)
    deadline = time.monotonic() + 5 * TIMEOUT_SECONDS  # another replica has to load everything first
    body = {"file_id": file_id, "question": "What is it?", "max_tokens": 6}
    while (response := service.client.post("/v1/ask", json=body, timeout=3 * TIMEOUT_SECONDS)).status_code != 200:
        assert response.status_code in (503, 504), response.text
        assert time.monotonic() < deadline, "the replica was not replaced"
    assert response.json()["answer"] == before


def test_redis_that_dies_is_replaced_and_never_missed(service: Service) -> None:
    file_id = service.upload(service.new_video())
    before = service.answer(file_id=file_id)["answer"]
    servers = [p for p in psutil.process_iter(["name"]) if _is_our_redis(p, service.settings.runtime_dir)]
    assert len(servers) == 1
    servers[0].send_signal(signal.SIGKILL)
    for _ in range(3):
        assert service.answer(file_id=file_id)["answer"] == before
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while service.answer(file_id=file_id)["video"]["cache"] != "hit":
        assert time.monotonic() < deadline, "no new Redis was started"
        time.sleep(0.5)


def _is_our_redis(process: psutil.Process, folder: Path) -> bool:
    return process.name() == "redis-server" and str(folder) in " ".join(_command(process))


def test_abandoned_work_is_not_finished(service: Service) -> None:
    file_id = service.upload(service.new_video(num_frames=400, size=320))
    body = {"file_id": file_id, "question": "What is it?", "max_tokens": 6, "num_frames": 64}
    with httpx.Client(base_url=service.url, timeout=0.1) as client, pytest.raises(httpx.ReadTimeout):
        client.post("/v1/ask", json=body)
    time.sleep(3)
    assert service.answer(**body)["video"]["cache"] == "miss"


def test_bad_videos_do_not_disturb_good_ones(service: Service) -> None:
    good, bad = service.upload(service.new_video()), service.upload(os.urandom(50_000))
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        calls = [pool.submit(service.ask, file_id=bad if i % 2 else good, keep_tokens=3 + i) for i in range(12)]
        statuses = [call.result().status_code for call in calls]
    assert statuses == [200, 415] * 6
