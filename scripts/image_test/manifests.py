"""What the Kubernetes manifests give the image's containers: read from them, so that both stay the same."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

__all__ = ["Pod", "head", "settings", "worker"]

_BASE = Path(__file__).parent.parent.parent / "k8s" / "base"


@dataclass(frozen=True, slots=True)
class Pod:
    """The Ray container of a pod.

    Attributes:
        volumes: mount points that may be written to.
        secrets: mount points of Secrets, by the Secret's name.
    """

    volumes: tuple[str, ...]
    secrets: dict[str, str]

    @classmethod
    def of(cls, template: dict[str, Any]) -> "Pod":
        """The first container of a pod's template."""
        spec = template["spec"]
        secrets = {one["name"]: one["secret"]["secretName"] for one in spec["volumes"] if "secret" in one}
        mounts = {one["name"]: one["mountPath"] for one in spec["containers"][0]["volumeMounts"]}
        return cls(
            volumes=tuple(point for name, point in mounts.items() if name not in secrets),
            secrets={secrets[name]: point for name, point in mounts.items() if name in secrets},
        )


def _cluster() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((_BASE / "rayservice.yaml").read_text())["spec"]["rayClusterConfig"]
    return found


def head() -> Pod:
    """Of the head."""
    return Pod.of(_cluster()["headGroupSpec"]["template"])


def worker(group: str) -> Pod:
    """Of a group of workers."""
    return Pod.of(next(one["template"] for one in _cluster()["workerGroupSpecs"] if one["groupName"] == group))


def settings() -> dict[str, str]:
    """The variables that all Ray containers have."""
    lines = (_BASE / "settings.env").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
