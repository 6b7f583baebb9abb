"""The pods that would run: those of Deployments, StatefulSets and Jobs, and those that KubeRay 1.7 makes."""

from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from tests.k8s.build import Manifests, Object

_SUFFIXES = {
    "": 1,
    "m": Decimal("0.001"),
    **{unit: 1024 ** (power + 1) for power, unit in enumerate(("Ki", "Mi", "Gi", "Ti"))},
    **{unit: 1000 ** (power + 1) for power, unit in enumerate(("k", "M", "G", "T"))},
}


def quantity(text: object) -> float:
    """``500m``, ``2Gi``, ``4`` as a number."""
    digits = str(text).rstrip("kKmMGTi")
    return float(Decimal(digits) * _SUFFIXES[str(text)[len(digits) :]])


@dataclass(frozen=True)
class Pod:
    """Of a kind: all pods of a group are alike.

    Attributes:
        name: of whatever makes it.
        labels: its own and those that its maker adds.
        spec: as in its template.
        most: how many of them there may be.
        offers: what Ray can hand out of one, by resource.
    """

    name: str
    labels: dict[str, str]
    spec: Object
    most: int = 1
    fewest: int = 1
    offers: dict[str, float] = field(default_factory=dict)

    def containers(self) -> list[Object]:
        """Those that run beside each other, and those before them."""
        return [*self.spec.get("initContainers", []), *self.spec["containers"]]


def pods_of(manifests: Manifests) -> list[Pod]:
    """All kinds of pods of a choice."""
    owned = [_owned(found) for found in manifests.all("Deployment", "StatefulSet", "Job")]
    if not manifests.all("RayService"):
        return owned
    return [*owned, head_of(manifests), *(worker_of(manifests, group) for group in manifests.groups)]


def _owned(found: Object) -> Pod:
    template, replicas = found["spec"]["template"], found["spec"].get("replicas", 1)
    return Pod(found["metadata"]["name"], template["metadata"]["labels"], template["spec"], replicas, replicas)


def kuberay_labels(cluster: str, node_type: str, group: str, own: dict[str, str]) -> dict[str, str]:
    """What KubeRay 1.7 puts on a pod: its own labels, of which a template may override all but three."""
    fixed = {"ray.io/cluster": cluster, "ray.io/node-type": node_type, "ray.io/group": group}
    defaults = {
        "ray.io/is-ray-node": "yes",
        "ray.io/identifier": f"{cluster}-{node_type}",
        "app.kubernetes.io/name": "kuberay",
        "app.kubernetes.io/created-by": "kuberay-operator",
        "ray.io/serve": "true" if node_type == "worker" else "false",
    }
    return {**defaults, **own, **fixed}


def head_of(manifests: Manifests) -> Pod:
    """The head, with the autoscaler's container that KubeRay adds to it."""
    group, options = manifests.cluster["headGroupSpec"], manifests.cluster["autoscalerOptions"]
    spec = dict(group["template"]["spec"])
    fields = ("resources", "securityContext", "volumeMounts", "env")
    autoscaler = {
        "name": "autoscaler",
        "image": spec["containers"][0]["image"],
        **{field: options[field] for field in fields},
    }
    spec["containers"] = [*spec["containers"], autoscaler]
    return _ray_pod(manifests, "head", "headgroup", {**group, "template": {**group["template"], "spec": spec}})


def worker_of(manifests: Manifests, group: Object) -> Pod:
    """A worker of a group."""
    return _ray_pod(manifests, "worker", group["groupName"], group)


def _ray_pod(manifests: Manifests, node_type: str, name: str, group: Object) -> Pod:
    template = group["template"]
    cluster = f"{manifests.ray_service['metadata']['name']}-x7k2p"
    labels = kuberay_labels(cluster, node_type, name, template["metadata"]["labels"])
    most, fewest = group.get("maxReplicas", 1), group.get("minReplicas", 1)
    return Pod(name, labels, template["spec"], most, fewest, _offers(group))


def _offers(group: Object) -> dict[str, float]:
    """CPUs and GPUs from the container's limits, as KubeRay gives them to ``ray start``, and what the group says."""
    limits: dict[str, Any] = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    offers = {"CPU": float(-(-quantity(limits["cpu"]) // 1)), "GPU": quantity(limits.get("nvidia.com/gpu", 0))}
    return offers | {name: quantity(amount) for name, amount in group.get("resources", {}).items()}
