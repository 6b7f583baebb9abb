"""Make ``rayservice-v1.json`` from KubeRay's definition of a RayService.

The definition is ``ray.io_rayservices.yaml`` in the folder ``crds`` of KubeRay's Helm chart (Apache-2.0). Only the
schema of the version ``v1`` is kept, without descriptions::

    python -m tests.k8s.crds.trim ray.io_rayservices.yaml 1.7
"""

import json
import sys
from pathlib import Path
from typing import Any

import yaml

TARGET = Path(__file__).with_name("rayservice-v1.json")
NAMES = "properties"


def without_descriptions(node: Any, *, names: bool = False) -> Any:
    """The schema without its prose; where ``names`` is set, keys are fields, one of which may be ``description``."""
    if isinstance(node, dict):
        return {
            key: without_descriptions(value, names=key == NAMES and not names)
            for key, value in node.items()
            if names or key != "description"
        }
    return [without_descriptions(item) for item in node] if isinstance(node, list) else node


def trimmed(definition: Any, release: str) -> dict[str, Any]:
    """The schema, with a word on where it is from."""
    (version,) = (found for found in definition["spec"]["versions"] if found["name"] == "v1")
    origin = f"RayService v1 of KubeRay {release}, without descriptions. Apache-2.0. Made by tests/k8s/crds/trim.py."
    return {"$comment": origin, **without_descriptions(version["schema"]["openAPIV3Schema"])}


if __name__ == "__main__":
    source, release = sys.argv[1:]
    schema = trimmed(yaml.safe_load(Path(source).read_text()), release)
    TARGET.write_text(json.dumps(schema, separators=(",", ":"), sort_keys=True) + "\n")
