"""A base image out of Debian's own packages, where no registry can be reached."""

import shutil
from pathlib import Path

from scripts.image_test.builder import Buildah
from scripts.image_test.tools import run

__all__ = ["BASE_IMAGE", "import_base", "make_base_archive"]

BASE_IMAGE = "localhost/fastervlm-video-base"

_SUITE = "bookworm"
_PACKAGES = ("ca-certificates", "python3.11-venv", "python3-pip")
_DEFAULT_MIRROR = "http://deb.debian.org/debian/"
_REST = ("var/cache/apt/archives/*.deb", "var/lib/apt/lists/*_*", "var/log/*.log")


def make_base_archive(work: Path) -> Path:
    """A tar archive of a minimal Debian with Python, made once and kept in ``work``.

    The tree is put together in memory: dpkg waits for the disk after every file.
    """
    archive = work / f"base-{_SUITE}.tar"
    if archive.exists():
        print(f"  {archive} is there already")
        return archive
    tree, partial = work / "base", archive.with_suffix(".partial")
    tree.mkdir(exist_ok=True)
    run("mount", "-t", "tmpfs", "-o", "size=2g,mode=0755", "base", tree)
    try:
        packages = ",".join(_PACKAGES)
        run("debootstrap", "--variant=minbase", f"--include={packages}", _SUITE, tree, _mirror())
        for pattern in _REST:
            for path in tree.glob(pattern):
                path.unlink()
        run("tar", "--create", "--one-file-system", "--file", partial, "--directory", tree, ".")
    finally:
        run("umount", "--lazy", tree)
        shutil.rmtree(tree, ignore_errors=True)
    partial.rename(archive)
    return archive


def _mirror() -> str:
    """Where this machine's own apt gets the suite from."""
    fields = ("Created-By: Packages", f"Codename: {_SUITE}", "Component: main")
    done = run("apt-get", "indextargets", "--format", "$(REPO_URI)", *fields, check=False)
    usable = [line for line in done.stdout.splitlines() if line.startswith(("http://", "https://", "file:"))]
    return usable[0] if done.returncode == 0 and usable else _DEFAULT_MIRROR


def import_base(buildah: Buildah, archive: Path) -> None:
    """Make :data:`BASE_IMAGE` of the archive, unless it is there."""
    if buildah.has_image(BASE_IMAGE):
        return
    container = buildah("from", "scratch").strip()
    buildah("add", "--quiet", container, archive, "/")
    buildah("config", "--cmd", "bash", container)
    buildah("commit", "--quiet", "--rm", container, BASE_IMAGE)
