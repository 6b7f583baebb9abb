"""Hostile and mistaken requests: each gets its own clear error, and nobody else notices."""

import concurrent.futures
import socket
from collections.abc import Iterator
from typing import Any

import httpx
import psutil
import pytest

from fastervlm_video.media import write_video
from fastervlm_video.mini import random_scene, render_scene
from tests.integration.conftest import MAX_IN_FLIGHT, MAX_UPLOAD_BYTES, Service

MIB = 1024**2


def _error(response: httpx.Response) -> tuple[int, str]:
    return response.status_code, response.json()["error"]["code"]


@pytest.mark.parametrize(
    ("body", "status", "code", "hint"),
    [
        ({"file_id": "file-" + "0" * 64}, 404, "not_found", "file-000"),
        ({"file_id": "../../etc/passwd"}, 404, "not_found", "passwd"),
        ({}, 400, "invalid_request", "name one video"),
        ({"file_id": "$F", "video_url": "http://x/"}, 400, "invalid_request", "name one video"),
        ({"video_url": "http://example.com/a.mp4"}, 400, "url_not_allowed", "example.com"),
        ({"file_id": "$F", "question": " "}, 400, "invalid_request", "question"),
        ({"file_id": "$F", "question": "a <video> b"}, 400, "invalid_request", "<video>"),
        ({"file_id": "$F", "question": "w" * 5000}, 400, "invalid_request", "5000"),
        (
            {"file_id": "$F", "question": "what " * 600, "max_tokens": 1000, "keep_ratio": 1},
            400,
            "context_length_exceeded",
            "2048",
        ),
        ({"file_id": "$F", "keep_ratio": 0}, 400, "invalid_request", "keep_ratio"),
        ({"file_id": "$F", "keep_ratio": 0.5, "keep_tokens": 3}, 400, "invalid_request", "not both"),
        ({"file_id": "$F", "keep_tokens": 65}, 400, "invalid_request", "64"),
        ({"file_id": "$F", "num_frames": 65}, 400, "invalid_request", "64"),
        ({"file_id": "$F", "max_tokens": 10**6}, 400, "invalid_request", "max_tokens"),
        ({"file_id": "$F", "method": "magic"}, 400, "invalid_request", "cls_attention"),
        ({"file_id": "$F", "temperature": float("1e9")}, 400, "invalid_request", "temperature"),
        ({"file_id": "$F", "colour": "red"}, 400, "invalid_request", "colour"),
    ],
    ids=str,
)
def test_bad_questions(
    service: Service, known_file: str, body: dict[str, Any], status: int, code: str, hint: str
) -> None:
    filled = {name: known_file if value == "$F" else value for name, value in body.items()}
    response = service.client.post("/v1/ask", json={"question": "What is it?", **filled})
    assert _error(response) == (status, code), response.text
    assert hint in response.json()["error"]["message"]
    assert response.json()["error"]["request_id"] == response.headers["x-request-id"]


@pytest.fixture(scope="module")
def known_file(service: Service) -> str:
    return service.upload(service.new_video())


@pytest.mark.parametrize(
    ("content", "kind", "status"),
    [
        (b"{", "application/json", 400),
        (b"[" * 100_000, "application/json", 400),
        (b'{"question": "\\ud800", "file_id": "x"}', "application/json", 400),
        (b"a=b", "application/x-www-form-urlencoded", 415),
        (b"", "multipart/form-data", 400),
        (b"--x\r\nbroken", "multipart/form-data; boundary=x", 400),
    ],
)
def test_bodies_that_cannot_be_read(service: Service, content: bytes, kind: str, status: int) -> None:
    response = service.client.post("/v1/ask", content=content, headers={"content-type": kind})
    assert response.status_code == status, response.text
    assert response.json()["error"]["message"]


