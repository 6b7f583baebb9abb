"""Who may talk to whom under NetworkPolicies: the rules of Kubernetes' documentation, for the fields that are used.

A connection is allowed if the policies of the one end let it out and those of the other let it in. A pod that no policy
of a direction selects is open in that direction.
"""

import ipaddress
from dataclasses import dataclass, field
from typing import Any

from tests.k8s.build import Manifests, Object


@dataclass(frozen=True)
class End:
    """One end of a connection: a pod (labels, its namespace's name), or an address outside of the cluster."""

    labels: dict[str, str] = field(default_factory=dict)
    namespace: str = "fastervlm-video"
    address: str | None = None


def selects(selector: Object, labels: dict[str, str]) -> bool:
    """Whether a label selector finds these labels."""
    for rule in selector.get("matchExpressions", []):
        inside = labels.get(rule["key"]) in rule["values"]
        if inside != {"In": True, "NotIn": False}[rule["operator"]]:
            return False
    return bool(selector.get("matchLabels", {}).items() <= labels.items())


def _covers(block: Object, address: str) -> bool:
    def inside(network: str) -> bool:
        return ipaddress.ip_address(address) in ipaddress.ip_network(network)

    return inside(block["cidr"]) and not any(inside(network) for network in block.get("except", []))


def _is_peer(peer: Object, other: End) -> bool:
    if "ipBlock" in peer:
        return other.address is not None and _covers(peer["ipBlock"], other.address)
    if other.address is not None:
        return False
    where = peer.get("namespaceSelector")
    here = other.namespace == "fastervlm-video" if where is None else _is_namespace(where, other.namespace)
    return here and selects(peer.get("podSelector", {}), other.labels)


def _is_namespace(selector: Object, name: str) -> bool:
    return selects(selector, {"kubernetes.io/metadata.name": name})


def _lets_through(rule: Object, side: str, other: End, port: int, protocol: str) -> bool:
    ports: Any = rule.get("ports")
    at_port = ports is None or {"protocol": protocol, "port": port} in ports
    return at_port and (side not in rule or any(_is_peer(peer, other) for peer in rule[side]))


def _open(manifests: Manifests, direction: str, own: End, other: End, port: int, protocol: str) -> bool:
    if own.address is not None or own.namespace != "fastervlm-video":
        return True  # not ours to say
    side = {"Ingress": "from", "Egress": "to"}[direction]
    policies = [
        policy["spec"]
        for policy in manifests.all("NetworkPolicy")
        if direction in policy["spec"]["policyTypes"] and selects(policy["spec"]["podSelector"], own.labels)
    ]
    rules = [rule for policy in policies for rule in policy.get(direction.lower(), [])]
    return not policies or any(_lets_through(rule, side, other, port, protocol) for rule in rules)


def allowed(manifests: Manifests, source: End, target: End, port: int, protocol: str = "TCP") -> bool:
    """Whether ``source`` may open a connection to ``target``."""
    out = _open(manifests, "Egress", source, target, port, protocol)
    return out and _open(manifests, "Ingress", target, source, port, protocol)
