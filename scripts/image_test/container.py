"""An image at work: namespaces of its own, a network of two addresses, a read-only root."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from ipaddress import IPv4Network
from pathlib import Path

import psutil

from scripts.image_test import enter
from scripts.image_test.builder import Image
from scripts.image_test.tools import ImageTestError, run

__all__ = ["WRITABLE", "Container", "Network", "Setup", "network", "running_container"]

WRITABLE = ("/tmp", "/var/lib/fastervlm")
"""The image's own mount points; all else is read-only."""

_IN_MEMORY = "/tmp"

_ADDRESSES = IPv4Network("198.18.0.0/15")  # set aside for tests of networks
_LINK_BITS = 30
_START_SECONDS = 30.0
_POLL_SECONDS = 0.05
_LOG_CHARS = 6000


@dataclass(frozen=True, slots=True)
class Network:
    """A network namespace and the container's address in it; nothing else can be reached from there."""

    name: str
    address: str


@dataclass(frozen=True, slots=True)
class Setup:
    """What a container gets beside its image; the default is what the README's ``docker run`` gives it.

    Attributes:
        env: variables, on top of the image's.
        volumes: mount points of folders that are empty and may be written to.
        secrets: by mount point, the texts of files that may only be read, by name.
        command: instead of entry point and command, as Kubernetes' ``command`` and ``args``.
    """

    env: Mapping[str, str] = field(default_factory=dict)
    volumes: tuple[str, ...] = WRITABLE
    secrets: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    command: tuple[str, ...] = ()


@contextmanager
def network() -> Iterator[Network]:
    """A network namespace whose only way out is a wire to this machine."""
    number = os.getpid()
    links = 2 ** (_LINK_BITS - _ADDRESSES.prefixlen)
    start = int(_ADDRESSES.network_address) + (number % links) * 2 ** (32 - _LINK_BITS)
    here, there = list(IPv4Network((start, _LINK_BITS)).hosts())
    name, wire = f"image-test-{number}", f"fv{number}"
    run("ip", "netns", "add", name)
    try:
        run("ip", "link", "add", wire, "type", "veth", "peer", "name", "eth0", "netns", name)
        run("ip", "address", "add", f"{here}/{_LINK_BITS}", "dev", wire)
        run("ip", "link", "set", wire, "up")
        inside = ("ip", "-netns", name)
        run(*inside, "address", "add", f"{there}/{_LINK_BITS}", "dev", "eth0")
        run(*inside, "link", "set", "lo", "up")
        run(*inside, "link", "set", "eth0", "up")
        run(*inside, "route", "add", "default", "via", here)
        yield Network(name, str(there))
    finally:
        run("ip", "link", "delete", wire, check=False)
        run("ip", "netns", "delete", name, check=False)


class Container:
    """A running container.

    Args:
        image: that it runs.
        setup: what else it was given.
        process: ``unshare``, whose child is the container's first process.
        log: file with what it prints.

    Attributes:
        setup: likewise.
    """

    def __init__(self, image: Image, setup: Setup, process: "subprocess.Popen[bytes]", log: Path) -> None:
        self._image, self.setup, self._process, self._log = image, setup, process, log
        self._first: psutil.Process | None = None

    @property
    def first(self) -> psutil.Process:
        """The container's process 1.

        Raises:
            ImageTestError: it has ended, or did not start.
        """
        deadline = time.monotonic() + _START_SECONDS
        while self._first is None and time.monotonic() < deadline:
            self.require_running()
            children = psutil.Process(self._process.pid).children()
            # until the last exec, it is our own Python with root's rights
            entered = [child for child in children if child.uids().real == self._image.ids[0]]
            self._first = entered[0] if entered else None
            time.sleep(_POLL_SECONDS)
        if self._first is None:
            raise ImageTestError(f"the container did not start:\n{self.log}")
        return self._first

    @property
    def log(self) -> str:
        """The end of what it printed."""
        return self._log.read_text(errors="replace")[-_LOG_CHARS:]

    def processes(self) -> list[psutil.Process]:
        """All of its processes."""
        return [self.first, *self.first.children(recursive=True)]

    def require_running(self) -> None:
        """Return if it runs.

        Raises:
            ImageTestError: it has ended.
        """
        if self._process.poll() is not None:
            raise ImageTestError(f"the container ended with {self._process.returncode}:\n{self.log}")

    def run(self, *command: str, as_root: bool = False) -> "subprocess.CompletedProcess[str]":
        """Run a command inside, as the image's user if not as root; its status is the caller's to judge."""
        user, group = (0, 0) if as_root else self._image.ids
        env = [f"{name}={value}" for name, value in {**self._image.env, **self.setup.env}.items()]
        enters = [f"--target={self.first.pid}", *(f"--{kind}" for kind in ("mount", "pid", "net", "uts", "ipc"))]
        enters += ["--root", "--wd", f"--setuid={user}", f"--setgid={group}"]
        return run("nsenter", *enters, "env", "-i", *env, *command, check=False)

    def stop(self, grace_seconds: float) -> tuple[int, float]:
        """Send SIGTERM to the first process, as engines do.

        Returns:
            Its exit status, and the seconds it took.

        Raises:
            ImageTestError: it did not end in time.
        """
        begin = time.monotonic()
        self.first.send_signal(signal.SIGTERM)
        try:
            status = self._process.wait(grace_seconds)
        except subprocess.TimeoutExpired as exc:
            raise ImageTestError(f"still there {grace_seconds:.0f} s after SIGTERM:\n{self.log}") from exc
        return status, time.monotonic() - begin


