"""Replicas fit the pods of their group, the fewest and the most of them."""

from typing import Any

import pytest

from tests.k8s.build import OVERLAYS, Choice, Manifests
from tests.k8s.deployments import deployments_of
from tests.k8s.pods import Pod, head_of, worker_of

GROUP_RESOURCES = {"decode", "encode", "generate"}

Demand = dict[str, float]


class Deployed:
    """What Serve would ask Ray for, for one stage."""

    def __init__(self, deployment: Any) -> None:
        options, scaling = deployment.ray_actor_options, deployment._deployment_config.autoscaling_config
        self.name: str = deployment.name
        self.custom: Demand = options["resources"]
        self.demand: Demand = {"CPU": options["num_cpus"], "GPU": options["num_gpus"], **self.custom}
        self.fewest, self.most = scaling.min_replicas, scaling.max_replicas


@pytest.fixture(params=OVERLAYS)
def manifests(request: pytest.FixtureRequest) -> Manifests:
    """The overlays: no component changes what there is room for."""
    return Manifests.of(Choice(request.param))


@pytest.fixture
def deployed(manifests: Manifests, monkeypatch: pytest.MonkeyPatch) -> list[Deployed]:
    """The stages as the application's builder makes them from the settings."""
    return [Deployed(found) for found in deployments_of(manifests.settings(monkeypatch)).values()]


def workers(manifests: Manifests) -> list[Pod]:
    return [worker_of(manifests, group) for group in manifests.groups]


def group_of(stage: Deployed, pods: list[Pod]) -> Pod:
    """The one group whose pods offer what binds a stage to it."""
    (pod,) = (pod for pod in pods if stage.custom.keys() <= pod.offers.keys())
    return pod


def fits(demand: Demand, room: Demand) -> bool:
    return all(amount <= room.get(name, 0.0) + 1e-9 for name, amount in demand.items())


def pods_needed(pod: Pod, demands: list[Demand]) -> int:
    """How many pods take these replicas if each, the largest first, goes to the first pod that has room for it."""
    rooms: list[Demand] = []
    for demand in sorted(demands, key=lambda found: (found["GPU"], found["CPU"]), reverse=True):
        assert fits(demand, pod.offers), f"{demand} fits no pod of {pod.name}, which offers {pod.offers}"
        room = next((room for room in rooms if fits(demand, room)), None)
        if room is None:
            room = dict(pod.offers)
            rooms.append(room)
        for name, amount in demand.items():
            room[name] = room.get(name, 0.0) - amount
    return len(rooms)


def test_every_stage_is_bound_to_a_group(manifests: Manifests, deployed: list[Deployed]) -> None:
    assert {stage.name for stage in deployed} == {"Api", "Decoder", "Encoder", "Generator"}
    for stage in deployed:
        (name,) = stage.custom
        assert name in GROUP_RESOURCES
    places = {stage.name: group_of(stage, workers(manifests)).name for stage in deployed}
    assert places["Api"] == places["Decoder"] == "decode"
    assert places["Encoder"] == "encode"


def test_every_group_has_work(manifests: Manifests, deployed: list[Deployed]) -> None:
    used = {group_of(stage, workers(manifests)).name for stage in deployed}
    assert used == {pod.name for pod in workers(manifests)}


def test_the_head_has_none(manifests: Manifests, deployed: list[Deployed]) -> None:
    head = head_of(manifests)
    assert head.offers["CPU"] == 0
    assert not any(fits(stage.demand, head.offers) for stage in deployed)
    assert manifests.ray_service["spec"]["excludeHeadPodFromServeSvc"] is True


def test_a_group_has_room_for_its_stages(manifests: Manifests, deployed: list[Deployed]) -> None:
    for pod in workers(manifests):
        stages = [stage for stage in deployed if group_of(stage, workers(manifests)) == pod]
        fewest = [stage.demand for stage in stages for _ in range(stage.fewest)]
        most = [stage.demand for stage in stages for _ in range(stage.most)]
        assert pods_needed(pod, fewest) <= pod.fewest, "the pods that are always there"
        assert pods_needed(pod, most) <= pod.most


def test_a_rollout_has_room_to_begin_with(manifests: Manifests, deployed: list[Deployed]) -> None:
    """Where new replicas start before old ones stop: all of them at the least load, at the most one of each stage."""
    surging = {name for name, entry in manifests.entries.items() if entry.get("max_surge_percent")}
    for pod in workers(manifests):
        stages = [stage for stage in deployed if group_of(stage, workers(manifests)) == pod]
        fewest = [stage.demand for stage in stages for _ in range(stage.fewest * (1 + (stage.name in surging)))]
        most = [stage.demand for stage in stages for _ in range(stage.most + (stage.name in surging))]
        assert pods_needed(pod, fewest) <= pod.fewest
        assert pods_needed(pod, most) <= pod.most


def test_no_gpu_is_paid_for_and_left_idle(manifests: Manifests, deployed: list[Deployed]) -> None:
    for pod in workers(manifests):
        taken = sum(stage.demand["GPU"] for stage in deployed if group_of(stage, workers(manifests)) == pod)
        assert taken == pod.offers["GPU"]


def test_groups_can_grow_and_shrink(manifests: Manifests) -> None:
    assert manifests.cluster["enableInTreeAutoscaling"] is True
    for group in manifests.groups:
        assert 1 <= group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]


def test_too_much_is_seen_not_to_fit() -> None:
    pod = Pod("group", {}, {}, offers={"CPU": 4.0, "GPU": 1.0, "encode": 1.0})
    assert pods_needed(pod, [{"CPU": 2.0, "GPU": 0.5, "encode": 0.01}] * 4) == 2
    assert pods_needed(pod, [{"CPU": 2.0, "GPU": 0.5, "encode": 0.6}] * 4) == 4
    assert pods_needed(pod, [{"CPU": 3.0, "GPU": 0.0}, {"CPU": 2.0, "GPU": 0.0}, {"CPU": 1.0, "GPU": 0.0}]) == 2
    with pytest.raises(AssertionError, match="fits no pod"):
        pods_needed(pod, [{"CPU": 5.0, "GPU": 0.0}])
