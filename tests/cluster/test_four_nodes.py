"""The stages on four nodes that share no folder, and what becomes of requests when the node that encodes is lost."""

import concurrent.futures
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from fastervlm_video.media import write_video
from fastervlm_video.mini import random_scene, render_scene
from tests.cluster.cluster import HEAD, START_SECONDS, Cluster, wait_for
from tests.integration.conftest import free_port
from tests.integration.external_redis import RedisProcess
from tests.services.s3 import BUCKET, s3_server

STAGES = ("Api", "Decoder", "Encoder", "Generator")
ENCODING_NODES = ("encoding1", "encoding2")
COLD_ASKERS, COLD_EACH = 3, 4


def _settings(port: int, redis_url: str) -> dict[str, str]:
    stages = {
        "API__RESOURCES": '{"front": 0.1}',
        "API__MAX_REPLICAS": "1",
        "DECODER__RESOURCES": '{"decode": 0.1}',
        "DECODER__MAX_REPLICAS": "1",
        "ENCODER__RESOURCES": '{"encode": 1}',
        "GENERATOR__RESOURCES": '{"generate": 0.1}',
    }
    return {
        **{f"FASTERVLM_{name}": value for name, value in stages.items()},
        **{f"FASTERVLM_{stage.upper()}__NUM_CPUS": "0.1" for stage in STAGES},
        "FASTERVLM_REQUEST_TIMEOUT_SECONDS": str(START_SECONDS),
        "FASTERVLM_HOST": HEAD,
        "FASTERVLM_PORT": str(port),
        "FASTERVLM_REDIS_URL": redis_url,
        "FASTERVLM_BLOB_URL": f"s3://{BUCKET}/uploads",
        "FASTERVLM_RUNTIME_DIR": "$NODE_FOLDER/run",
    }


@dataclass
class Asker:
    """Asks the service on the cluster, and keeps what came of it."""

    client: httpx.Client
    folder: Path
    made: int = 0
    answers: list[httpx.Response] = field(default_factory=list)

    def upload(self) -> str:
        """The id of a video that nobody has asked about."""
        self.made += 1
        path = self.folder / f"video{self.made}.mp4"
        write_video(path, render_scene(random_scene(4000 + self.made), num_frames=24, height=96, width=96), fps=12)
        answer = self.client.post("/v1/files", files={"file": (path.name, path.read_bytes())})
        assert answer.status_code == 200, answer.text
        file_id: str = answer.json()["id"]
        return file_id

    def ask(self, file_id: str) -> httpx.Response:
        body = {"file_id": file_id, "question": "What color is the square?", "max_tokens": 6}
        response = self.client.post("/v1/ask", json=body)
        self.answers.append(response)
        return response


def _made_from(response: httpx.Response) -> str:
    assert response.status_code == 200, response.text
    found: Any = response.json()
    return str(found["video"]["cache"])


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[tuple[Cluster, Asker]]:
    redis, port = RedisProcess(), free_port()
    try:
        with s3_server() as s3, Cluster({**s3, **_settings(port, redis.url)}) as cluster:
            cluster.start_node("front", cpus=2, front=1)
            for name in ENCODING_NODES:
                cluster.start_node(name, cpus=1, encode=1)
            cluster.start_node("answering", cpus=1, decode=1, generate=1)
            driver = cluster.start(
                "driver", sys.executable, "-m", "tests.cluster.cluster_driver", RAY_ADDRESS=cluster.address
            )
            with httpx.Client(base_url=f"http://{HEAD}:{port}", timeout=START_SECONDS) as client:
                assert driver.wait(START_SECONDS) == 0, cluster.logs()
                wait_for(lambda: client.get("/readyz").status_code == 200, "the service is ready")
                yield cluster, Asker(client, tmp_path)
    finally:
        redis.close()


def _where(cluster: Cluster, stage: str) -> list[str]:
    return [name for name, node in cluster.nodes.items() if node.replicas(stage)]


def test_four_nodes_and_the_loss_of_the_one_that_encodes(cluster: tuple[Cluster, Asker]) -> None:
    nodes, asker = cluster
    places = {stage: _where(nodes, stage) for stage in STAGES}
    (encoding,) = places.pop("Encoder")
    assert encoding in ENCODING_NODES
    assert places == {"Api": ["front"], "Decoder": ["answering"], "Generator": ["answering"]}

    warm = asker.upload()
    assert [_made_from(asker.ask(warm)) for _ in range(2)] == ["miss", "hit"]
    folders = {node.folder / "run" for node in nodes.nodes.values() if (node.folder / "run").exists()}
    assert len(folders) == 3  # of those that run something; each its own, without anybody's uploads
    assert not any((folder / "blobs").exists() for folder in folders)

    cold = [asker.upload() for _ in range(COLD_ASKERS * COLD_EACH)]
    under_way, done = threading.Event(), threading.Event()

    def ask_cold(first: int) -> list[httpx.Response]:
        answers = []
        for file_id in cold[first::COLD_ASKERS]:
            answers.append(asker.ask(file_id))
            under_way.set()
        return answers

    def ask_warm() -> list[httpx.Response]:
        answers = []
        while not done.is_set():
            answers.append(asker.ask(warm))
        return answers

    with concurrent.futures.ThreadPoolExecutor(COLD_ASKERS + 1) as pool:
        never_notices = pool.submit(ask_warm)
        try:
            asking = [pool.submit(ask_cold, first) for first in range(COLD_ASKERS)]
            assert under_way.wait(START_SECONDS)
            nodes.nodes[encoding].kill()
            answers = [answer for call in asking for answer in call.result(START_SECONDS)]
        finally:
            done.set()
        warm_answers = never_notices.result(START_SECONDS)

    for answer in answers:
        assert answer.status_code in (200, 503), answer.text
        assert answer.status_code == 200 or int(answer.headers["retry-after"]) > 0
    assert {_made_from(answer) for answer in warm_answers} == {"hit"}
    assert _made_from(asker.ask(asker.upload())) == "miss"
    assert _where(nodes, "Encoder") == [name for name in ENCODING_NODES if name != encoding]
