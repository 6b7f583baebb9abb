"""A redis-server that is no part of the service, to be maltreated, and a second application that uses it."""

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import redis
from ray import serve

from fastervlm_video.cache import find_redis_server
from services.app import build_app
from services.settings import load_settings
from tests.integration.conftest import Service, free_port, serve_log_folder
from tests.services.live import wait_until

APP = "faults"
QUESTION = "What color is the circle?"
ANSWER_TOKENS = 12
RECOVERY_SECONDS = 120.0


class RedisProcess:
    """Starts at once; keeps nothing on disk."""

    def __init__(self) -> None:
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.client: Any = redis.Redis(port=self.port, socket_timeout=30)
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        """Start it, empty, and wait until it answers."""
        options = ["--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--loglevel", "warning"]
        memory = ["--maxmemory", "64mb", "--maxmemory-policy", "allkeys-lru"]
        self._process = subprocess.Popen([find_redis_server(), "--port", str(self.port), *options, *memory])
        wait_until(self._answers)

    def kill(self) -> None:
        """SIGKILL."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    @contextmanager
    def killed(self) -> Iterator[None]:
        """Dead for the length of the block; then there again, empty."""
        self.kill()
        try:
            yield
        finally:
            self.start()

    @contextmanager
    def hung(self) -> Iterator[None]:
        """There, and doing nothing, for the length of the block."""
        assert self._process is not None
        with stopped(psutil.Process(self._process.pid)):
            yield

    def status(self) -> str:
        """What the system says it is doing."""
        assert self._process is not None
        return psutil.Process(self._process.pid).status()

    def close(self) -> None:
        """End it."""
        self.client.close()
        self.kill()

    def _answers(self) -> bool:
        try:
            return bool(self.client.ping())
        except redis.RedisError:
            return False


@contextmanager
def stopped(*processes: psutil.Process) -> Iterator[None]:
    """These processes do nothing for the length of the block."""
    for process in processes:
        process.suspend()
    try:
        yield
    finally:
        for process in processes:
            if process.is_running():
                process.resume()


@dataclass
class Faulty:
    """The application under test, its Redis, and the service beside which it runs."""

    service: Service
    redis: RedisProcess
    log_folder: Path
    asked: list[float] = field(default_factory=list)

    def new_file(self, **video: Any) -> str:
        """The id of a video that nobody has asked about."""
        return self.service.upload(self.service.new_video(**video))

    def ask(self, file_id: str, question: str = QUESTION) -> dict[str, Any]:
        """An answer; remembers how long it took."""
        begin = time.monotonic()
        response = self.post(file_id, question)
        self.asked.append(time.monotonic() - begin)
        assert response.status_code == 200, response.text
        found: dict[str, Any] = response.json()
        return found

    def post(self, file_id: str, question: str = QUESTION) -> httpx.Response:
        """Ask, whatever comes of it."""
        body = {"file_id": file_id, "question": question, "max_tokens": ANSWER_TOKENS}
        return self.service.client.post(f"/{APP}/v1/ask", json=body)

    def truth(self, file_id: str, question: str = QUESTION) -> str:
        """What the service beside says, whose Redis is well."""
        answer: str = self.service.answer(file_id=file_id, question=question, max_tokens=ANSWER_TOKENS)["answer"]
        return answer

    def known_file(self) -> tuple[str, str]:
        """A video whose tokens are cached, and the answer."""
        file_id = self.new_file()
        first, second = self.ask(file_id), self.ask(file_id)
        assert first["answer"] == second["answer"] == self.truth(file_id)
        assert [first["video"]["cache"], second["video"]["cache"]] == ["miss", "hit"]
        return file_id, first["answer"]

    def entry(self) -> tuple[str, str, str]:
        """Where the only entry is: its hash, the field of its header, and that of its whole."""
        (name,) = self.redis.client.keys("fastervlm:video:*")
        body, head = sorted(field.decode() for field in self.redis.client.hkeys(name))
        return name.decode(), head, body

    def claims(self) -> dict[str, bytes]:
        """Owners of claims by their keys."""
        names = self.redis.client.keys("fastervlm:claim:*")
        owners = {name.decode(): self.redis.client.get(name) for name in names}
        return {name: owner for name, owner in owners.items() if owner is not None}

    def who_claims(self, monitor: Any) -> int:
        """The next process of an Api replica that claims, or renews a claim. Needs Redis' ``MONITOR``."""
        deadline = time.monotonic() + RECOVERY_SECONDS
        while time.monotonic() < deadline:
            said = monitor.next_command()
            claims = "fastervlm:claim:" in said["command"] and "'PX'" in said["command"]  # a release sets no time
            if claims and said["client_type"] == "tcp":
                for replica in self.replicas("Api"):
                    ports = {connection.laddr.port for connection in replica.net_connections("tcp")}
                    if int(said["client_port"]) in ports:
                        return replica.pid
        raise AssertionError("nobody claimed anything")

    def calls(self, command: str) -> int:
        """How often Redis has run a command since it started."""
        counts: dict[str, Any] = self.redis.client.info("commandstats")
        return int(counts.get(f"cmdstat_{command}", {"calls": 0})["calls"])

    def recover(self) -> None:
        """Wait until no circuit is open any more; needs questions that make every replica ask its Redis."""
        deadline = time.monotonic() + RECOVERY_SECONDS
        while any(text.count("circuit open") != text.count("circuit closed") for text in self._logs("*")):
            assert time.monotonic() < deadline, "a circuit stays open"
            file_id = self.new_file()
            for _ in range(3):
                self.ask(file_id)

    def replicas(self, stage: str) -> list[psutil.Process]:
        """Processes of a stage."""
        marker = f"ServeReplica:{APP}:{stage}"
        return [p for p in psutil.Process(os.getpid()).children(recursive=True) if marker in _title(p)]

    def sandboxes(self) -> list[psutil.Process]:
        """The processes that decode, or will decode the next video."""
        return [child for decoder in self.replicas("Decoder") for child in decoder.children()]

    def log(self, stage: str) -> str:
        """All that the replicas of a stage have logged."""
        return "".join(self._logs(stage))

    def _logs(self, stage: str) -> list[str]:
        return [path.read_text() for path in self.log_folder.glob(f"replica_{APP}_{stage}_*.log")]


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline()[:1])
    except psutil.Error:  # ended meanwhile
        return ""


@contextmanager
def faulty_application(service: Service) -> Iterator[Faulty]:
    """Deploy it beside the service, ready to answer; gone afterwards."""
    server = RedisProcess()
    try:
        settings = load_settings(
            runtime_dir=service.settings.runtime_dir,
            redis_url=server.url,
            api={"min_replicas": 2, "max_replicas": 2, "max_ongoing_requests": 128, "num_cpus": 0.1},
            decoder={"max_replicas": 1, "max_ongoing_requests": 2},
        )
        serve.run(build_app(settings), name=APP, route_prefix=f"/{APP}")
        wait_until(lambda: service.client.get(f"/{APP}/readyz").status_code == 200)
        yield Faulty(service, server, serve_log_folder())
    finally:
        serve.delete(APP)
        server.close()
