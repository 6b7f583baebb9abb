"""The policies, asked by Serve's own state of a deployment with the reports that replicas and handles send."""

import sys
import time
from collections.abc import Callable
from typing import Any

import pytest
from ray.serve._private.autoscaling_state import DeploymentAutoscalingState
from ray.serve._private.common import (
    RUNNING_REQUESTS_KEY,
    DeploymentHandleSource,
    DeploymentID,
    HandleMetricReport,
    ReplicaID,
    ReplicaMetricReport,
    TimeStampedValue,
)
from ray.serve._private.config import DeploymentConfig
from ray.serve._private.deployment_info import DeploymentInfo
from ray.serve.config import AutoscalingConfig, AutoscalingContext
from ray.serve.deployment import Deployment

from services.app import bind_stages
from services.scaling import FRAMES, TOKENS, WorkInHand, WorkPolicy
from services.settings import StageSettings, load_settings
from tests.services.test_app import scaling, take_apart

FRAMES_EACH, TOKENS_EACH = 40, 1000
AT_ONCE = {"upscale_delay_seconds": 0.0, "downscale_delay_seconds": 0.0}
SOME_SECONDS = 4.0


def stages(**values: Any) -> dict[str, Deployment]:
    stage = StageSettings(**{"min_replicas": 0, "max_replicas": 5, **AT_ONCE, **values})
    settings = load_settings(
        encoder=stage, generator=stage, encoder_target_frames=FRAMES_EACH, generator_target_tokens=TOKENS_EACH
    )
    return take_apart(bind_stages(settings, available_gpus=0.0))


class Stage:
    """A deployment as Serve's controller sees it: with the configuration that crossed over to it, and reports."""

    def __init__(self, name: str, unit: str, **values: Any) -> None:
        config: Any = stages(**values)[name]._deployment_config
        sent: bytes = config.to_proto_bytes()
        info = _info(DeploymentConfig.from_proto_bytes(sent))
        self.id, self.unit = DeploymentID(name, "app"), unit
        self.state, self.replicas, self.target = DeploymentAutoscalingState(self.id), list[ReplicaID](), 0
        self.target = self.state.register(info, 0)

    def runs(self, count: int) -> None:
        """This many replicas run, and have nothing to do as far as is known."""
        self.replicas = [ReplicaID(str(at), self.id) for at in range(count)]
        self.state.update_running_replica_ids(self.replicas)
        self.target = count

    def report(self, *amounts: float) -> None:
        """Each replica has had this much in hand for a while."""
        for replica, amount in zip(self.replicas, amounts, strict=False):
            metrics = {self.unit: _for_a_while(amount)}
            self.state.record_request_metrics_for_replica(ReplicaMetricReport(replica, metrics, time.time()))

    def handle(self, *, waiting: float, running: float = 0.0) -> None:
        """A handle has had this many requests waiting, and at each replica, for a while."""
        each = {replica.to_full_id_str(): _for_a_while(running / len(self.replicas)) for replica in self.replicas}
        self.state.record_request_metrics_for_handle(
            HandleMetricReport(
                deployment_id=self.id,
                handle_id="handle",
                actor_id="actor",
                handle_source=DeploymentHandleSource.REPLICA,
                queued_requests=_for_a_while(waiting),
                metrics={RUNNING_REQUESTS_KEY: each},
                timestamp=time.time(),
            )
        )

    def decide(self) -> int:
        """What the controller aims at next."""
        self.target = self.state.get_decision_num_replicas(self.target)
        return self.target


def _info(config: DeploymentConfig) -> DeploymentInfo:
    replica_config: Any = type("Unused", (), {"ray_actor_options": {}})()
    return DeploymentInfo(
        deployment_config=config, replica_config=replica_config, start_time_ms=0, deployer_job_id="job"
    )


