"""``python -m scripts.image_test``: build the image, run it, ask it, stop it, clean up."""

import argparse
import fcntl
import secrets
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

from fastervlm_video.errors import FasterVLMError
from scripts.image_test import checks, manifests
from scripts.image_test.base import BASE_IMAGE, import_base, make_base_archive
from scripts.image_test.builder import Buildah, Image
from scripts.image_test.container import Setup, network, running_container
from scripts.image_test.pip_config import host_pip_config, pip_volumes, read_pip_config
from scripts.image_test.tools import ImageTestError, require, require_tools, step, time_box

_ROOT = Path(__file__).parent.parent.parent
_IMAGE = "localhost/fastervlm-video:test"
_PIP_CONFIG = "/etc/pip.conf"
_GRACE_SECONDS = 30.0
_TENANT = "image-test"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="image_test", description=__doc__)
    parser.add_argument(
        "--torch-index",
        default="",
        help="package index for torch, such as that of CPU builds; default: pip's own, with CUDA",
    )
    parser.add_argument("--torch-version", help="default: the Dockerfile's")
    parser.add_argument(
        "--base-image", help="use this one, from a registry, instead of making one of Debian's packages"
    )
    parser.add_argument("--volume", action="append", default=[], help="host:container[:ro], there during the build")
    parser.add_argument(
        "--work", type=Path, default=Path("/var/tmp/fastervlm-image-test"), help="folder for everything"
    )
    parser.add_argument("--keep", action="store_true", help="keep the images, so that the next build is quick")
    parser.add_argument("--no-build", action="store_true", help="run the image that an earlier --keep has left")
    parser.add_argument("--limit", type=int, default=3600, help="give up after so many seconds")
    return parser.parse_args()


@contextmanager
def _locked(work: Path) -> Iterator[None]:
    """The working folder for one run at a time."""
    work.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (work / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            raise ImageTestError(f"another run uses {work}") from exc
        yield


def _build(buildah: Buildah, options: argparse.Namespace) -> None:
    git = subprocess.run(["git", "-C", str(_ROOT), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    arguments = {
        "BASE_IMAGE": options.base_image or BASE_IMAGE,
        "TORCH_INDEX": options.torch_index,
        "REVISION": git.stdout.strip() or "unknown",
        "CREATED": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    if options.torch_version:
        arguments["TORCH_VERSION"] = options.torch_version
    config = host_pip_config(read_pip_config())
    with tempfile.NamedTemporaryFile("w", suffix="-pip.conf") as file:
        config.write(file)
        file.flush()
        volumes = [f"{file.name}:{_PIP_CONFIG}:ro", *pip_volumes(config), *options.volume]
        buildah.build(_ROOT, _IMAGE, arguments, volumes)


def _serve(image: Image, root: Path, work: Path, setup: Setup, key: str = "") -> None:
    """Serve, answer, be looked at, stop.

    Args:
        image: what the image says of itself.
        root: its files.
        work: for what it writes.
        setup: what else the container gets.
        key: an API key that it was given.
    """
    work.mkdir()
    port = {**image.env, **setup.env}["FASTERVLM_PORT"]
    with network() as wire, running_container(image, root, wire, work, setup) as container:
        url = f"http://{wire.address}:{port}"
        with step(f"Serving at {url}, with a read-only root"):
            checks.wait_until_ready(container, url)
        with step("Asking about a video, from outside"):
            print("\n".join(f"  {line}" for line in checks.check_answers(url, work, key)))
        if key:
            checks.check_key(url, key)
            checks.check_uploads(container, urlsplit(setup.env["FASTERVLM_BLOB_URL"]).path, _TENANT)
        with step("Looking at its packages, processes, mounts and health"):
            print(f"  {checks.check_packages(container)}")
            checks.check_health(container, image, healthy=True)
            print(f"  {checks.check_limits(container, image)} processes, all of user {image.user}")
        with step("Stopping it with SIGTERM"):
            status, _ = container.stop(_GRACE_SECONDS)
            require(status == 0, f"it ended with {status}:\n{container.log}")


def _serve_as_a_pod(image: Image, root: Path, work: Path) -> None:
    """With the settings and mounts of the group of workers that has API keys and uploads."""
    settings, pod = manifests.settings(), manifests.worker("decode")
    key, file = secrets.token_hex(24), Path(settings["FASTERVLM_API_KEYS_FILE"])
    (point,) = pod.secrets.values()
    require(str(file.parent) == point, f"{file} is not in the Secret that is mounted at {point}")
    keys = {point: {file.name: f"{key}:{_TENANT}\n"}}
    _serve(image, root, work, Setup(settings, pod.volumes, keys), key)


def _kuberay(image: Image, root: Path, work: Path) -> None:
    work.mkdir()
    token = secrets.token_hex(32)
    setup = Setup(
        env={**manifests.settings(), "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token},
        volumes=manifests.head().volumes,
        command=("/bin/bash", "-c", "--", checks.RAY_START),
    )
    with network() as wire, running_container(image, root, wire, work, setup) as container:
        checks.check_kuberay(container, image, wire.address, token)


def _test(options: argparse.Namespace) -> None:
    buildah = Buildah(options.work / "storage")
    try:
        if not (options.base_image or options.no_build):
            with step("Making a base image of Debian's packages"):
                import_base(buildah, make_base_archive(options.work))
        if not options.no_build:
            with step(f"Building it, with torch from {options.torch_index or 'the default index'}"):
                _build(buildah, options)
        image = buildah.image(_IMAGE)
        print(image.describe_layers())
        with tempfile.TemporaryDirectory(dir=options.work) as folder, buildah.root_of(_IMAGE) as root:
            with step("Looking at the image's files"):
                checks.check_image(image, root)
            _serve(image, root, Path(folder, "serve"), Setup())
            print("As a pod of k8s/base:")
            _serve_as_a_pod(image, root, Path(folder, "pod"))
            with step("Starting it as KubeRay starts a head"):
                _kuberay(image, root, Path(folder, "kuberay"))
    finally:
        if not options.keep:
            with step("Cleaning up"):
                buildah.remove()


def main() -> int:
    """Run all steps; returns the exit status."""
    options = _arguments()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that it cleans up, as after Ctrl-C
    try:
        require_tools()
        with _locked(options.work), time_box(options.limit):
            _test(options)
    except FasterVLMError as exc:
        print(f"error: {exc.message}", file=sys.stderr)
        return 1
    print(f"The image is as it should be. Kept for the next run: {options.work}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