def test_media_that_cannot_be_decoded(service: Service) -> None:
    whole = service.new_video()
    cases = {
        "not a video": (b"RIFF but not really" * 50, {415, 422}),
        "text": (b"ffconcat version 1.0\nfile /etc/passwd\n", {415}),
        "empty": (b"\0" * 2000, {415, 422}),
        "truncated": (whole[: len(whole) // 2], {422}),
    }
    for name, (content, statuses) in cases.items():
        response = service.ask(file_id=service.upload(content))
        assert response.status_code in statuses, f"{name}: {response.text}"
        assert response.json()["error"]["code"] in {"unsupported_media", "corrupt_media", "no_video_stream"}, name
    assert service.answer(file_id=service.upload(whole))["video"]["cache"] == "miss"


def test_too_long_a_video(service: Service) -> None:
    path = service.folder / "long.mp4"
    frame = render_scene(random_scene(1), num_frames=1, height=64, width=64)
    write_video(path, [frame[0]] * 70, fps=1)
    response = service.ask(file_id=service.upload(path.read_bytes()))
    assert _error(response) == (422, "media_limit_exceeded")
    assert "60" in response.json()["error"]["message"]


def test_declared_size_over_the_limit_is_refused_at_once(service: Service) -> None:
    address = httpx.URL(service.url)
    head = (
        f"POST /v1/files HTTP/1.1\r\nHost: {address.host}\r\nContent-Length: {10**10}\r\n"
        "Content-Type: multipart/form-data; boundary=x\r\n\r\n--x\r\n"
    )
    with socket.create_connection((address.host, address.port or 80), timeout=10) as connection:
        connection.sendall(head.encode())
        assert b" 413 " in connection.recv(4096).splitlines()[0]


def test_endless_upload_is_cut_with_flat_memory(service: Service) -> None:
    processes = [p for p in psutil.process_iter() if _serves_http(p)]
    assert processes
    before = [p.memory_full_info().uss for p in processes]
    sent = 0

    def endless() -> Iterator[bytes]:
        nonlocal sent
        yield b'--x\r\ncontent-disposition: form-data; name="file"; filename="big.mp4"\r\n\r\n'
        for _ in range(400):
            sent += MIB
            yield bytes(MIB)

    headers = {"content-type": "multipart/form-data; boundary=x"}
    try:
        response = service.client.post("/v1/files", content=endless(), headers=headers)
        assert _error(response) == (413, "payload_too_large")
    except httpx.WriteError:
        assert sent < 400 * MIB  # the connection was closed on a client that went on sending
    grown = [p.memory_full_info().uss - was for p, was in zip(processes, before, strict=True)]
    assert max(grown) < MAX_UPLOAD_BYTES / 2, f"grew by {[g // MIB for g in grown]} MiB for {sent // MIB} MiB sent"


def _serves_http(process: psutil.Process) -> bool:
    try:
        title = " ".join(process.cmdline()[:1])
    except psutil.Error:  # ended meanwhile
        return False
    return "ProxyActor" in title or "ServeReplica:fastervlm-video:Api" in title


def test_overload_is_refused_and_the_rest_is_served(service: Service) -> None:
    file_id = service.upload(service.new_video())
    service.answer(file_id=file_id)
    count = 3 * MAX_IN_FLIGHT
    with (
        httpx.Client(base_url=service.url, timeout=60, limits=httpx.Limits(max_connections=count)) as client,
        concurrent.futures.ThreadPoolExecutor(count) as pool,
    ):
        body = {"file_id": file_id, "question": "What is it?", "max_tokens": 60}
        responses = list(pool.map(lambda _: client.post("/v1/ask", json=body), range(count)))
    statuses = {response.status_code for response in responses}
    assert statuses == {200, 429}
    refused = [response for response in responses if response.status_code == 429]
    assert all(int(response.headers["retry-after"]) >= 1 for response in refused)
    assert {response.json()["error"]["code"] for response in refused} == {"overloaded"}
    assert len({response.json()["answer"] for response in responses if response.status_code == 200}) == 1
    assert service.answer(file_id=file_id)["video"]["cache"] == "hit"
