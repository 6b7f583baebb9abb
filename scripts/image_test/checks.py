"""What is asked of the image, and of the container while it serves."""

import os
import stat
import time
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from fastervlm_video.config import DEFAULT_NUM_FRAMES
from fastervlm_video.media import write_video
from fastervlm_video.mini import Question, ask_about, frame_times, random_scene, render_scene
from scripts.image_test.builder import Image
from scripts.image_test.container import WRITABLE, Container
from scripts.image_test.tools import ImageTestError, require

__all__ = [
    "check_answers",
    "check_health",
    "check_image",
    "check_key",
    "check_kuberay",
    "check_limits",
    "check_packages",
    "check_uploads",
    "wait_until_ready",
]

_COMPILERS = (
    "cc",
    "c++",
    "c[0-9]*",
    "gcc*",
    "g++*",
    "*-gcc*",
    "*-g++*",
    "clang*",
    "cpp",
    "cpp-*",
    "tcc",
    "make",
    "gmake",
    "ld",
    "as",
)
_NEEDED = ("bash", "fastervlm-video", "grep", "python", "ray", "tini", "wget")
_LABELS = ("title", "description", "licenses", "version", "revision", "created")
_SCENE_SEED = 8
_FPS = 12
_KINDS = ("color", "count", "motion", "order")
_KEEP_RATIOS = (1.0, 0.25)
_HTTP_SECONDS = 120.0
_POLL_SECONDS = 0.25
_SLOW_STORE = "instead of /dev/shm"
_READ_ONLY = "Read-only file system"

RAY_START = (
    "ulimit -n 65536; ray start --head --block --num-cpus=1 --dashboard-host=0.0.0.0 "
    "--dashboard-agent-listen-port=52365 --metrics-export-port=8080"
)
"""How KubeRay starts a head: the last argument of ``/bin/bash -c --``."""

_DASHBOARD_PORT = 8265
_IMPORTS = "import s3fs, torch; print(f'torch {torch.__version__}, CUDA: {torch.version.cuda or None}')"

_KUBERAY_PROBE = (
    "wget --tries 1 -T 2 -q -O- http://localhost:52365/api/local_raylet_healthz | grep success && "
    "wget --tries 1 -T 10 -q -O- http://localhost:8265/api/gcs_healthz | grep success"
)


def check_image(image: Image, root: Path) -> None:
    """User, labels, health check; no compiler; nothing that its user could change."""
    user, _ = image.ids
    require(user > 0, f"the image's user is {image.user}")
    missing = [label for label in _LABELS if not image.labels.get(f"org.opencontainers.image.{label}")]
    require(not missing, f"labels are missing: {missing}")
    require(image.health_command, "there is no HEALTHCHECK")
    programs = {name for folder in _search_path(image) for name in _names(root / folder.lstrip("/"))}
    compilers = sorted(name for name in programs if any(fnmatch(name, pattern) for pattern in _COMPILERS))
    require(not compilers, f"there are compilers: {compilers}")
    require(programs.issuperset(_NEEDED), f"not on the PATH: {sorted(set(_NEEDED) - programs)}")
    open_to_user = [path for path in _writable(root, user) if f"/{path.relative_to(root)}" not in WRITABLE]
    require(not open_to_user, f"its user could change {open_to_user[:5]}")


def _search_path(image: Image) -> list[str]:
    return [*image.env["PATH"].split(":"), "/usr/lib/gcc", "/usr/libexec"]


def _names(folder: Path) -> list[str]:
    return os.listdir(folder) if folder.is_dir() else []


def _writable(root: Path, user: int) -> Iterator[Path]:
    """Files and folders that are the user's, or everybody's; sticky folders such as /var/tmp do no harm."""
    for folder, folders, files in os.walk(root):
        for name in [*folders, *files]:
            path = Path(folder, name)
            found = path.lstat()
            everybodys = found.st_mode & stat.S_IWOTH and not found.st_mode & stat.S_ISVTX
            kind = stat.S_IFMT(found.st_mode)
            if kind in {stat.S_IFREG, stat.S_IFDIR} and (found.st_uid == user or everybodys):
                yield path


def wait_until_ready(container: Container, url: str) -> None:
    """Return when ``/readyz`` says so.

    Raises:
        ImageTestError: the container ended.
    """
    while True:
        container.require_running()
        try:
            if httpx.get(f"{url}/readyz", timeout=5, trust_env=False).status_code == httpx.codes.OK:
                return
        except httpx.TransportError:
            pass
        time.sleep(_POLL_SECONDS)


def check_answers(url: str, work: Path, key: str = "") -> list[str]:
    """Upload a video and ask about it; the answers follow from how it was made.

    Args:
        url: of the service.
        work: a folder for the video.
        key: if it asks for one.

    Returns:
        A line for each question.
    """
    scene, video = random_scene(_SCENE_SEED), work / "shapes.mp4"
    write_video(video, render_scene(scene), fps=_FPS)
    asked = ask_about(scene, 0, frame_times(DEFAULT_NUM_FRAMES), np.random.default_rng(_SCENE_SEED))
    questions = [next(one for one in asked if one.kind == kind) for kind in _KINDS]
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    with httpx.Client(base_url=url, timeout=_HTTP_SECONDS, headers=headers, trust_env=False) as client:
        file_id = _json(client.post("/v1/files", files={"file": (video.name, video.read_bytes())}))["id"]
        answers = [(one, _ask(client, file_id, one, ratio)) for one in questions for ratio in _KEEP_RATIOS]
    caches = [answer["video"]["cache"] for _, answer in answers]
    require(caches == ["miss", *["hit"] * (len(answers) - 1)], f"the token cache does not work: {caches}")
    wrong = [f"{one.text} {answer['answer']}" for one, answer in answers if answer["answer"].strip() != one.answer]
    require(not wrong, f"wrong answers: {wrong}")
    return [f"{one.text} {answer['answer']} ({answer['video']['tokens_kept']} tokens)" for one, answer in answers]


