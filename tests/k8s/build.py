"""The manifests as kustomize makes them: every overlay, alone and with every choice of components."""

import copy
import itertools
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from services.settings import Settings, load_settings

ROOT = Path(__file__).parents[2] / "k8s"
OVERLAYS = ("cpu-mini", "gpu", "gpu-fractional")
"""Those with the service in them."""
WITH_A_MODEL_VOLUME = ("gpu", "gpu-fractional")
COMPONENTS = ("gcs-fault-tolerance", "s3-blobs", "gateway", "log-shipping")
STRICT = "K8S_CHECK"
"""Set by ``make k8s-check``: without kubectl these tests then fail, and are not skipped."""

BUILD_SECONDS = 60

Object = dict[str, Any]


@dataclass(frozen=True)
class Choice:
    """An overlay and the components put on top of it."""

    overlay: str
    components: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "+".join((self.overlay, *self.components))


CHOICES = [
    Choice(overlay, chosen)
    for overlay in OVERLAYS
    for number in range(len(COMPONENTS) + 1)
    for chosen in itertools.combinations(COMPONENTS, number)
]
"""Every overlay with every set of components."""

TYPICAL = [
    *(Choice(overlay) for overlay in OVERLAYS),
    *(Choice("gpu", (name,)) for name in COMPONENTS),
    *(Choice(overlay, COMPONENTS) for overlay in OVERLAYS),
]
"""Every overlay alone and with everything, and every component alone."""

FETCH_MODEL = Choice("fetch-model")
"""What is applied before an overlay with a model volume; there is no Ray in it."""


def kubectl() -> str:
    """Where it is. The tests that need it are skipped without it, or fail if that is what was asked for."""
    found = shutil.which("kubectl")
    if found is None:
        reason = "kubectl is not installed; k8s/README.md says which version is needed"
        if os.environ.get(STRICT):
            pytest.fail(reason)
        pytest.skip(reason)
    return found


def _output(choice: Choice) -> str:
    with tempfile.TemporaryDirectory() as folder:  # where a user's own overlay would be

        def there(*parts: str) -> str:
            return os.path.relpath(ROOT.joinpath(*parts), Path(folder).resolve())

        own: Object = {
            "apiVersion": "kustomize.config.k8s.io/v1beta1",
            "kind": "Kustomization",
            "namespace": "fastervlm-video",
            "resources": [there("overlays", choice.overlay)],
            "components": [there("components", name) for name in choice.components],
        }
        Path(folder, "kustomization.yaml").write_text(yaml.safe_dump(own))
        return kustomize(Path(folder))


def kustomize(folder: Path) -> str:
    """What ``kubectl kustomize`` prints; it talks to no cluster."""
    command = [kubectl(), "kustomize", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=BUILD_SECONDS, check=False)
    assert done.returncode == 0, done.stderr
    assert not done.stderr, done.stderr  # of what is deprecated
    return done.stdout


class Manifests:
    """The objects of one choice."""

    def __init__(self, objects: list[Object]) -> None:
        self.objects = objects

    @staticmethod
    @cache
    def of(choice: Choice) -> "Manifests":
        """Built once for each choice: to be looked at, not to be changed."""
        return Manifests(list(yaml.safe_load_all(_output(choice))))

    def all(self, *kinds: str) -> list[Object]:
        """The objects of these kinds."""
        return [found for found in self.objects if found["kind"] in kinds]

    def names(self, kind: str) -> set[str]:
        """Of the objects of a kind."""
        return {found["metadata"]["name"] for found in self.all(kind)}

    def one(self, kind: str, name: str | None = None) -> Object:
        """The one object of a kind, or with a name."""
        (found,) = (found for found in self.all(kind) if name in (None, found["metadata"]["name"]))
        return found

    @property
    def ray_service(self) -> Object:
        """The RayService."""
        return self.one("RayService")

    @property
    def cluster(self) -> Object:
        """Its Ray cluster."""
        found: Object = self.ray_service["spec"]["rayClusterConfig"]
        return found

    @property
    def groups(self) -> list[Object]:
        """The worker groups."""
        found: list[Object] = self.cluster["workerGroupSpecs"]
        return found

    @property
    def serve_config(self) -> Object:
        """What is in the string ``serveConfigV2``."""
        found: Object = yaml.safe_load(self.ray_service["spec"]["serveConfigV2"])
        return found

    @property
    def entries(self) -> dict[str, Object]:
        """What stands under ``deployments`` in it, by the deployment's name."""
        (application,) = self.serve_config["applications"]
        return {entry["name"]: entry for entry in application["deployments"]}

    @property
    def variables(self) -> dict[str, str]:
        """Environment that all Ray containers have from the ConfigMap."""
        (source,) = self.cluster["headGroupSpec"]["template"]["spec"]["containers"][0]["envFrom"]
        found: dict[str, str] = self.one("ConfigMap", source["configMapRef"]["name"])["data"]
        return found

    def settings(self, monkeypatch: pytest.MonkeyPatch) -> Settings:
        """As the application's builder reads them: arguments first, then the environment of the pods."""
        for name in [name for name in os.environ if name.startswith("FASTERVLM_")]:
            monkeypatch.delenv(name)
        for name, value in self.variables.items():
            if name.startswith("FASTERVLM_"):
                monkeypatch.setenv(name, value)
        (application,) = self.serve_config["applications"]
        return load_settings(**copy.deepcopy(application["args"]))
