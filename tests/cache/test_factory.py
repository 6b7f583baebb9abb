import os
import signal
import socket
import time
from pathlib import Path
from typing import Any

import pytest
import redis

from fastervlm_video.cache import EmbeddedRedis, Storage, encode_tokens, open_cache
from fastervlm_video.errors import InvalidRequestError, UnavailableError
from tests.cache.conftest import MEMORY_BYTES, server_pid, stopped
from tests.cache.samples import FINGERPRINT, assert_same, make_cache_key, make_tokens

KEY = make_cache_key()


@pytest.mark.parametrize("url", ["none://", "off"])
def test_off(url: str, runtime_dir: Path) -> None:
    cache = open_cache(url=url, runtime_dir=runtime_dir / "unused")
    assert not cache.insert(KEY, encode_tokens(make_tokens()))
    assert not (runtime_dir / "unused").exists()


def test_memory(runtime_dir: Path) -> None:
    cache = open_cache(
        url="memory://", runtime_dir=runtime_dir / "unused", dtype=Storage.BFLOAT16, max_memory_bytes=10_000
    )
    assert cache.insert(KEY, encode_tokens(make_tokens(), dtype=Storage.BFLOAT16))
    assert_same(cache.lookup(KEY, 3, FINGERPRINT), make_tokens(), Storage.BFLOAT16)
    assert not cache.insert(KEY, encode_tokens(make_tokens((12, 12), width=1000), dtype=Storage.BFLOAT16))
    assert not (runtime_dir / "unused").exists()


def test_a_running_redis(server: EmbeddedRedis, plain: Any, runtime_dir: Path) -> None:
    cache = open_cache(url=server.url, runtime_dir=runtime_dir / "unused", ttl_seconds=60)
    assert cache.insert(KEY, encode_tokens(make_tokens()))
    assert 50_000 < plain.pttl("fastervlm:video:" + KEY.video) <= 60_000
    cache.close()
    assert plain.ping()  # not ours to stop
    assert not (runtime_dir / "unused").exists()


def test_embedded_is_shared_heals_and_ends(runtime_dir: Path) -> None:
    first = open_cache(url=None, runtime_dir=runtime_dir, max_memory_bytes=MEMORY_BYTES)
    second = open_cache(url=None, runtime_dir=runtime_dir, max_memory_bytes=MEMORY_BYTES)
    assert first.insert(KEY, encode_tokens(make_tokens()))
    assert_same(second.lookup(KEY, 3, FINGERPRINT), make_tokens())
    first.close()
    assert second.lookup(KEY, 3, FINGERPRINT) is None  # its server is gone; the next one is empty
    assert second.insert(KEY, encode_tokens(make_tokens()))
    assert second.lookup(KEY, 3, FINGERPRINT) is not None
    assert second.stats().errors == 0
    second.close()
    with pytest.raises(OSError, match=r"refused|No such"):
        _connect(runtime_dir)


def test_goes_on_without_a_cache_while_the_server_is_silent(runtime_dir: Path, plain: Any) -> None:
    with stopped(server_pid(plain)):
        cache = open_cache(
            url=None, runtime_dir=runtime_dir, max_memory_bytes=MEMORY_BYTES, operation_timeout_seconds=0.1
        )
        assert cache.lookup(KEY, 3, FINGERPRINT) is None
    assert cache.insert(KEY, encode_tokens(make_tokens()))
    cache.close()


def test_killed_embedded_server_comes_back_with_the_next_call(runtime_dir: Path) -> None:
    cache = open_cache(url=None, runtime_dir=runtime_dir, max_memory_bytes=MEMORY_BYTES)
    with redis.Redis(unix_socket_path=str(runtime_dir / "redis.sock")) as client:
        os.kill(server_pid(client), signal.SIGKILL)
    time.sleep(0.1)
    assert cache.insert(KEY, encode_tokens(make_tokens()))
    assert cache.lookup(KEY, 3, FINGERPRINT) is not None
    cache.close()


def test_what_cannot_work_is_said_at_once(runtime_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidRequestError, match="not the address of a Redis"):
        open_cache(url="http://localhost", runtime_dir=runtime_dir)
    runtime_dir.chmod(0o755)
    with pytest.raises(InvalidRequestError, match="mode 0700"):
        open_cache(url=None, runtime_dir=runtime_dir)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UnavailableError, match="no redis-server"):
        open_cache(url=None, runtime_dir=runtime_dir)


def _connect(runtime_dir: Path) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(runtime_dir / "redis.sock"))
