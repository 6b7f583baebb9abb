"""buildah, with a storage of its own, and what an image says of itself."""

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.image_test.tools import ImageTestError, run

__all__ = ["Buildah", "Image"]

_DRIVERS = ("overlay", "vfs")
_MEBIBYTE = 1024**2
_OWN_LAYERS = ("Debian packages", "locked packages", "torch", "this project")
"""The Dockerfile's own, on top of the base image's."""


@dataclass(frozen=True, slots=True)
class Image:
    """What a container engine reads from an image.

    Attributes:
        name: of the image.
        env: environment variables.
        entrypoint: words before the command.
        command: default words of the command.
        user: as written, such as ``10001:10001``.
        working_dir: where the process starts.
        health_command: what ``HEALTHCHECK`` runs; empty if there is none.
        labels: by name.
        layers: size in bytes and origin of each, the base first.
    """

    name: str
    env: dict[str, str]
    entrypoint: tuple[str, ...]
    command: tuple[str, ...]
    user: str
    working_dir: str
    health_command: tuple[str, ...]
    labels: dict[str, str]
    layers: tuple[tuple[int, str], ...]

    @property
    def ids(self) -> tuple[int, int]:
        """User and group.

        Raises:
            ImageTestError: they are not two numbers; Kubernetes cannot tell whether a name is root's.
        """
        user, _, group = self.user.partition(":")
        if not (user.isdigit() and group.isdigit()):
            raise ImageTestError(f"USER must be two numbers, not {self.user!r}")
        return int(user), int(group)

    def describe_layers(self) -> str:
        """A line per layer with its size, and their sum; unpacked, as a disk holds them."""
        lines = [f"  {size / _MEBIBYTE:8.1f} MiB  {origin}" for size, origin in self.layers]
        return "\n".join([*lines, f"  {sum(size for size, _ in self.layers) / _MEBIBYTE:8.1f} MiB  in all"])


class Buildah:
    """buildah with its storage in one folder; call it with a command's words for what it prints.

    Args:
        storage: the folder; made if it is not there.

    Raises:
        ImageTestError: no storage driver works there.
    """

    def __init__(self, storage: Path) -> None:
        self._storage = storage
        self._scratch = storage.parent / "tmp"  # downloads that outlive a build, and copies under way
        self._scratch.mkdir(parents=True, exist_ok=True)
        self._driver = ""
        for self._driver in _DRIVERS:
            if run(*self._words("info"), check=False).returncode == 0:
                return
            shutil.rmtree(storage, ignore_errors=True)
        raise ImageTestError(f"buildah can use neither of {_DRIVERS} in {storage}")

    def _words(self, *words: object) -> list[object]:
        folders = ["--root", self._storage / "root", "--runroot", self._storage / "run"]
        return ["buildah", *folders, "--storage-driver", self._driver, *words]

    def __call__(self, *words: object, log: Path | None = None) -> str:
        """Run ``buildah`` with these words; returns what it printed."""
        return run(*self._words(*words), env={"TMPDIR": str(self._scratch)}, log=log).stdout

    def has_image(self, name: str) -> bool:
        """Whether the storage has it."""
        return run(*self._words("inspect", "--type", "image", name), check=False).returncode == 0

    def build(self, context: Path, name: str, arguments: dict[str, str], volumes: Sequence[str]) -> None:
        """Build the Dockerfile of ``context``; ``build.log`` beside the storage says how far it is.

        Args:
            context: the folder.
            name: of the image.
            arguments: of the build.
            volumes: ``host:container[:ro]``, there while a ``RUN`` runs, and not in the image.
        """
        options = [f"--build-arg={key}={value}" for key, value in arguments.items()]
        options += [f"--volume={volume}" for volume in volumes]
        # HEALTHCHECK exists in Docker's format only; a layer per instruction, for their sizes and for a second build
        words = ["--format=docker", "--layers", "--isolation=chroot", *options, f"--tag={name}", context]
        self("build", *words, log=self._storage.parent / "build.log")

    def image(self, name: str) -> Image:
        """What the image says of itself."""
        found: dict[str, Any] = json.loads(self("inspect", "--type", "image", name))
        docker, manifest = found["Docker"], json.loads(found["Manifest"])
        config = docker["config"]
        test = (config.get("Healthcheck") or {}).get("Test") or ["NONE"]
        sizes = [layer["size"] for layer in manifest["layers"]]
        origins = ["base image"] * (len(sizes) - len(_OWN_LAYERS)) + [*_OWN_LAYERS]
        return Image(
            name=name,
            env=dict(item.split("=", 1) for item in config["Env"]),
            entrypoint=tuple(config.get("Entrypoint") or ()),
            command=tuple(config.get("Cmd") or ()),
            user=config["User"],
            working_dir=config.get("WorkingDir") or "/",
            health_command=tuple(test[1:]) if test[0] == "CMD" else (),
            labels=config.get("Labels") or {},
            layers=tuple(zip(sizes, origins, strict=True)),
        )

    @contextmanager
    def root_of(self, name: str) -> Iterator[Path]:
        """The image's files, in a folder that is there as long as the block runs."""
        container = self("from", "--pull-never", name).strip()
        try:
            yield Path(self("mount", container).strip())
        finally:
            self("umount", container)
            self("rm", container)

    def remove(self) -> None:
        """Remove all images and the storage."""
        self("rm", "--all")
        self("rmi", "--all", "--force")
        run("umount", self._storage / "root" / "overlay", check=False)  # the driver's own mount
        shutil.rmtree(self._storage)
