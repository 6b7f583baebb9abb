"""What fills the model volume before the service is installed."""

import pytest

from tests.k8s.build import FETCH_MODEL, WITH_A_MODEL_VOLUME, Choice, Manifests, Object
from tests.k8s.network import End, allowed
from tests.k8s.pods import Pod, pods_of
from tests.k8s.test_network import CLUSTER_DNS, EVERY_PORT, HTTPS, METADATA, NEIGHBOUR, PRIVATE, PUBLIC
from tests.k8s.test_security import mounts


@pytest.fixture
def manifests() -> Manifests:
    return Manifests.of(FETCH_MODEL)


@pytest.fixture
def pod(manifests: Manifests) -> Pod:
    (found,) = pods_of(manifests)
    return found


def by_name(manifests: Manifests) -> dict[tuple[str, str], Object]:
    return {(found["kind"], found["metadata"]["name"]): found for found in manifests.objects}


@pytest.mark.parametrize("overlay", WITH_A_MODEL_VOLUME)
def test_the_service_can_be_applied_on_top_of_it(manifests: Manifests, overlay: str) -> None:
    """What both contain is the same in both, so that the second one changes nothing of the first."""
    first, second = by_name(manifests), by_name(Manifests.of(Choice(overlay)))
    shared = first.keys() & second.keys()
    assert {kind for kind, _ in shared} == {"Namespace", "ServiceAccount", "NetworkPolicy", "PersistentVolumeClaim"}
    assert {key: first[key] for key in shared} == {key: second[key] for key in shared}
    assert {kind for kind, _ in first.keys() - shared} == {"Job", "NetworkPolicy"}


@pytest.mark.parametrize("overlay", WITH_A_MODEL_VOLUME)
def test_the_checkpoint_is_put_where_the_service_looks_for_it(pod: Pod, overlay: str) -> None:
    (container,) = pod.containers()
    target = container["args"][container["args"].index("--local-dir") + 1]
    assert Manifests.of(Choice(overlay)).variables["FASTERVLM_MODEL"] == target
    assert mounts(container)[target.rpartition("/")[0]] == "models"


def test_all_that_is_written_is_on_a_mount(pod: Pod) -> None:
    (container,) = pod.containers()
    places = [variable["value"] for variable in container["env"] if variable["name"] in {"HOME", "HF_HOME"}]
    assert len(places) == 2
    assert all(any(f"{place}/".startswith(f"{path}/") for path in mounts(container)) for place in places)


def test_it_reaches_names_and_public_addresses_over_https_and_nobody_reaches_it(manifests: Manifests, pod: Pod) -> None:
    own = End(pod.labels)
    for protocol in ("UDP", "TCP"):
        assert allowed(manifests, own, CLUSTER_DNS, 53, protocol)
    for address in PUBLIC:
        assert {port for port in EVERY_PORT if allowed(manifests, own, End(address=address), port)} == {HTTPS}
    for target in (NEIGHBOUR, *(End(address=address) for address in (PRIVATE, *METADATA))):
        assert not any(allowed(manifests, own, target, port) for port in EVERY_PORT)
    for source in (NEIGHBOUR, own, End({}, "monitoring"), End({}, "ingress-nginx"), End(address=PUBLIC[0])):
        assert not any(allowed(manifests, source, own, port) for port in EVERY_PORT)
