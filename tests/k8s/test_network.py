"""Who may talk to whom."""

import pytest

from tests.k8s.build import Choice, Manifests
from tests.k8s.network import End, allowed, selects
from tests.k8s.pods import pods_of

METADATA = (
    *("169.254.169.254", "169.254.170.2", "169.254.170.23", "100.100.100.200"),
    *("fd00:ec2::254", "fd00:ec2::23", "fd20:ce::254", "fe80::a9fe:a9fe"),
)
"""Where clouds hand out the credentials of machines, of containers and of pods."""
PUBLIC = ("203.0.113.7", "2001:db8::7")
PRIVATE = "10.3.2.1"
CLUSTER_DNS = End({"k8s-app": "kube-dns"}, "kube-system")
KUBERAY = End({"app.kubernetes.io/component": "kuberay-operator"}, "kuberay-system")
PROMETHEUS = End({"app": "prometheus"}, "monitoring")
STRANGER = End({"app.kubernetes.io/part-of": "fastervlm-video", "app.kubernetes.io/component": "ray"}, "elsewhere")
NEIGHBOUR = End({"app": "debug"})
HTTP, METRICS, DASHBOARD, GCS, REDIS, HTTPS, RAYLET = 8000, 8080, 8265, 6379, 6379, 443, 34567
EVERY_PORT = (HTTP, METRICS, DASHBOARD, GCS, HTTPS, RAYLET, 53)


def ends(manifests: Manifests) -> dict[str, End]:
    """Our pods by name."""
    return {pod.name: End(pod.labels) for pod in pods_of(manifests)}


def ray_ends(manifests: Manifests) -> dict[str, End]:
    """Those of them that are Ray's."""
    return {name: end for name, end in ends(manifests).items() if "ray.io/cluster" in end.labels}


def ways_out(manifests: Manifests, target: End, port: int, protocol: str = "TCP") -> set[str]:
    """Our pods that may connect to ``target``."""
    return {name for name, end in ends(manifests).items() if allowed(manifests, end, target, port, protocol)}


def ways_in(manifests: Manifests, source: End, port: int) -> set[str]:
    """Our pods that ``source`` may connect to."""
    return {name for name, end in ends(manifests).items() if allowed(manifests, source, end, port)}


def test_every_policy_is_about_pods_that_exist(manifests: Manifests) -> None:
    labels = [pod.labels for pod in pods_of(manifests)]
    for policy in manifests.all("NetworkPolicy"):
        rules = [*policy["spec"].get("ingress", []), *policy["spec"].get("egress", [])]
        peers = [peer for rule in rules for peer in (*rule.get("from", []), *rule.get("to", []))]
        own = [peer["podSelector"] for peer in peers if "podSelector" in peer and "namespaceSelector" not in peer]
        for selector in [policy["spec"]["podSelector"], *own]:
            assert any(selects(selector, found) for found in labels), policy["metadata"]["name"]


def test_what_no_policy_names_may_do_nothing(manifests: Manifests) -> None:
    other_pods = [*ends(manifests).values(), CLUSTER_DNS, *(End(address=address) for address in PUBLIC)]
    for other in other_pods:
        for port in EVERY_PORT:
            assert not allowed(manifests, NEIGHBOUR, other, port)
    assert not {port: names for port in EVERY_PORT if (names := ways_in(manifests, NEIGHBOUR, port))}


def test_strangers_reach_nothing_whatever_their_labels(manifests: Manifests) -> None:
    for source in (STRANGER, End(address=PUBLIC[0]), End(namespace="default")):
        for port in EVERY_PORT:
            assert ways_in(manifests, source, port) == set()


def test_ray_pods_reach_each_other_on_any_port(manifests: Manifests) -> None:
    found = ray_ends(manifests)
    for source in found.values():
        for target in found.values():
            assert all(allowed(manifests, source, target, port) for port in EVERY_PORT)


def test_the_token_cache_is_for_ray_alone_and_goes_nowhere(manifests: Manifests) -> None:
    cache, ray = ends(manifests)["fastervlm-redis"], ray_ends(manifests)
    assert ways_out(manifests, cache, REDIS) == set(ray)
    assert not allowed(manifests, next(iter(ray.values())), cache, 22)
    for target in [*ray.values(), CLUSTER_DNS, End(address=PUBLIC[0])]:
        assert not any(allowed(manifests, cache, target, port) for port in EVERY_PORT)


