"""A Ray cluster of several nodes on this machine, with what a real one has beside it: an S3 server and a Redis.

Nodes are separate raylets with addresses, object stores, folders and custom resources of their own; between them is the
loopback network. All processes descend from this one and are ended by their ids.
"""

import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from services.proxy import PROXY_CALLBACK
from tests.integration.conftest import free_port

START_SECONDS = 240.0
HEAD = "127.0.0.2"
_BIN = Path(sys.executable).parent
_ROOT = Path(__file__).parents[2]
_OBJECT_STORE_BYTES = 100 * 1024**2
_QUICK_TO_NOTICE = {  # a node that is gone: three looks, a second apart, instead of five with three seconds between
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
}
_PATIENT = {"RAY_agent_register_timeout_ms": "180000", "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "120"}
_ATTEMPTS, _STARTED, _FAILED = 3, "Ray runtime started", "Traceback"


def wait_for(condition: Callable[[], bool], what: str, seconds: float = START_SECONDS) -> None:
    """Poll.

    Raises:
        AssertionError: it took too long; says ``what`` did.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {seconds:g} s"
        time.sleep(0.2)


def kill_tree(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL for a process and all its descendants, at once, as when the power fails."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process.send_signal(signal.SIGSTOP)  # or it would tidy up in between
        doomed = psutil.Process(process.pid).children(recursive=True)
        for one in doomed:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        process.kill()
        psutil.wait_procs(doomed, timeout=30)
    process.wait()


@dataclass
class Node:
    """One machine of the cluster.

    Attributes:
        name: what it is for.
        folder: its own.
        process: parent of all that runs on it.
    """

    name: str
    folder: Path
    process: subprocess.Popen[bytes]

    def replicas(self, stage: str) -> int:
        """Processes of a stage that run on it."""
        try:
            tree = psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return 0
        return sum(f":{stage}" in _replica_name(process) for process in tree)

    def kill(self) -> None:
        """End all of it, without a warning."""
        kill_tree(self.process)


def _wait_for_words(process: subprocess.Popen[bytes], log: Path, words: tuple[str, ...]) -> str | None:
    """Which of them are in the log first; None if the process has ended without a word."""
    found: list[str] = []

    def said() -> bool:
        ended, text = process.poll() is not None, log.read_text(errors="replace")
        found.extend(word for word in words if word in text)
        return bool(found) or ended

    wait_for(said, f"a word in {log}")
    return found[0] if found else None


def _replica_name(process: psutil.Process) -> str:
    try:
        command = process.cmdline()
    except psutil.Error:  # ended meanwhile
        return ""
    return command[0] if command and command[0].startswith("ray::ServeReplica:") else ""


class Cluster:
    """Nodes, and processes beside them, that end with the ``with`` block.

    Args:
        environment: of all processes, on top of this one's.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="fv-"))  # short, for there are sockets below it
        self.nodes: dict[str, Node] = {}
        self.environment = {
            **{name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"},
            **_QUICK_TO_NOTICE,
            **_PATIENT,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_USAGE_STATS_ENABLED": "0",
            "PYTHONUNBUFFERED": "1",
            "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": PROXY_CALLBACK,
            "PYTHONPATH": str(_ROOT),
            "OMP_NUM_THREADS": "1",
            **environment,
        }
        self.address = ""
        self._others: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> "Cluster":
        return self

    def __exit__(self, *_: object) -> None:
        for process in [*reversed(self._others), *(node.process for node in reversed(self.nodes.values()))]:
            kill_tree(process)
        shutil.rmtree(self.folder, ignore_errors=True)

    def start_node(self, name: str, *, cpus: int, **resources: float) -> Node:
        """Start a node, and wait for it; the first one is the head.

        One after the other, and a second and third time: a raylet gives up when its agent, a Python process, takes more
        than 20 seconds to come up, which it may on a busy machine.
        """
        for attempt in range(_ATTEMPTS):
            folder = self.folder / f"{len(self.nodes) + 1}{'abc'[attempt]}"
            process = self._spawn_node(folder, cpus, resources)
            node, log = Node(name, folder, process), folder / "log"
            said = _wait_for_words(process, log, (_STARTED, _FAILED))
            if said == _STARTED:
                self.nodes[name] = node
                return node
            kill_tree(process)
        raise AssertionError(f"{name} did not start: {self.logs()}")

    def _spawn_node(self, folder: Path, cpus: int, resources: Mapping[str, float]) -> subprocess.Popen[bytes]:
        folder.mkdir(mode=0o700)
        if self.nodes:
            role = [f"--address={self.address}"]
        else:
            self.address = f"{HEAD}:{free_port()}"
            client, dashboard = free_port(), free_port()
            role = ["--head", f"--port={self.address.rpartition(':')[2]}", "--include-dashboard=false"]
            role += [f"--ray-client-server-port={client}", f"--dashboard-port={dashboard}"]
        options = [
            *role,
            f"--node-ip-address=127.0.0.{len(self.nodes) + 2}",
            f"--num-cpus={cpus}",
            f"--resources={json.dumps(resources)}",
            f"--object-store-memory={_OBJECT_STORE_BYTES}",
            f"--temp-dir={folder}/ray",
            "--disable-usage-stats",
            "--block",
        ]
        environment = {**self.environment, "NODE_FOLDER": str(folder)}
        return self._spawn([str(_BIN / "ray"), "start", *options], folder / "log", environment)

    def start(self, name: str, *command: str, **environment: str) -> subprocess.Popen[bytes]:
        """Start something beside the nodes; it writes into a log of its name."""
        process = self._spawn(list(command), self.folder / f"{name}.log", {**self.environment, **environment})
        self._others.append(process)
        return process

    def logs(self) -> str:
        """The ends of all logs, for when something went wrong."""
        files = [*self.folder.glob("*.log"), *self.folder.glob("*/log")]
        return "\n".join(f"--- {file}\n{file.read_text(errors='replace')[-3000:]}" for file in files if file.exists())

    @staticmethod
    def _spawn(command: list[str], log: Path, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
        with log.open("wb") as output:
            return subprocess.Popen(
                command,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=dict(environment),
                cwd=_ROOT,
                stdin=subprocess.DEVNULL,
            )
