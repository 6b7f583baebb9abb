"""What may change while the service runs stands under ``deployments``, and says what the settings come to."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
from ray.serve._private.deploy_utils import get_app_code_version
from ray.serve.config import AutoscalingConfig
from ray.serve.schema import DeploymentSchema, ServeApplicationSchema

from services.live import LiveConfig
from tests.k8s.build import OVERLAYS, Choice, Manifests, Object
from tests.k8s.deployments import deployments_of

STAGES = ("Api", "Decoder", "Encoder", "Generator")
IN_PLACE = {"name", "user_config", "autoscaling_config", "max_surge_percent"}
"""Of all that an entry may have, what Serve changes without replacing replicas."""


@pytest.fixture(params=OVERLAYS)
def manifests(request: pytest.FixtureRequest) -> Manifests:
    """The overlays: no component changes what Serve runs."""
    return Manifests.of(Choice(request.param))


def taken(scaling: AutoscalingConfig) -> Object:
    """All fields, with one spelling of where the policy is: Serve takes a colon and writes a dot."""
    fields = scaling.model_dump()
    fields["policy"]["policy_function"] = fields["policy"]["policy_function"].replace(":", ".")
    return fields


def test_every_stage_has_an_entry_with_nothing_that_restarts_it(manifests: Manifests) -> None:
    assert set(manifests.entries) == set(STAGES)
    for entry in manifests.entries.values():
        assert {"name", "autoscaling_config"} <= entry.keys() <= IN_PLACE
        assert entry.keys() <= DeploymentSchema.model_fields.keys(), "Serve ignores what it does not know"
        assert entry["autoscaling_config"].keys() <= AutoscalingConfig.model_fields.keys()


@pytest.mark.parametrize("stage", STAGES)
def test_an_entry_says_what_the_application_works_out(
    stage: str, manifests: Manifests, monkeypatch: pytest.MonkeyPatch
) -> None:
    worked_out = deployments_of(manifests.settings(monkeypatch))[stage]._deployment_config
    entry = manifests.entries[stage]
    given = AutoscalingConfig(**copy.deepcopy(entry["autoscaling_config"]))
    assert taken(given) == taken(worked_out.autoscaling_config)
    assert entry.get("user_config") == worked_out.user_config


def test_the_apis_entry_names_every_default_and_bound(manifests: Manifests) -> None:
    """Serve takes it as a whole, and what is missing would be the service's default, whatever the environment says."""
    assert manifests.entries["Api"]["user_config"].keys() == LiveConfig.model_fields.keys()


def test_stages_without_a_gpu_are_replaced_before_they_stop_where_there_is_room(manifests: Manifests) -> None:
    surging = {name for name, entry in manifests.entries.items() if entry.get("max_surge_percent") == 100}
    can_grow = manifests.groups[0]["maxReplicas"] > 1
    assert surging == ({"Api", "Decoder"} if can_grow else set())


CHANGES_IN_PLACE: list[Callable[[dict[str, Object]], Any]] = [
    lambda entries: entries["Api"]["user_config"].update(default_keep_ratio=0.5, max_num_frames=16),
    *(
        lambda entries, stage=stage: entries[stage]["autoscaling_config"].update(
            min_replicas=0, max_replicas=9, target_ongoing_requests=7, upscale_delay_s=1, downscale_delay_s=2
        )
        for stage in STAGES
    ),
    lambda entries: entries["Encoder"].update(max_surge_percent=100),
]


def code_version(application: Object) -> str:
    """What Serve compares: another one means that all replicas are replaced."""
    return get_app_code_version(ServeApplicationSchema.model_validate(application))


def test_changes_under_deployments_restart_nothing(manifests: Manifests) -> None:
    (application,) = manifests.serve_config["applications"]
    before = code_version(application)
    for change in CHANGES_IN_PLACE:
        changed = copy.deepcopy(application)
        change({entry["name"]: entry for entry in changed["deployments"]})
        assert changed != application
        assert code_version(changed) == before


def test_a_policy_an_argument_and_an_entry_left_out_count_as_code(manifests: Manifests) -> None:
    (application,) = manifests.serve_config["applications"]
    others = [copy.deepcopy(application) for _ in range(3)]
    encoder = {entry["name"]: entry for entry in others[0]["deployments"]}["Encoder"]
    encoder["autoscaling_config"]["policy"]["policy_kwargs"]["target_per_replica"] = 128
    others[1]["args"]["encoder"]["max_replicas"] = 9
    others[2]["deployments"] = [entry for entry in others[2]["deployments"] if entry["name"] != "Decoder"]
    for other in others:
        assert code_version(other) != code_version(application)
