import contextlib
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
import torch

from fastervlm_video.cache import EmbeddedRedis

MEMORY_BYTES = 32 * 1024**2

torch.set_num_threads(1)


@pytest.fixture
def runtime_dir() -> Iterator[Path]:
    """A private directory with a name short enough for a socket in it."""
    path = Path(tempfile.mkdtemp(prefix="fv"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def server(runtime_dir: Path) -> Iterator[EmbeddedRedis]:
    """A real redis-server, ended after the test."""
    with EmbeddedRedis.ensure(runtime_dir, max_memory_bytes=MEMORY_BYTES) as running:
        yield running


@pytest.fixture
def plain(runtime_dir: Path, server: EmbeddedRedis) -> Iterator[Any]:
    """redis-py as it comes: the independent look at what is stored."""
    with redis.Redis(unix_socket_path=str(runtime_dir / "redis.sock")) as client:
        yield client


def server_pid(client: Any) -> int:
    """Process id of the redis-server that answers ``client``."""
    return int(client.info("server")["process_id"])


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    """A process that is there and does nothing, for a while."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)
