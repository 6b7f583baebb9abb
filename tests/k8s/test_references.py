"""What objects say of each other is true."""

import re
import tomllib
from collections.abc import Iterator
from typing import Any

import pytest
import ray

from tests.k8s.build import ROOT, Choice, Manifests, Object
from tests.k8s.conftest import EVERYWHERE
from tests.k8s.network import selects
from tests.k8s.pods import Pod, head_of, pods_of

MADE_BY_KUBERNETES = {("ConfigMap", "kube-root-ca.crt")}
CLUSTER_WIDE_LABELS = {"app.kubernetes.io/name", "app.kubernetes.io/created-by"}
"""KubeRay's services find the head by these, so a template must leave them alone."""


def _references(node: Any) -> Iterator[tuple[str, str]]:
    """Kind and name of every Secret, ConfigMap and claim that a pod names."""
    if isinstance(node, list):
        for item in node:
            yield from _references(item)
    elif isinstance(node, dict):
        for key, value in node.items():
            if key in {"secretKeyRef", "secretRef"}:
                yield "Secret", value["name"]
            elif key in {"configMapKeyRef", "configMapRef", "configMap"}:
                yield "ConfigMap", value["name"]
            elif key == "secret" and isinstance(value, dict):
                yield "Secret", value.get("secretName") or value["name"]
            elif key == "persistentVolumeClaim":
                yield "PersistentVolumeClaim", value["claimName"]
            else:
                yield from _references(value)


def ray_clusters(manifests: Manifests) -> list[Object]:
    """The Ray cluster, where there is one: it names Secrets outside of pods, too."""
    return [manifests.cluster] if manifests.all("RayService") else []


def _keys(manifests: Manifests, kind: str, name: str) -> set[str]:
    found = manifests.one(kind, name)
    return {*found.get("data", {}), *found.get("stringData", {})}


@EVERYWHERE
def test_what_pods_mount_and_read_is_there(manifests: Manifests) -> None:
    for place in [pod.spec for pod in pods_of(manifests)] + ray_clusters(manifests):
        for kind, name in _references(place):
            assert (kind, name) in MADE_BY_KUBERNETES or name in manifests.names(kind), f"no {kind} {name}"


@EVERYWHERE
def test_every_secret_and_claim_is_used(manifests: Manifests) -> None:
    used = set(_references([pod.spec for pod in pods_of(manifests)] + ray_clusters(manifests)))
    for kind in ("Secret", "ConfigMap", "PersistentVolumeClaim"):
        assert {(kind, name) for name in manifests.names(kind)} <= used


def test_keys_of_secrets_are_there(manifests: Manifests) -> None:
    places = [container for pod in pods_of(manifests) for container in pod.containers()]
    for container in places:
        for variable in container.get("env", []):
            source = variable.get("valueFrom", {}).get("secretKeyRef")
            assert source is None or source["key"] in _keys(manifests, "Secret", source["name"])


@EVERYWHERE
def test_volume_mounts_are_of_the_pods_volumes(manifests: Manifests) -> None:
    for pod in pods_of(manifests):
        volumes = {volume["name"] for volume in pod.spec.get("volumes", [])}
        volumes |= {claim["metadata"]["name"] for claim in _claim_templates(manifests, pod)}
        mounted = {mount["name"] for container in pod.containers() for mount in container.get("volumeMounts", [])}
        assert mounted == volumes, pod.name


def _claim_templates(manifests: Manifests, pod: Pod) -> list[Object]:
    return [
        claim
        for found in manifests.all("StatefulSet")
        if found["metadata"]["name"] == pod.name
        for claim in found["spec"]["volumeClaimTemplates"]
    ]


def test_variables_are_defined_before_they_are_used_in_others(manifests: Manifests) -> None:
    for pod in pods_of(manifests):
        for container in pod.containers():
            defined: set[str] = set()
            for variable in container.get("env", []):
                assert set(re.findall(r"\$\((\w+)\)", variable.get("value", ""))) <= defined
                defined.add(variable["name"])
            assert set(re.findall(r"\$\((\w+)\)", " ".join(container.get("args", [])))) <= defined


def test_selectors_find_pods(manifests: Manifests) -> None:
    pods = pods_of(manifests)
    selectors = [found["spec"]["selector"] for found in manifests.all("Service")]
    selectors += [
        found["spec"]["selector"]["matchLabels"]
        for found in manifests.all("PodDisruptionBudget", "PodMonitor", "Deployment", "StatefulSet")
    ]
    assert selectors
    for selector in selectors:
        assert any(selector.items() <= pod.labels.items() for pod in pods), f"{selector} finds no pod"


def test_budgets_leave_room_for_the_smallest_group(manifests: Manifests) -> None:
    for budget in manifests.all("PodDisruptionBudget"):
        selector, least = budget["spec"]["selector"]["matchLabels"], budget["spec"]["minAvailable"]
        (pod,) = (pod for pod in pods_of(manifests) if selector.items() <= pod.labels.items())
        assert isinstance(least, int), "all that counts for pods that belong to a RayCluster"
        assert least <= pod.fewest


