"""What the container image is made of. ``make image-test`` builds it and runs it."""

import re
import tomllib
from collections.abc import Iterable
from importlib.metadata import requires
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from scripts.image_test import manifests
from scripts.image_test.container import WRITABLE
from scripts.image_test.pip_config import host_pip_config, pip_volumes, read_pip_config

ROOT = Path(__file__).parent.parent
DOCKERFILE = (ROOT / "Dockerfile").read_text()


def _argument(name: str) -> str:
    found = re.search(rf"^ARG {name}=(.+)$", DOCKERFILE, re.MULTILINE)
    assert found is not None
    return found[1]


def test_its_versions_are_the_projects() -> None:
    makefile = re.search(r"^TORCH_VERSION := (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert makefile is not None
    assert _argument("TORCH_VERSION") == makefile[1]
    assert _argument("VERSION") == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


def test_what_gets_in_is_what_is_copied() -> None:
    copied = {
        word for line in re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.MULTILINE) for word in line.split()
    }
    let_in = set(re.findall(r"^!(.+)$", (ROOT / ".dockerignore").read_text(), re.MULTILINE))
    assert copied == let_in
    assert [name for name in sorted(copied) if not (ROOT / name).exists()] == []


def test_what_is_written_lies_in_the_two_mounts() -> None:
    last_stage = DOCKERFILE.rpartition("\nFROM ")[2]
    paths = re.findall(r"^(?:ENV +| +)([A-Z_]+)=(/\S*)", last_stage, re.MULTILINE)
    assert {"HOME", "HF_HOME", "RAY_TMPDIR", "FASTERVLM_RUNTIME_DIR"} <= {name for name, _ in paths}
    outside = [name for name, path in paths if not any(Path(path).is_relative_to(mount) for mount in WRITABLE)]
    assert outside == ["PATH"]


def _is_below(path: str, mounts: Iterable[str]) -> bool:
    return any(Path(path).is_relative_to(mount) for mount in mounts)


def test_the_manifests_mount_what_the_image_and_their_settings_want() -> None:
    settings, decode = manifests.settings(), manifests.worker("decode")
    for pod in (manifests.head(), decode, manifests.worker("encode"), manifests.worker("generate")):
        assert set(WRITABLE) <= set(pod.volumes)
        assert all(_is_below(settings[name], pod.volumes) for name in ("HOME", "FASTERVLM_RUNTIME_DIR"))
    uploads = urlsplit(settings["FASTERVLM_BLOB_URL"])
    assert uploads.scheme == "file"
    for pod in (decode, manifests.worker("encode")):
        assert _is_below(uploads.path, set(pod.volumes) - set(WRITABLE))
    assert str(Path(settings["FASTERVLM_API_KEYS_FILE"]).parent) in decode.secrets.values()


@pytest.mark.parametrize("lock", ["requirements.lock", "requirements-dev.lock"])
@pytest.mark.parametrize("python", ["3.11.0", "3.11.2", "3.11.99"])
def test_the_lock_holds_for_every_python_3_11(lock: str, python: str) -> None:
    locked = [
        Requirement(line.rstrip("\\ ")) for line in (ROOT / lock).read_text().splitlines() if re.match(r"[a-z]", line)
    ]
    environment = {"python_full_version": python, "python_version": "3.11", "extra": ""}
    names = {
        canonicalize_name(one.name) for one in locked if one.marker is None or one.marker.evaluate(environment)
    } | {"torch"}  # which the lock leaves out
    missing = {
        f"{one.name} needs {needed}"
        for one in locked
        if canonicalize_name(one.name) in names and one.name != "async-timeout"
        for needed in map(Requirement, requires(one.name) or [])
        if needed.marker is None or needed.marker.evaluate(environment)
        if canonicalize_name(needed.name) not in names
    }
    assert missing == set()


def test_this_machines_pip_configuration_gets_into_the_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheels, index = tmp_path / "wheels", tmp_path / "index" / "simple"
    wheels.mkdir()
    index.mkdir(parents=True)
    monkeypatch.setenv("PIP_FIND_LINKS", f"{wheels} https://example.com/links")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", index.as_uri())
    monkeypatch.setenv("PIP_QUIET", "0")  # none of the build's business
    config = host_pip_config(read_pip_config())
    assert config["global"]["find-links"] == f"{wheels} https://example.com/links"
    assert config["global"]["extra-index-url"] == index.as_uri()
    assert "quiet" not in config["global"]
    volumes = pip_volumes(config)
    assert f"{wheels}:{wheels}:ro" in volumes
    assert f"{index.parent}:{index.parent}:ro" in volumes  # where its links may lead


def test_the_environment_goes_before_files_of_pips_configuration() -> None:
    listing = ":env:.index-url='https://env/'\nglobal.index-url='https://global/'\nuser.retries='1'\nsite.retries='2'\n"
    assert dict(host_pip_config(listing)["global"]) == {"index-url": "https://env/", "retries": "2"}
