"""What ``k8s/README.md`` says is so."""

import re
import shutil
from pathlib import Path

import yaml

from tests.k8s.build import COMPONENTS, FETCH_MODEL, OVERLAYS, ROOT, Choice, Manifests, kustomize
from tests.k8s.pods import pods_of, quantity

README = (ROOT / "README.md").read_text()


def test_every_overlay_and_component_is_described() -> None:
    folders = {f"{kind}/{path.name}" for kind in ("overlays", "components") for path in (ROOT / kind).iterdir()}
    described = set(re.findall(r"^\| `((?:overlays|components)/[\w-]+)`", README, re.M))
    assert folders == described
    assert folders == {
        *(f"overlays/{name}" for name in (*OVERLAYS, FETCH_MODEL.overlay)),
        *(f"components/{name}" for name in COMPONENTS),
    }


def test_its_overlay_of_ones_own_builds(tmp_path: Path) -> None:
    (example,) = re.findall(r"```yaml\n(.+?)```", README, re.S)
    shutil.copytree(ROOT, tmp_path / "k8s")
    own = tmp_path / "k8s" / "overlays" / "own"
    own.mkdir()
    (own / "kustomization.yaml").write_text(example)
    (own / "api-keys").write_text("a-key:acme\n")
    (own / "redis.env").write_text("password=of-my-own\n")
    manifests = Manifests(list(yaml.safe_load_all(kustomize(own))))
    for name in ("fastervlm-api-keys", "fastervlm-redis"):
        assert "stringData" not in manifests.one("Secret", name), "the placeholder would go before"
    images = {container["image"] for pod in pods_of(manifests) for container in pod.containers()}
    assert {image.partition(":")[0] for image in images} == {"your.registry/fastervlm-video", "redis"}


def test_all_secrets_and_their_keys_are_listed() -> None:
    rows = dict(re.findall(r"^\| `(fastervlm-[\w-]+)` \| (.+?) \| ", README, re.M))
    everything = Manifests.of(Choice("gpu", COMPONENTS))
    for secret in everything.all("Secret"):
        assert all(f"`{key}`" in rows[secret["metadata"]["name"]] for key in secret["stringData"])


def test_what_the_mini_overlay_requests() -> None:
    requests = [
        container["resources"]["requests"]
        for pod in pods_of(Manifests.of(Choice("cpu-mini")))
        for container in pod.containers()
    ]
    cores = sum(quantity(found["cpu"]) for found in requests)
    gib = sum(quantity(found["memory"]) for found in requests) / 1024**3
    assert f"requests {cores:g} cores and {gib:g} GiB" in README


def test_the_image_it_builds_and_loads_is_the_one_that_the_mini_overlay_runs() -> None:
    images = {container["image"] for pod in pods_of(Manifests.of(Choice("cpu-mini"))) for container in pod.containers()}
    (ours,) = (image for image in images if image.startswith("fastervlm-video"))
    assert re.findall(r"docker build -t (\S+)", README) == [ours]
    assert set(re.findall(r"(?:load docker-image|image load) (\S+)", README)) == {ours}


def test_what_it_waits_for_and_deletes_is_in_the_overlay_that_fetches() -> None:
    fetch = Manifests.of(FETCH_MODEL)
    named = dict(re.findall(r"(job|networkpolicy)/([\w-]+)", README))
    assert named["job"] in fetch.names("Job")
    assert named["networkpolicy"] in fetch.names("NetworkPolicy")
