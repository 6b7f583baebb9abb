"""Commands, their errors, and the seconds they take."""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile

from fastervlm_video.errors import FasterVLMError, UnavailableError

__all__ = ["ImageTestError", "require", "require_tools", "run", "step", "time_box"]

_TOOLS = {
    "buildah": "buildah",
    "debootstrap": "debootstrap",
    "ip": "iproute2",
    "mount": "mount",
    "nsenter": "util-linux",
    "unshare": "util-linux",
}
"""Command, and the Debian package that has it."""
_SHOWN_CHARS = 4000


class ImageTestError(FasterVLMError):
    """A command failed, or the image is not as it should be; the message says which and how."""


def require_tools() -> None:
    """Return if this user and machine can do it.

    Raises:
        UnavailableError: not root, or commands are missing; the message names the packages that have them.
    """
    if os.geteuid() != 0:
        raise UnavailableError("debootstrap, mounts and namespaces need root: run it as root")
    missing = sorted({package for tool, package in _TOOLS.items() if shutil.which(tool, path=_path()) is None})
    if missing:
        raise UnavailableError(f"missing; install with: apt-get install --no-install-recommends {' '.join(missing)}")


def require(condition: object, message: str) -> None:
    """Raise :class:`ImageTestError` with ``message`` unless ``condition`` holds."""
    if not condition:
        raise ImageTestError(message)


def run(
    *command: object, check: bool = True, env: dict[str, str] | None = None, log: Path | None = None
) -> "subprocess.CompletedProcess[str]":
    """Run a command and wait for it.

    Args:
        command: the program and its arguments.
        check: whether a status other than 0 is an error.
        env: added to this process's environment.
        log: file for what it prints, to be watched meanwhile.

    Returns:
        The finished process, both outputs in ``stdout``.

    Raises:
        ImageTestError: it failed; the message ends with the last of what it printed.
    """
    words = [str(word) for word in command]
    environment = {**os.environ, "PATH": _path(), **(env or {})}
    with log.open("w+", errors="replace") if log else TemporaryFile("w+", errors="replace") as output:
        status = subprocess.run(words, stdout=output, stderr=output, env=environment, check=False).returncode
        output.seek(0)
        printed = output.read()
    if check and status != 0:
        raise ImageTestError(f"{' '.join(words)!r} ended with {status}:\n{printed[-_SHOWN_CHARS:]}")
    return subprocess.CompletedProcess(words, status, printed)


def _path() -> str:
    return os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])


@contextmanager
def step(name: str) -> Iterator[None]:
    """Print what begins, and how many seconds it took."""
    print(f"{name} ...", flush=True)
    begin = time.monotonic()
    yield
    print(f"  {time.monotonic() - begin:.1f} s", flush=True)


@contextmanager
def time_box(seconds: int) -> Iterator[None]:
    """Interrupt the block when its time is over.

    Raises:
        ImageTestError: it is.
    """

    def over(_number: int, _frame: object) -> None:
        raise ImageTestError(f"not done after {seconds} s")

    previous = signal.signal(signal.SIGALRM, over)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)