def _for_a_while(value: float) -> list[TimeStampedValue]:
    now = time.time()
    return [TimeStampedValue(now - SOME_SECONDS, value), TimeStampedValue(now, value)]


Make = Callable[..., Stage]


@pytest.fixture(
    params=[("Encoder", FRAMES, FRAMES_EACH), ("Generator", TOKENS, TOKENS_EACH)], ids=["encoder", "generator"]
)
def made(request: pytest.FixtureRequest) -> tuple[Make, float]:
    """A way to make the stage, and the work that each of its replicas is to have."""
    name, unit, each = request.param
    return lambda **values: Stage(name, unit, **values), each


def test_replicas_follow_the_work_up_and_down(made: tuple[Make, float]) -> None:
    make, each = made
    stage = make()
    stage.runs(1)
    stage.handle(waiting=0, running=3)
    stage.report(2.5 * each)
    assert stage.decide() == 3
    stage.runs(3)
    stage.report(1.0 * each, 1.0 * each, 0.9 * each)
    assert stage.decide() == 3
    stage.report(0.5 * each, 0.1 * each, 0.3 * each)
    assert stage.decide() == 1


def test_many_small_requests_are_no_more_work_than_few_large_ones(made: tuple[Make, float]) -> None:
    make, each = made
    for running in (2, 60):
        stage = make()
        stage.runs(1)
        stage.handle(waiting=0, running=running)
        stage.report(1.5 * each)
        assert stage.decide() == 2


def test_a_request_is_not_divided_among_replicas(made: tuple[Make, float]) -> None:
    make, each = made
    for waiting, wanted in ((0, 2), (1, 3)):
        stage = make()
        stage.runs(1)
        stage.handle(waiting=waiting, running=2)
        stage.report(20 * each)
        assert stage.decide() == wanted


def test_bounds_hold(made: tuple[Make, float]) -> None:
    make, each = made
    stage = make(min_replicas=2, max_replicas=4)
    stage.runs(2)
    stage.handle(waiting=0)
    stage.report(50 * each, 50 * each)
    assert stage.decide() == 4
    stage.runs(4)
    stage.report(0, 0, 0, 0)
    assert stage.decide() == 2


def test_an_idle_stage_goes_to_zero_one_step_at_a_time(made: tuple[Make, float]) -> None:
    make, _ = made
    stage = make()
    stage.runs(3)
    stage.handle(waiting=0)
    stage.report(0, 0, 0)
    assert stage.decide() == 1  # Serve's rule: the last one goes by itself
    stage.runs(1)
    stage.report(0)
    assert stage.decide() == 0


def test_a_request_that_waits_wakes_a_stage_at_zero_whatever_the_delays(made: tuple[Make, float]) -> None:
    make, _ = made
    stage = make(upscale_delay_seconds=1000.0)
    stage.runs(0)
    stage.handle(waiting=0)
    assert stage.decide() == 0
    stage.handle(waiting=1)
    assert stage.decide() == 1


def test_a_replica_on_its_way_up_from_zero_is_not_given_up(made: tuple[Make, float]) -> None:
    make, _ = made
    stage = make()
    stage.runs(0)
    stage.handle(waiting=1)
    assert stage.decide() == 1
    stage.handle(waiting=0)  # whoever asked has left
    assert stage.decide() == 1


def test_who_waits_at_a_handle_is_counted_as_much_as_a_request_that_runs(made: tuple[Make, float]) -> None:
    make, each = made
    stage = make()
    stage.runs(1)
    stage.handle(waiting=6, running=2)
    stage.report(each / 2)  # a quarter of a replica's share for each request
    assert stage.decide() == 2


