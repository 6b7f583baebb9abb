"""What each pod may do."""

from typing import Any

import pytest

from services.tenants import parse_api_keys
from tests.k8s.build import Choice, Manifests
from tests.k8s.conftest import EVERYWHERE
from tests.k8s.pods import Pod, head_of, pods_of, quantity

SERVICE_USER = 10001
REDIS_USER = 999
TOKEN_PLACE = "/var/run/secrets/kubernetes.io/serviceaccount"


@EVERYWHERE
def test_every_container_has_requests_and_limits(manifests: Manifests) -> None:
    for pod in pods_of(manifests):
        for container in pod.containers():
            requests, limits = container["resources"]["requests"], container["resources"]["limits"]
            for resource in ("cpu", "memory"):
                assert 0 < quantity(requests[resource]) <= quantity(limits[resource])
            assert requests.get("nvidia.com/gpu") == limits.get("nvidia.com/gpu")


@EVERYWHERE
def test_every_container_is_restricted(manifests: Manifests) -> None:
    for pod in pods_of(manifests):
        own = pod.spec["securityContext"]
        user = REDIS_USER if "redis" in pod.name else SERVICE_USER
        assert own["runAsNonRoot"] is True
        assert {own["runAsUser"], own["runAsGroup"], own["fsGroup"]} == {user}
        assert own["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in pod.containers():
            context = container["securityContext"]
            assert context["allowPrivilegeEscalation"] is False
            assert context["readOnlyRootFilesystem"] is True
            assert context["capabilities"] == {"drop": ["ALL"]}
            assert not {"privileged", "runAsUser"} & context.keys()
        assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.spec.keys()
        assert not [volume for volume in pod.spec.get("volumes", []) if "hostPath" in volume]


@EVERYWHERE
def test_the_namespace_enforces_the_strictest_standard(manifests: Manifests) -> None:
    assert manifests.one("Namespace")["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


def mounts(container: Any) -> dict[str, str]:
    """Volumes by path."""
    return {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}


def test_what_ray_writes_to_is_there(manifests: Manifests) -> None:
    for pod in pods_of(manifests):
        if "ray.io/cluster" in pod.labels:
            (volumes,) = [{volume["name"]: volume for volume in pod.spec["volumes"]}]
            found = mounts(pod.spec["containers"][0])
            for place in ("/tmp", "/var/lib/fastervlm"):
                assert "sizeLimit" in volumes[found[place]]["emptyDir"]
    assert manifests.variables["FASTERVLM_RUNTIME_DIR"].startswith("/var/lib/fastervlm/")
    assert manifests.variables["HOME"] == "/var/lib/fastervlm"
    assert mounts(manifests.cluster["autoscalerOptions"])["/tmp"] == "tmp"


@EVERYWHERE
def test_no_pod_is_given_a_token_but_the_autoscaler(manifests: Manifests) -> None:
    for pod in pods_of(manifests):
        assert pod.spec["automountServiceAccountToken"] is False
        holders = [container["name"] for container in pod.containers() if TOKEN_PLACE in mounts(container)]
        assert holders == (["autoscaler"] if pod.name == "headgroup" else [])
        if pod.name != "headgroup":
            assert pod.spec["serviceAccountName"] in manifests.names("ServiceAccount")
        else:
            assert "serviceAccountName" not in pod.spec  # KubeRay makes one with the autoscaler's rights
    for account in manifests.all("ServiceAccount"):
        assert account["automountServiceAccountToken"] is False


def test_the_autoscalers_token_is_complete() -> None:
    volumes = {volume["name"]: volume for volume in head_of(Manifests.of(Choice("gpu"))).spec["volumes"]}
    paths = set()
    for source in volumes["kubernetes-api"]["projected"]["sources"]:
        ((_, found),) = source.items()
        paths |= {found["path"]} if "path" in found else {item["path"] for item in found["items"]}
    assert paths == {"token", "ca.crt", "namespace"}


def has_secret(pod: Pod, name: str) -> bool:
    """Whether a secret can be read in a pod."""
    return f"'{name}'" in str(pod.spec)


def test_secrets_are_where_they_are_needed_and_nowhere_else(manifests: Manifests) -> None:
    needed = {
        "fastervlm-api-keys": {"decode"},
        "fastervlm-s3": {"decode", "encode"},
        "fastervlm-gcs-redis": {"fastervlm-gcs-redis"},  # and the head, through KubeRay
        "fastervlm-redis": {"fastervlm-redis", "headgroup", "decode", "encode", "generate"},
    }
    for name in manifests.names("Secret"):
        holders = {pod.name for pod in pods_of(manifests) if has_secret(pod, name)}
        assert holders == needed[name] & {pod.name for pod in pods_of(manifests)}


def test_api_keys_are_a_file_that_the_service_can_read(manifests: Manifests) -> None:
    secret = manifests.one("Secret", "fastervlm-api-keys")["stringData"]
    path = manifests.variables["FASTERVLM_API_KEYS_FILE"]
    (decode,) = (pod for pod in pods_of(manifests) if pod.name == "decode")
    (volume,) = (volume for volume in decode.spec["volumes"] if volume["name"] == "api-keys")
    assert mounts(decode.spec["containers"][0])[path.rpartition("/")[0]] == "api-keys"
    assert path.rpartition("/")[2] in secret
    assert volume["secret"]["defaultMode"] == 0o440
    (example,) = parse_api_keys(secret["api-keys"].split())
    assert example.digest == "0" * 64, "a placeholder that no key opens"


def test_ray_asks_for_a_token(manifests: Manifests) -> None:
    assert manifests.cluster["authOptions"] == {"mode": "token"}


def test_no_secret_is_in_the_settings(manifests: Manifests) -> None:
    assert not [name for name in manifests.variables if name.endswith(("API_KEYS", "REDIS_URL", "SALT", "_KEY"))]


@pytest.mark.parametrize("overlay", ["cpu-mini", "gpu"])
def test_the_token_cache_keeps_nothing_and_throws_away_the_oldest(overlay: str) -> None:
    container = Manifests.of(Choice(overlay)).one("Deployment")["spec"]["template"]["spec"]["containers"][0]
    options = dict(zip(container["args"][1::2], container["args"][2::2], strict=True))
    assert options["--maxmemory-policy"] == "allkeys-lru"
    assert (options["--save"], options["--appendonly"]) == ("", "no")
    most = {"gb": 1024**3, "mb": 1024**2}[options["--maxmemory"][-2:]] * int(options["--maxmemory"][:-2])
    assert most < 0.85 * quantity(container["resources"]["limits"]["memory"]), "Redis itself needs some, too"


def test_rays_own_state_is_never_thrown_away() -> None:
    manifests = Manifests.of(Choice("gpu", ("gcs-fault-tolerance",)))
    container = manifests.one("StatefulSet")["spec"]["template"]["spec"]["containers"][0]
    options = dict(zip(container["args"][1::2], container["args"][2::2], strict=True))
    assert (options["--maxmemory-policy"], options["--appendonly"]) == ("noeviction", "yes")
    address = manifests.cluster["gcsFaultToleranceOptions"]["redisAddress"]
    assert address.partition(":")[0] in manifests.names("Service") - {"fastervlm-redis"}