def test_users_come_through_the_front_door_only(manifests: Manifests, choice: Choice) -> None:
    workers = ray_ends(manifests).keys() - {"headgroup"}
    doors = {
        "ingress-nginx": "gateway" not in choice.components,
        "envoy-gateway-system": "gateway" in choice.components,
    }
    for namespace, used in doors.items():
        door = End({"app": "controller"}, namespace)
        assert ways_in(manifests, door, HTTP) == (workers if used else set())
        for port in {*EVERY_PORT} - {HTTP}:
            assert ways_in(manifests, door, port) == set()


def test_prometheus_sees_metrics_and_nothing_else(manifests: Manifests) -> None:
    assert ways_in(manifests, PROMETHEUS, METRICS) == set(ray_ends(manifests))
    for port in {*EVERY_PORT} - {METRICS}:
        assert ways_in(manifests, PROMETHEUS, port) == set()


def test_the_operator_reaches_the_head(manifests: Manifests) -> None:
    for port in EVERY_PORT:
        assert ways_in(manifests, KUBERAY, port) == ({"headgroup"} if port in (DASHBOARD, HTTP) else set())
    assert ways_in(manifests, End({}, "kuberay-system"), DASHBOARD) == set()


def test_names_can_be_looked_up(manifests: Manifests) -> None:
    for target in (CLUSTER_DNS, End(address="169.254.20.10")):
        for protocol in ("UDP", "TCP"):
            assert ways_out(manifests, target, 53, protocol) == set(ray_ends(manifests))
    assert ways_out(manifests, End({}, "kube-system"), 53, "UDP") == set()


def test_the_machines_credentials_are_out_of_reach(manifests: Manifests) -> None:
    for address in METADATA:
        for port in (80, *EVERY_PORT):
            assert ways_out(manifests, End(address=address), port) == set()


def test_few_pods_reach_addresses_outside_and_on_few_ports(manifests: Manifests, choice: Choice) -> None:
    out = {"headgroup"}  # to the Kubernetes API
    out |= {"decode", "encode"} if "s3-blobs" in choice.components else set()
    for address in PUBLIC:
        assert ways_out(manifests, End(address=address), HTTPS) == out
        assert ways_out(manifests, End(address=address), 6443) == {"headgroup"}
        for port in (80, 22, 53, HTTP, RAYLET):
            assert ways_out(manifests, End(address=address), port) == set()
    assert ways_out(manifests, End(address=PRIVATE), HTTPS) == {"headgroup"}


def test_rays_own_redis_is_for_the_head_alone() -> None:
    manifests = Manifests.of(Choice("gpu", ("gcs-fault-tolerance",)))
    state = ends(manifests)["fastervlm-gcs-redis"]
    assert ways_out(manifests, state, REDIS) == {"headgroup"}
    cleaner = End({**ray_ends(manifests)["headgroup"].labels, "ray.io/node-type": "redis-cleanup"})
    assert allowed(manifests, cleaner, state, REDIS)
    assert not allowed(manifests, state, End(address=PUBLIC[0]), HTTPS)


@pytest.mark.parametrize(
    ("selector", "found"),
    [
        ({}, True),
        ({"matchLabels": {"a": "1"}}, True),
        ({"matchLabels": {"a": "1", "b": "2"}}, False),
        ({"matchExpressions": [{"key": "a", "operator": "In", "values": ["0", "1"]}]}, True),
        ({"matchExpressions": [{"key": "a", "operator": "NotIn", "values": ["1"]}]}, False),
        ({"matchExpressions": [{"key": "b", "operator": "NotIn", "values": ["1"]}]}, True),
        ({"matchLabels": {"a": "1"}, "matchExpressions": [{"key": "b", "operator": "In", "values": ["1"]}]}, False),
    ],
)
def test_selectors_are_read_as_kubernetes_reads_them(selector: dict[str, object], found: bool) -> None:
    assert selects(selector, {"a": "1"}) is found
