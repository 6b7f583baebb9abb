"""Nothing is cut off that the service would still have answered: pods, clusters and front doors wait for longer."""

import pytest
from ray._private import ray_constants

from tests.k8s.build import Manifests, Object
from tests.k8s.deployments import deployments_of

DRAIN_TIMEOUT = "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"
START_SECONDS = 60
"""For a new replica that needs no model, and for Ray's processes to end."""


@pytest.fixture
def longest_seconds(manifests: Manifests, monkeypatch: pytest.MonkeyPatch) -> float:
    """From the first byte of an upload to the last of the answer."""
    settings = manifests.settings(monkeypatch)
    return settings.upload_timeout_seconds + settings.request_timeout_seconds


def drain_seconds(group: Object) -> float:
    """How long a pod of the group lets Ray move its work."""
    variables = group["template"]["spec"]["containers"][0]["env"]
    (found,) = (variable["value"] for variable in variables if variable["name"] == DRAIN_TIMEOUT)
    return float(found)


def test_ray_knows_the_variable() -> None:
    """Its default is too short for us."""
    assert 0 < ray_constants.RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S < 60


def test_a_worker_that_ends_has_time_for_what_it_has_begun(
    manifests: Manifests, longest_seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages = deployments_of(manifests.settings(monkeypatch)).values()
    for group in manifests.groups:
        drain = drain_seconds(group)
        assert drain >= longest_seconds + START_SECONDS
        assert drain > max(stage._deployment_config.graceful_shutdown_timeout_s for stage in stages)
        assert group["template"]["spec"]["terminationGracePeriodSeconds"] >= drain + START_SECONDS


def test_the_head_does_not_wait_for_what_cannot_move(manifests: Manifests) -> None:
    assert drain_seconds(manifests.cluster["headGroupSpec"]) == 0


def test_an_old_cluster_stays_until_its_last_answer(manifests: Manifests, longest_seconds: float) -> None:
    assert manifests.ray_service["spec"]["rayClusterDeletionDelaySeconds"] >= longest_seconds


def test_front_doors_have_more_patience_than_the_service(manifests: Manifests, longest_seconds: float) -> None:
    waits = []
    for ingress in manifests.all("Ingress"):
        annotations = ingress["metadata"]["annotations"]
        waits += [annotations[f"nginx.ingress.kubernetes.io/proxy-{side}-timeout"] for side in ("read", "send")]
    for route in manifests.all("HTTPRoute"):
        waits += [rule["timeouts"]["request"].removesuffix("s") for rule in route["spec"]["rules"]]
    assert all(int(wait) > longest_seconds for wait in waits)