def test_replicas_that_have_not_reported_are_thought_to_have_usual_requests(made: tuple[Make, float]) -> None:
    make, _ = made
    stage = make()
    stage.runs(1)
    stage.handle(waiting=6, running=6)
    usual = {FRAMES: 8, TOKENS: 128 + 256}[stage.unit]
    each = {FRAMES: FRAMES_EACH, TOKENS: TOKENS_EACH}[stage.unit]
    assert stage.decide() == -(-12 * usual // each)


def test_delays_are_the_stages_own(made: tuple[Make, float]) -> None:
    make, each = made
    stage = make(upscale_delay_seconds=1000.0, downscale_delay_seconds=1000.0)
    stage.runs(2)
    stage.handle(waiting=0, running=2)
    stage.report(3 * each, 3 * each)
    assert stage.decide() == 2
    stage.report(0, 0)
    assert stage.decide() == 2


def test_what_serve_is_told() -> None:
    settings = load_settings(
        decoder=StageSettings(
            max_replicas=3, max_ongoing_requests=4, upscale_delay_seconds=1, downscale_delay_seconds=2
        ),
        scaling_look_back_seconds=6.0,
    )
    found = take_apart(bind_stages(settings, available_gpus=0.0))
    policies = {name: scaling(deployment).policy for name, deployment in found.items()}
    assert {name for name, policy in policies.items() if policy.is_default_policy_function()} == {"Api", "Decoder"}
    assert policies["Encoder"].policy_kwargs == {"unit": FRAMES, "target_per_replica": 64, "usual_per_request": 8}
    assert policies["Generator"].policy_kwargs["target_per_replica"] == settings.generator_target_tokens
    decoder = scaling(found["Decoder"])
    assert (decoder.target_ongoing_requests, decoder.upscale_delay_s, decoder.downscale_delay_s) == (2, 1, 2)
    assert (decoder.look_back_period_s, decoder.metrics_interval_s) == (6.0, 2.0)


def test_delays_and_look_back_are_serves_own_by_default() -> None:
    ours, serves = scaling(take_apart(bind_stages(load_settings(), available_gpus=0.0))["Encoder"]), AutoscalingConfig()
    for name in ("upscale_delay_s", "downscale_delay_s", "look_back_period_s", "metrics_interval_s"):
        assert getattr(ours, name) == getattr(serves, name)


def test_the_controller_needs_nothing_of_this_package_to_read_a_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = scaling(stages()["Encoder"]).policy
    for module in ("services", "services.scaling"):
        monkeypatch.setitem(sys.modules, module, None)
    made: Any = policy.get_policy()
    assert made(FRAMES, 10, 1) is not None


def test_a_policy_does_not_look_at_what_it_does_not_need() -> None:
    def not_needed() -> Any:
        raise AssertionError

    context = AutoscalingContext(
        deployment_id=DeploymentID("Encoder", "app"),
        deployment_name="Encoder",
        app_name="app",
        current_num_replicas=0,
        target_num_replicas=2,
        running_replicas=[],
        total_num_requests=not_needed,
        total_queued_requests=not_needed,
        aggregated_metrics=not_needed,
        raw_metrics=not_needed,
        capacity_adjusted_min_replicas=0,
        capacity_adjusted_max_replicas=5,
        policy_state={},
        last_scale_up_time=None,
        last_scale_down_time=None,
        current_time=None,
        config=None,
    )
    assert WorkPolicy(FRAMES, 10, 1)(context) == (2, {})


@pytest.mark.parametrize(("target", "usual"), [(0, 1), (1, 0), (float("inf"), 1), (-1, 1)])
def test_numbers_must_be_above_zero(target: float, usual: float) -> None:
    with pytest.raises(ValueError, match="above 0"):
        WorkPolicy(FRAMES, target, usual)


def test_work_is_in_hand_until_its_block_ends_however_that_is() -> None:
    work = WorkInHand(FRAMES)
    with work.holding(8):
        with work.holding(64):
            assert work.stats() == {"frames": 72.0}
        with pytest.raises(KeyError), work.holding(64):
            raise KeyError
        assert work.stats() == {"frames": 8.0}
    assert work.stats() == {"frames": 0.0}
