"""How the stages are deployed. No cluster is started: what Serve is told is read from the bound application."""

import inspect
from typing import Any

import pytest
import ray
from ray.serve._private.build_app import build_app as resolve
from ray.serve.config import AutoscalingConfig
from ray.serve.deployment import Application, Deployment

from services.app import APP_NAME, bind_stages, build_app
from services.live import LiveConfig
from services.settings import STAGES, Settings, StageName, StageSettings, load_settings

NAMES: dict[StageName, str] = {"api": "Api", "decoder": "Decoder", "encoder": "Encoder", "generator": "Generator"}


def take_apart(application: Application) -> dict[str, Deployment]:
    """The deployments by name, as Serve sees them; where one is given a handle, that handle's name stands."""
    name_for_handle: Any = lambda deployment, _: deployment.name  # noqa: E731
    built = resolve(application, name=APP_NAME, make_deployment_handle=name_for_handle)
    assert built.ingress_deployment_name == "Api"
    assert not ray.is_initialized()
    return {deployment.name: deployment for deployment in built.deployments}


def stages_of(settings: Settings, available_gpus: float = 0.0) -> dict[str, Deployment]:
    return take_apart(bind_stages(settings, available_gpus=available_gpus))


def resources(deployment: Deployment) -> dict[str, float]:
    assert deployment.ray_actor_options is not None
    return deployment.ray_actor_options


def scaling(deployment: Deployment) -> AutoscalingConfig:
    found = deployment._deployment_config.autoscaling_config
    assert found is not None
    return found


def arguments(deployment: Deployment) -> tuple[object, ...]:
    found: tuple[object, ...] = deployment.init_args
    return found


def with_stage(name: StageName, **values: Any) -> Settings:
    return load_settings(**{name: StageSettings(**values)})


def gpus(settings: Settings, available: float) -> dict[str, float]:
    return {name: resources(deployment)["num_gpus"] for name, deployment in stages_of(settings, available).items()}


def test_four_stages_and_who_holds_whom() -> None:
    settings = load_settings()
    stages = stages_of(settings)
    assert stages.keys() == set(NAMES.values())
    assert arguments(stages["Api"]) == (settings, "Decoder", "Encoder", "Generator")
    for name in ("Decoder", "Encoder", "Generator"):
        assert arguments(stages[name]) == (settings,)


@pytest.mark.parametrize("name", STAGES)
def test_each_stage_takes_its_own_settings(name: StageName) -> None:
    settings = with_stage(name, min_replicas=2, max_replicas=5, max_ongoing_requests=30, num_cpus=1.5, num_gpus=0.25)
    stages = stages_of(settings)
    for other, title in NAMES.items():
        deployment, stage = stages[title], settings.stage(other)
        assert deployment.max_ongoing_requests == (30 if other == name else settings.most_ongoing_requests(other))
        assert resources(deployment)["num_cpus"] == (1.5 if other == name else stage.num_cpus)
        assert resources(deployment)["num_gpus"] == (0.25 if other == name else 0)
        between = scaling(deployment).min_replicas, scaling(deployment).max_replicas
        assert between == ((2, 5) if other == name else (1, stage.max_replicas))
        taken = deployment.max_ongoing_requests
        if other == "api":  # which refuses more questions than this
            taken = min(taken, settings.max_in_flight_requests)
        assert scaling(deployment).target_ongoing_requests == taken / 2


@pytest.mark.parametrize("max_in_flight", [8, 64, 500])
def test_an_api_that_is_about_to_refuse_gets_company(max_in_flight: int) -> None:
    api = stages_of(load_settings(max_in_flight_requests=max_in_flight))["Api"]
    takes = min(max_in_flight, api.max_ongoing_requests)
    assert 0.9 * takes / scaling(api).get_target_ongoing_requests() > 1


def grace_seconds(settings: Settings) -> dict[str, float]:
    return {name: stage._deployment_config.graceful_shutdown_timeout_s for name, stage in stages_of(settings).items()}


def test_a_replica_that_goes_has_time_for_the_longest_answer() -> None:
    found = grace_seconds(load_settings(request_timeout_seconds=77, upload_timeout_seconds=100))
    assert found == {"Api": 177, "Decoder": 77, "Encoder": 77, "Generator": 77}
    assert set(grace_seconds(load_settings(graceful_shutdown_seconds=3)).values()) == {3}


def test_a_stage_may_ask_for_machines_of_a_kind() -> None:
    stages = stages_of(with_stage("encoder", resources={"encoder": 1}))
    asked = {name: deployment.ray_actor_options.get("resources") for name, deployment in stages.items()}  # type: ignore[union-attr]
    assert asked == {"Api": {}, "Decoder": {}, "Encoder": {"encoder": 1.0}, "Generator": {}}


def test_a_stage_may_scale_to_zero() -> None:
    encoder = stages_of(with_stage("encoder", min_replicas=0))["Encoder"]
    assert (scaling(encoder).min_replicas, scaling(encoder).max_replicas) == (0, 1)


def test_a_replica_that_takes_one_request_is_full_with_one() -> None:
    assert scaling(stages_of(with_stage("encoder", max_ongoing_requests=1))["Encoder"]).target_ongoing_requests == 1


@pytest.mark.parametrize(("available", "share"), [(0.0, 0.0), (1.0, 0.5), (2.0, 1.0), (8.0, 1.0)])
def test_encoder_and_generator_share_what_gpus_there_are(available: float, share: float) -> None:
    expected = {"Api": 0.0, "Decoder": 0.0, "Encoder": share, "Generator": share}
    assert gpus(load_settings(), available) == expected


def test_what_is_said_of_gpus_goes_before_what_there_is() -> None:
    assert gpus(with_stage("encoder", num_gpus=0), 4.0)["Encoder"] == 0
    assert gpus(with_stage("decoder", num_gpus=0.1), 0.0)["Decoder"] == 0.1
    assert set(gpus(load_settings(device="cpu"), 4.0).values()) == {0.0}


def test_what_may_change_while_running_is_user_config() -> None:
    settings = load_settings(default_keep_ratio=0.2, max_num_frames=9)
    stages = stages_of(settings)
    assert stages["Api"].user_config == LiveConfig.from_settings(settings).model_dump()
    assert {stages[name].user_config for name in ("Decoder", "Encoder", "Generator")} == {None}


def test_the_builder_is_one_that_serve_can_give_arguments_to() -> None:
    """Serve makes the argument of a builder from a config file's ``args`` by the parameter's annotation."""
    (parameter,) = inspect.signature(build_app).parameters.values()
    assert parameter.annotation is Settings


def test_the_builder_asks_the_cluster_for_its_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 4.0, "GPU": 1.0})
    stages = take_apart(build_app(load_settings()))
    assert resources(stages["Generator"])["num_gpus"] == 0.5


@pytest.mark.parametrize(("log_format", "encoding"), [("text", "TEXT"), ("json", "JSON")])
def test_stages_log_as_the_settings_say(log_format: str, encoding: str) -> None:
    for stage in stages_of(load_settings(log_format=log_format, log_level="WARNING")).values():
        config = stage._deployment_config.logging_config
        assert config is not None
        assert (config["encoding"], config["log_level"]) == (encoding, "WARNING")