def _ask(client: httpx.Client, file_id: str, question: Question, keep_ratio: float) -> dict[str, Any]:
    body = {"file_id": file_id, "question": question.text, "keep_ratio": keep_ratio}
    return _json(client.post("/v1/ask", json=body))


def _json(response: httpx.Response) -> dict[str, Any]:
    require(response.is_success, f"{response.request.url} answered {response.status_code}: {response.text[:500]}")
    found: dict[str, Any] = response.json()
    return found


def check_key(url: str, key: str) -> None:
    """Without the key, and with another one, nobody gets in."""
    for sent, expected in ((None, 401), (f"{key}x", 401), (key, 200)):
        headers = {} if sent is None else {"Authorization": f"Bearer {sent}"}
        answer = httpx.get(f"{url}/v1/models", headers=headers, timeout=_HTTP_SECONDS, trust_env=False)
        what = "no key" if sent is None else "the key" if sent == key else "a wrong key"
        require(answer.status_code == expected, f"with {what}: {answer.status_code}, not {expected}: {answer.text}")


def check_uploads(container: Container, folder: str, tenant: str) -> None:
    """What was uploaded is in the folder of the blob store, below its tenant."""
    done = container.run("find", f"{folder}/tenants/{tenant}", "-type", "f", "-size", "+0")
    require(done.returncode == 0 and done.stdout.strip(), f"nothing is stored in {folder}: {done.stdout}")


def check_packages(container: Container) -> str:
    """Packages that are loaded only where they are needed can be.

    Returns:
        Which torch is in the image: with CUDA or without.
    """
    done = container.run("python", "-c", _IMPORTS)
    require(done.returncode == 0, f"packages are missing:\n{done.stdout}")
    return done.stdout.strip().splitlines()[-1]


def check_health(container: Container, image: Image, *, healthy: bool) -> None:
    """The health check's own command says how the service is."""
    done = container.run(*image.health_command)
    require((done.returncode == 0) == healthy, f"the health check ended with {done.returncode}: {done.stdout}")


def check_limits(container: Container, image: Image) -> int:
    """All processes are the image's user, without rights; nothing but its volumes can be written to.

    Returns:
        How many processes there are.
    """
    user, group = image.ids
    processes = container.processes()
    for process in processes:
        facts = Path(f"/proc/{process.pid}/status").read_text()
        fields = dict(line.split(":\t", 1) for line in facts.splitlines() if ":\t" in line)
        name = f"{fields['Name']} ({process.pid})"
        require(fields["Uid"].split() == [str(user)] * 4, f"{name} has the user ids {fields['Uid']}")
        require(fields["Gid"].split() == [str(group)] * 4, f"{name} has the group ids {fields['Gid']}")
        require(int(fields["CapBnd"], 16) == 0 and fields["NoNewPrivs"] == "1", f"{name} could get rights")
    require(_SLOW_STORE not in container.log, f"Ray's object store is not in shared memory:\n{container.log}")
    for folder in ("/", "/etc", "/opt/venv", "/usr/local/bin", "/var/tmp", *container.setup.secrets):
        for as_root in (False, True):
            done = container.run("touch", f"{folder}/probe", as_root=as_root)
            require(done.returncode != 0 and _READ_ONLY in done.stdout, f"touch in {folder}: {done.stdout or 'done'}")
    for folder in container.setup.volumes:
        done = container.run("sh", "-c", f"touch {folder}/probe && rm {folder}/probe")
        require(done.returncode == 0, f"touch in {folder}: {done.stdout}")
    return len(processes)


def check_kuberay(container: Container, image: Image, address: str, token: str) -> None:
    """A head started as KubeRay does passes KubeRay's probes, and lets in who has the token; login shells find ``ray``.

    Args:
        container: the head.
        image: that it runs.
        address: of the container.
        token: that Ray asks for.

    Raises:
        ImageTestError: the container ended, or it is not so.
    """
    while container.run("/bin/bash", "-c", _KUBERAY_PROBE).returncode != 0:
        container.require_running()
        time.sleep(_POLL_SECONDS)
    check_health(container, image, healthy=False)  # nothing serves there yet
    done = container.run("/bin/bash", "-lc", "ray --version && ray health-check --address 127.0.0.1:6379")
    if done.returncode != 0:
        raise ImageTestError(f"ray in a login shell: {done.stdout}")
    dashboard = f"http://{address}:{_DASHBOARD_PORT}/api/serve/applications/"
    for sent, expected in ((None, 401), ("0" * len(token), 403), (token, 200)):
        headers = {} if sent is None else {"Authorization": f"Bearer {sent}"}
        answer = httpx.get(dashboard, headers=headers, timeout=_HTTP_SECONDS, trust_env=False)
        require(answer.status_code == expected, f"the dashboard answered {answer.status_code}, not {expected}")