def test_the_front_is_spread_over_machines_if_there_are_several(manifests: Manifests) -> None:
    """One machine is enough, if there is no other: pods are not to wait for one."""
    (front,) = (pod for pod in pods_of(manifests) if pod.name == "decode")
    (constraint,) = front.spec["topologySpreadConstraints"]
    assert constraint["topologyKey"] == "kubernetes.io/hostname"
    assert constraint["whenUnsatisfiable"] == "ScheduleAnyway"
    selected = [pod.name for pod in pods_of(manifests) if selects(constraint["labelSelector"], pod.labels)]
    assert selected == ["decode"]
    assert set(constraint["matchLabelKeys"]) <= front.labels.keys()


def test_metrics_are_scraped_from_a_port_of_every_ray_pod(manifests: Manifests) -> None:
    for monitor in manifests.all("PodMonitor"):
        selector = monitor["spec"]["selector"]["matchLabels"]
        (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
        seen = [pod for pod in pods_of(manifests) if selector.items() <= pod.labels.items()]
        assert len(seen) == 1 + len(manifests.groups)
        for pod in seen:
            ports = {port["name"]: port["containerPort"] for port in pod.spec["containers"][0]["ports"]}
            assert ports[endpoint["port"]] == 8080
            assert set(monitor["spec"]["podTargetLabels"]) <= pod.labels.keys()
    for group in [manifests.cluster["headGroupSpec"], *manifests.groups]:
        assert group["rayStartParams"]["metrics-export-port"] == "8080"


def test_kuberays_services_find_the_head(manifests: Manifests) -> None:
    templates = [group["template"] for group in [manifests.cluster["headGroupSpec"], *manifests.groups]]
    for template in templates:
        assert not CLUSTER_WIDE_LABELS & template["metadata"]["labels"].keys()
        assert not [name for name in template["metadata"]["labels"] if name.startswith("ray.io/")]
    ports = {port["name"] for port in head_of(manifests).spec["containers"][0]["ports"]}
    assert {"gcs-server", "dashboard", "serve"} <= ports


def test_routes_lead_to_the_service_that_kuberay_makes(manifests: Manifests) -> None:
    service = f"{manifests.ray_service['metadata']['name']}-serve-svc"
    for ingress in manifests.all("Ingress"):
        (rule,) = ingress["spec"]["rules"]
        (path,) = rule["http"]["paths"]
        assert path["backend"]["service"] == {"name": service, "port": {"name": "serve"}}
        assert [rule["host"]] == ingress["spec"]["tls"][0]["hosts"]
    for route in manifests.all("HTTPRoute"):
        assert route["spec"]["rules"][0]["backendRefs"] == [{"name": service, "port": 8000}]
    assert not (manifests.all("Ingress") and manifests.all("HTTPRoute"))


def test_the_application_listens_where_routes_lead(manifests: Manifests) -> None:
    options = manifests.serve_config["http_options"]
    assert (options["host"], options["port"]) == ("0.0.0.0", 8000)
    for group in [manifests.cluster["headGroupSpec"], *manifests.groups]:
        ports = {port["name"]: port["containerPort"] for port in group["template"]["spec"]["containers"][0]["ports"]}
        assert ports["serve"] == options["port"]


def test_images_are_few_and_pinned(manifests: Manifests, choice: Choice) -> None:
    project = tomllib.loads((ROOT.parent / "pyproject.toml").read_text())["project"]
    images = {container["image"] for pod in pods_of(manifests) for container in pod.containers()}
    tags = {
        f"registry.example.com/{project['name']}": re.escape(project["version"]),
        "redis": r"8\.\d+",
        **({"fluent/fluent-bit": r"\d+\.\d+\.\d+"} if "log-shipping" in choice.components else {}),
    }
    if choice.overlay == "cpu-mini":
        tags[project["name"]] = tags.pop(f"registry.example.com/{project['name']}")
    found = dict(image.rsplit(":", 1) for image in images)
    assert found.keys() == tags.keys()
    assert len(images) == len(found)
    assert all(re.fullmatch(tags[name], tag) for name, tag in found.items())


def test_images_are_named_in_kustomizations_only() -> None:
    files = [path for path in ROOT.rglob("*.yaml") if path.name != "kustomization.yaml"]
    named = [image for path in files for image in re.findall(r"^\s+(?:- )?image: (.+)$", path.read_text(), re.M)]
    assert set(named) == {"fastervlm-video", "redis", "fluent-bit"}


def test_the_version_of_ray_is_the_one_the_project_runs_with(manifests: Manifests) -> None:
    assert manifests.cluster["rayVersion"] == ray.__version__


def test_a_change_of_settings_is_a_change_of_the_cluster() -> None:
    (settings,) = Manifests.of(Choice("gpu")).names("ConfigMap")
    assert settings not in Manifests.of(Choice("gpu-fractional")).names("ConfigMap")
    assert re.fullmatch(r"fastervlm-settings-[a-z0-9]{10}", settings)


@pytest.mark.parametrize("file", sorted(ROOT.rglob("*.yaml")), ids=lambda path: str(path.relative_to(ROOT)))
def test_every_file_is_used(file: Any) -> None:
    kustomization = (file.parent / "kustomization.yaml").read_text()
    assert file.name == "kustomization.yaml" or file.name in kustomization
