"""What Kubernetes' API server would check of an object's form, as JSON schemas."""

import json
from functools import cache
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator

CRD = Path(__file__).parent / "crds" / "rayservice-v1.json"
_PRESERVE = "x-kubernetes-preserve-unknown-fields"
_NAME: Any = {"type": "string", "pattern": r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"}
_LABELS: Any = {"type": "object", "additionalProperties": {"type": "string"}}
_METADATA: Any = {
    "type": "object",
    "properties": {"name": _NAME, "namespace": _NAME, "labels": _LABELS, "annotations": _LABELS},
    "required": ["name"],
    "additionalProperties": False,
}


def closed(node: Any) -> Any:
    """A structural schema in which unknown fields are errors; the API server would drop or refuse them."""
    if isinstance(node, list):
        return [closed(item) for item in node]
    if not isinstance(node, dict):
        return node
    made = {
        key: {name: closed(inner) for name, inner in value.items()} if key == "properties" else closed(value)
        for key, value in node.items()
    }
    if "properties" in node and "additionalProperties" not in node and not node.get(_PRESERVE):
        made["additionalProperties"] = False
    return made


@cache
def ray_service_validator() -> Draft202012Validator:
    """For a RayService. Rules in CEL (``x-kubernetes-validations``) are not evaluated."""
    schema = closed(json.loads(CRD.read_text()))
    schema["properties"]["metadata"] = _METADATA
    schema["required"] = ["apiVersion", "kind", "metadata", "spec"]
    return Draft202012Validator(schema)


def _object(properties: dict[str, Any], *required: str) -> Any:
    return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}


def _list(items: Any) -> Any:
    return {"type": "array", "items": items, "minItems": 1}


_STRINGS = {"type": "array", "items": {"type": "string"}}
_DURATION: Any = {"type": "string", "pattern": r"^\d+(ms|s|m|h)$"}
_PORT: Any = {"type": "integer", "minimum": 1, "maximum": 65535}

_POD_MONITOR = _object(
    {
        "selector": _object({"matchLabels": _LABELS}, "matchLabels"),
        "podTargetLabels": _STRINGS,
        "podMetricsEndpoints": _list(
            _object({"port": {"type": "string"}, "path": {"type": "string"}, "interval": _DURATION}, "port")
        ),
    },
    "selector",
    "podMetricsEndpoints",
)
_ALERT = _object(
    {
        "alert": {"type": "string", "pattern": r"^[A-Za-z]+$"},
        "expr": {"type": "string"},
        "for": _DURATION,
        "labels": _LABELS,
        "annotations": _LABELS,
    },
    "alert",
    "expr",
)
_PROMETHEUS_RULE = _object(
    {"groups": _list(_object({"name": {"type": "string"}, "rules": _list(_ALERT)}, "name", "rules"))}, "groups"
)
_MATCH = _object({"path": _object({"type": {"enum": ["Exact", "PathPrefix"]}, "value": {"type": "string"}}, "value")})
_HTTP_ROUTE = _object(
    {
        "parentRefs": _list(_object({"name": _NAME, "namespace": _NAME}, "name")),
        "hostnames": _list(_NAME),
        "rules": _list(
            _object(
                {
                    "matches": _list(_MATCH),
                    "timeouts": _object({"request": _DURATION, "backendRequest": _DURATION}),
                    "backendRefs": _list(_object({"name": _NAME, "port": _PORT}, "name", "port")),
                },
                "backendRefs",
            )
        ),
    },
    "parentRefs",
    "rules",
)

OTHERS: dict[tuple[str, str], Draft202012Validator] = {
    kind: Draft202012Validator(
        _object({"apiVersion": {}, "kind": {}, "metadata": _METADATA, "spec": spec}, "metadata", "spec")
    )
    for kind, spec in {
        ("monitoring.coreos.com/v1", "PodMonitor"): _POD_MONITOR,
        ("monitoring.coreos.com/v1", "PrometheusRule"): _PROMETHEUS_RULE,
        ("gateway.networking.k8s.io/v1", "HTTPRoute"): _HTTP_ROUTE,
    }.items()
}
"""Written by hand for the fields that are used, as those kinds' own definitions are not part of this repository."""
