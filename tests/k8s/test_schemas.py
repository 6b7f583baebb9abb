"""Every object has the form that its kind has."""

import copy
import json
from collections.abc import Callable
from functools import cache
from typing import Any

import kubernetes_validate
import pytest

from tests.k8s.build import CHOICES, FETCH_MODEL, Choice, Manifests, Object
from tests.k8s.conftest import EVERYWHERE
from tests.k8s.crds.trim import trimmed, without_descriptions
from tests.k8s.schemas import CRD, OTHERS, closed, ray_service_validator

KUBERNETES = "1.34.0"
"""Objects must be valid in this version, and unknown fields are errors."""
DEPRECATED = ("serviceUnhealthySecondThreshold", "deploymentUnhealthySecondThreshold")
LARGEST_DEFINITION_BYTES = 300_000


def validate(found: Object) -> None:
    """Raises if the API server would refuse the object, or drop a part of it."""
    kind = found["apiVersion"], found["kind"]
    if kind == ("ray.io/v1", "RayService"):
        ray_service_validator().validate(found)
    elif kind in OTHERS:
        OTHERS[kind].validate(found)
    else:
        kubernetes_validate.validate(found, KUBERNETES, strict=True)


@cache
def validate_once(text: str) -> None:
    """Most objects are the same in many choices."""
    validate(json.loads(text))


@pytest.mark.parametrize("choice", [*CHOICES, FETCH_MODEL], ids=str)
def test_every_object_is_valid(choice: Choice) -> None:
    manifests = Manifests.of(choice)
    assert len(manifests.objects) > (5 if choice == FETCH_MODEL else 15)
    for found in manifests.objects:
        validate_once(json.dumps(found))


@EVERYWHERE
def test_names_are_unique(manifests: Manifests) -> None:
    names = [(found["kind"], found["metadata"]["name"]) for found in manifests.objects]
    assert len(names) == len(set(names))


@EVERYWHERE
def test_everything_is_in_the_namespace(manifests: Manifests) -> None:
    (namespace,) = manifests.names("Namespace")
    for found in manifests.objects:
        assert found["kind"] == "Namespace" or found["metadata"]["namespace"] == namespace


def test_nothing_deprecated_is_used(manifests: Manifests) -> None:
    assert not set(DEPRECATED) & manifests.ray_service["spec"].keys()


def _worker(found: Object) -> Object:
    group: Object = found["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]
    return group


@pytest.mark.parametrize(
    "damage",
    [
        lambda found: found["spec"].update(serveConfig="x"),
        lambda found: found["spec"].update(serveConfigV2={"applications": []}),
        lambda found: found["spec"]["rayClusterConfig"].update(enableAutoscaling=True),
        lambda found: found["spec"]["rayClusterConfig"]["autoscalerOptions"].update(upscalingMode="Fast"),
        lambda found: _worker(found).pop("groupName"),
        lambda found: _worker(found).update(maxReplicas="8"),
        lambda found: _worker(found)["rayStartParams"].update(block=True),
        lambda found: _worker(found)["template"]["spec"]["containers"][0].update(securitycontext={}),
        lambda found: _worker(found)["template"]["spec"]["containers"][0]["resources"]["limits"].update(cpu="two"),
    ],
)
def test_a_damaged_ray_service_is_refused(damage: Callable[[Object], Any]) -> None:
    found = copy.deepcopy(Manifests.of(Choice("gpu")).ray_service)
    assert ray_service_validator().is_valid(found)
    damage(found)
    assert not ray_service_validator().is_valid(found)


@pytest.mark.parametrize(
    "kind", ["NetworkPolicy", "PodDisruptionBudget", "Deployment", "PodMonitor", "PrometheusRule", "Ingress"]
)
def test_an_unknown_field_of_another_kind_is_refused(kind: str) -> None:
    found = copy.deepcopy(Manifests.of(Choice("gpu")).all(kind)[0])
    validate(found)
    found["spec"]["noSuchField"] = 1
    with pytest.raises(Exception, match="noSuchField"):
        validate(found)


def test_the_definition_is_small_and_says_where_it_is_from() -> None:
    text = CRD.read_text()
    assert len(text) < LARGEST_DEFINITION_BYTES
    assert "KubeRay 1.7" in text[:200]
    assert "Apache-2.0" in text[:200]


def test_trimming_keeps_fields_whose_name_is_description() -> None:
    schema = {"description": "prose", "properties": {"description": {"type": "string", "description": "prose"}}}
    assert without_descriptions(schema) == {"properties": {"description": {"type": "string"}}}
    versions = [{"name": "v1alpha1"}, {"name": "v1", "schema": {"openAPIV3Schema": schema}}]
    made = trimmed({"spec": {"versions": versions}}, "9.9")
    assert made.pop("$comment").startswith("RayService v1 of KubeRay 9.9")
    assert made == without_descriptions(schema)


def test_only_schemas_that_name_their_fields_are_closed() -> None:
    free = {"type": "object", "x-kubernetes-preserve-unknown-fields": True, "properties": {"a": {}}}
    labels = {"type": "object", "additionalProperties": {"type": "string"}}
    made = closed({"properties": {"free": free, "labels": labels, "list": {"items": {"properties": {"a": {}}}}}})
    assert made["additionalProperties"] is False
    assert "additionalProperties" not in made["properties"]["free"]
    assert made["properties"]["labels"] == labels
    assert made["properties"]["list"]["items"]["additionalProperties"] is False
