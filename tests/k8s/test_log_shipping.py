"""What Ray and the stages log is printed by a container beside them."""

import logging
import re
from fnmatch import fnmatch
from typing import Any

import pytest
import yaml
from ray.serve._private.common import ServeComponentType
from ray.serve._private.logging_utils import ServeFormatter
from ray.serve._private.utils import get_component_file_name

from tests.k8s.build import OVERLAYS, Choice, Manifests, Object
from tests.k8s.pods import Pod, pods_of
from tests.k8s.test_security import mounts

LOGS = "/tmp/ray/session_latest/logs"


@pytest.fixture(params=OVERLAYS)
def manifests(request: pytest.FixtureRequest) -> Manifests:
    return Manifests.of(Choice(request.param, ("log-shipping",)))


@pytest.fixture
def inputs(manifests: Manifests) -> dict[str, Object]:
    """Those of Fluent Bit, by tag."""
    return {found["tag"]: found for found in configuration(manifests)["pipeline"]["inputs"]}


def configuration(manifests: Manifests) -> Any:
    (found,) = (found["data"] for found in manifests.all("ConfigMap") if "fluent-bit.yaml" in found["data"])
    return yaml.safe_load(found["fluent-bit.yaml"])


def sidecars(pod: Pod) -> list[Object]:
    return [found for found in pod.spec.get("initContainers", []) if "fluent-bit" in found["image"]]


def reads(found: Object, file: str) -> bool:
    return any(fnmatch(f"{LOGS}/{file}", pattern) for pattern in found["path"].split(","))


def test_every_ray_pod_has_one_that_outlives_ray(manifests: Manifests) -> None:
    for pod in pods_of(manifests):
        found = sidecars(pod)
        assert len(found) == ("ray.io/cluster" in pod.labels)
        assert all(container["restartPolicy"] == "Always" for container in found)


def test_it_sees_rays_files_and_writes_to_none_of_them(manifests: Manifests, inputs: dict[str, Object]) -> None:
    for pod in (pod for pod in pods_of(manifests) if sidecars(pod)):
        (sidecar,) = sidecars(pod)
        writable = {mount["mountPath"] for mount in sidecar["volumeMounts"] if not mount.get("readOnly")}
        assert mounts(sidecar)["/tmp"] == mounts(pod.spec["containers"][0])["/tmp"]
        assert writable == {found["db"].rpartition("/")[0] for found in inputs.values()}
        config = sidecar["command"][sidecar["command"].index("-c") + 1]
        volumes = {volume["name"]: volume for volume in pod.spec["volumes"]}
        source = volumes[mounts(sidecar)[config.rpartition("/")[0]]]["configMap"]["name"]
        assert config.rpartition("/")[2] in manifests.one("ConfigMap", source)["data"]


def test_it_reads_what_serve_writes(inputs: dict[str, Object]) -> None:
    replica = get_component_file_name("fastervlm-video_Api", "x1", ServeComponentType.REPLICA, ".log")
    for name in (replica, get_component_file_name("proxy", "10.0.0.1", None, ".log")):
        assert reads(inputs["serve"], f"serve/{name}")
        assert not reads(inputs["serve"], f"serve/{name}.1"), "the same lines again"
    assert not reads(inputs["ray"], f"serve/{replica}")
    for name in ("raylet.out", "gcs_server.err", "worker-0f-ffffffff-123.err"):
        assert reads(inputs["ray"], name)


def test_what_serve_prints_besides_is_not_shipped_twice(manifests: Manifests) -> None:
    (rule,) = configuration(manifests)["pipeline"]["filters"]
    key, _, pattern = rule["exclude"].partition(" ")
    record = logging.LogRecord("ray.serve", logging.WARNING, "file.py", 1, "answered", None, None)
    assert (rule["match"], key) == ("ray", "log")
    assert re.search(pattern, ServeFormatter("fastervlm-video_Api", "x1").format(record))
    record.request_id = "my-request.7"
    assert re.search(pattern, ServeFormatter("fastervlm-video_Api", "x1").format(record))
    for line in ("Fatal Python error: Segmentation fault", "*** SIGABRT received at time=1 on cpu 0 ***", "ERROR: no"):
        assert not re.search(pattern, line)


def test_lines_are_printed_as_they_are(manifests: Manifests, inputs: dict[str, Object]) -> None:
    found = configuration(manifests)
    assert {parser["name"]: parser["format"] for parser in found["parsers"]} == {inputs["serve"]["parser"]: "json"}
    (output,) = found["pipeline"]["outputs"]
    assert (output["name"], output["format"], output["json_date_key"]) == ("stdout", "json_lines", False)
