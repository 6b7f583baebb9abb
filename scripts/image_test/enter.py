"""The first process of a container: lays out the mounts, gives up its rights, and becomes the image's command.

Run by ``unshare`` in new mount, PID, UTS and IPC namespaces, with a :class:`Spec` as JSON. It needs the standard
library only, and has imported everything before it enters the image's root.
"""

import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Spec"]

_DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
_LINKS = {"fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2"}
_SAFE = "nosuid,nodev,noexec"
_SHM_SIZE = "1g"
_PR_SET_PDEATHSIG, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 1, 24, 38
_LAST_CAPABILITY = Path("/proc/sys/kernel/cap_last_cap")


@dataclass(frozen=True, slots=True)
class Spec:
    """What to run, and in what.

    Attributes:
        root: the image's files.
        writable: folder on this machine by mount point; ``None`` for one in memory.
        read_only: likewise, for what may only be read.
        files: folder on this machine with the files that an engine puts into ``/etc``.
        user: numeric user.
        group: numeric group.
        working_dir: where the process starts.
        env: its whole environment.
        command: its words.
    """

    root: str
    writable: dict[str, str | None]
    read_only: dict[str, str]
    files: str
    user: int
    group: int
    working_dir: str
    env: dict[str, str]
    command: list[str]


def _mount(*words: object) -> None:
    subprocess.run(["mount", *map(str, words)], check=True)


def _lay_out(spec: Spec) -> None:
    """All mounts; the root becomes read-only last."""
    root = Path(spec.root)
    _mount("--bind", root, root)
    _mount("-t", "proc", "-o", _SAFE, "proc", root / "proc")
    _mount("-t", "sysfs", "-o", f"ro,{_SAFE}", "sysfs", root / "sys")
    _lay_out_dev(root / "dev")
    for point, folder in spec.writable.items():
        place = _mount_point(root, point)
        if folder is None:
            _mount("-t", "tmpfs", "-o", f"mode=0777,{_SAFE}", "tmpfs", place)
        else:
            _mount("--bind", folder, place)
            _mount("-o", f"remount,bind,{_SAFE}", place)
    for point, folder in spec.read_only.items():
        place = _mount_point(root, point)
        _mount("--bind", folder, place)
        _mount("-o", f"remount,bind,ro,{_SAFE}", place)
    for file in Path(spec.files).iterdir():
        place = root / "etc" / file.name
        place.touch()
        _mount("--bind", file, place)
        _mount("-o", "remount,bind,ro", place)
    _mount("-o", "remount,bind,ro", root)


def _mount_point(root: Path, point: str) -> Path:
    """Its place below ``root``; made if the image does not have it, as engines do."""
    place = root / point.lstrip("/")
    place.mkdir(parents=True, exist_ok=True)
    return place


def _lay_out_dev(dev: Path) -> None:
    _mount("-t", "tmpfs", "-o", "mode=0755,nosuid", "tmpfs", dev)
    for name in _DEVICES:
        (dev / name).touch()
        _mount("--bind", f"/dev/{name}", dev / name)
    for name, target in _LINKS.items():
        (dev / name).symlink_to(target)
    (dev / "pts").mkdir()
    _mount("-t", "devpts", "-o", "newinstance,ptmxmode=0666,mode=0620,nosuid,noexec", "devpts", dev / "pts")
    (dev / "ptmx").symlink_to("pts/ptmx")
    (dev / "shm").mkdir()
    _mount("-t", "tmpfs", "-o", f"size={_SHM_SIZE},mode=1777,{_SAFE}", "tmpfs", dev / "shm")
    _mount("-o", "remount,ro,mode=0755,nosuid", dev)


def _give_up_rights(user: int, group: int, last_capability: int) -> None:
    """As Kubernetes does for ``allowPrivilegeEscalation: false`` and ``capabilities: drop: [ALL]``."""
    for number in range(last_capability + 1):
        _prctl(_PR_CAPBSET_DROP, number)
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    os.setgroups([])
    os.setresgid(group, group, group)
    os.setresuid(user, user, user)
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # asked for by unshare, and forgotten with the user's change


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option}, {value})")


def main() -> None:
    """Never returns."""
    spec = Spec(**json.loads(Path(sys.argv[1]).read_text()))
    last_capability = int(_LAST_CAPABILITY.read_text())
    _lay_out(spec)
    socket.sethostname("container")
    os.chroot(spec.root)
    os.chdir(spec.working_dir)
    os.umask(0o022)
    _give_up_rights(spec.user, spec.group, last_capability)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # Python ignores it, and that would be inherited
    os.execvpe(spec.command[0], spec.command, spec.env)


if __name__ == "__main__":
    main()