def _volume(folder: Path, group: int) -> Path:
    """An empty folder as a pod with an ``fsGroup`` finds its volumes: root's, and open to the group."""
    folder.mkdir(parents=True)
    os.chown(folder, 0, group)
    folder.chmod(0o2775)
    return folder


def _secret(folder: Path, files: Mapping[str, str], group: int) -> Path:
    """A folder as Kubernetes mounts a Secret: each file is a link into a folder that is exchanged when it changes."""
    version = folder / "..1"
    version.mkdir(parents=True)
    (folder / "..data").symlink_to(version.name)
    for name, text in files.items():
        (version / name).write_text(text)
        os.chown(version / name, 0, group)
        (version / name).chmod(0o440)
        (folder / name).symlink_to(f"..data/{name}")
    return folder


@contextmanager
def running_container(
    image: Image, root: Path, wire: Network, work: Path, setup: Setup | None = None
) -> Iterator[Container]:
    """The image with nothing writable but its volumes, for as long as the block runs.

    Args:
        image: what the image says of itself.
        root: its files.
        wire: its network.
        work: an empty folder for what it writes.
        setup: what else it gets.
    """
    setup = setup or Setup()
    files, log, spec_file = work / "etc", work / "log", work / "spec.json"
    files.mkdir()
    (files / "hosts").write_text(f"127.0.0.1 localhost\n{wire.address} container\n")
    (files / "resolv.conf").write_text("")
    (files / "hostname").write_text("container\n")
    user, group = image.ids
    on_disk = [point for point in setup.volumes if point != _IN_MEMORY]
    spec = enter.Spec(
        root=str(root),
        writable={
            **dict.fromkeys(set(setup.volumes) - set(on_disk)),
            **{point: str(_volume(work / "volumes" / point.lstrip("/"), group)) for point in on_disk},
        },
        read_only={
            point: str(_secret(work / "secrets" / point.lstrip("/"), texts, group))
            for point, texts in setup.secrets.items()
        },
        files=str(files),
        user=user,
        group=group,
        working_dir=image.working_dir,
        env={**image.env, **setup.env},
        command=list(setup.command or image.entrypoint + image.command),
    )
    spec_file.write_text(json.dumps(asdict(spec)))
    spaces = ("--mount", "--pid", "--uts", "--ipc", "--fork", "--propagation=private", "--kill-child=KILL")
    words = ["nsenter", f"--net=/run/netns/{wire.name}", "unshare", *spaces, sys.executable, "-I", enter.__file__]
    with ExitStack() as stack:
        output = stack.enter_context(log.open("wb"))
        process = subprocess.Popen(
            [*words, str(spec_file)], stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
        stack.callback(process.wait)
        stack.callback(process.kill)  # and with it, by --kill-child, everything in the namespace
        yield Container(image, setup, process, log)
