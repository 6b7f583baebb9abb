import asyncio
import logging
import threading
from collections.abc import Callable

import pytest
from ray.serve._private.common import DeploymentStatus, DeploymentStatusTrigger, ReplicaState
from ray.serve.schema import ApplicationStatus, ApplicationStatusOverview, DeploymentStatusOverview, ServeStatus

from fastervlm_video.errors import UnavailableError
from services import readiness
from services.readiness import ReadinessProbe, StageStates

APP = "the-app"
FEWEST = {"Decoder": 0, "Generator": 1}


def stage(status: str, **replicas: int) -> DeploymentStatusOverview:
    return DeploymentStatusOverview(
        status=DeploymentStatus(status),
        status_trigger=DeploymentStatusTrigger.UNSPECIFIED,
        replica_states={ReplicaState(name): count for name, count in replicas.items()},
        message="",
    )


def serving(
    app_status: ApplicationStatus = ApplicationStatus.RUNNING, **stages: DeploymentStatusOverview
) -> ServeStatus:
    app = ApplicationStatusOverview(status=app_status, message="", last_deployed_time_s=0.0, deployments=stages)
    return ServeStatus(applications={APP: app})


RUNNING = stage("HEALTHY", RUNNING=1)
READY = serving(Decoder=RUNNING, Generator=RUNNING)
NOT_READY = serving(Decoder=RUNNING, Generator=stage("UPDATING", STARTING=1))


def read(status: ServeStatus) -> StageStates:
    return StageStates.from_status(status, APP, FEWEST)


def test_all_running() -> None:
    assert read(READY) == StageStates(True, {"Decoder": "running", "Generator": "running"})


@pytest.mark.parametrize(
    ("decoder", "state", "ready"),
    [
        (stage("HEALTHY"), "idle", True),
        (stage("HEALTHY", RUNNING=0), "idle", True),
        (stage("UPSCALING", STARTING=1), "idle", True),  # asked for, and cached videos need not wait for it
        (stage("DOWNSCALING", STOPPING=1), "idle", True),
        (stage("UPDATING", STARTING=1), "starting", False),
        (stage("DEPLOY_FAILED"), "failed", False),
        (stage("UNHEALTHY", STARTING=1), "failed", False),
        (stage("UNHEALTHY", RUNNING=1, STOPPING=1), "running", True),
        (stage("UPDATING", RUNNING=1, STARTING=1), "running", True),
    ],
)
def test_a_stage_that_may_be_scaled_to_zero(decoder: DeploymentStatusOverview, state: str, ready: bool) -> None:
    found = read(serving(Decoder=decoder, Generator=RUNNING))
    assert (found.states, found.ready) == ({"Decoder": state, "Generator": "running"}, ready)


@pytest.mark.parametrize(
    ("generator", "state"),
    [
        (stage("HEALTHY"), "starting"),
        (stage("UPSCALING", STARTING=1), "starting"),
        (stage("UPDATING", STARTING=2), "starting"),
        (stage("DEPLOY_FAILED", STOPPING=1), "failed"),
        (stage("UNHEALTHY"), "failed"),
    ],
)
def test_a_stage_that_must_have_a_replica(generator: DeploymentStatusOverview, state: str) -> None:
    found = read(serving(Decoder=RUNNING, Generator=generator))
    assert (found.states, found.ready) == ({"Decoder": "running", "Generator": state}, False)


def test_a_stage_that_serve_has_not_heard_of_is_starting() -> None:
    assert read(serving(Decoder=RUNNING)).states["Generator"] == "starting"
    assert not read(serving(Generator=RUNNING)).ready


@pytest.mark.parametrize(
    "status",
    [
        ServeStatus(),
        ServeStatus(applications={"another": READY.applications[APP]}),
        serving(ApplicationStatus.DELETING, Decoder=RUNNING, Generator=RUNNING),
        serving(ApplicationStatus.NOT_STARTED),
    ],
)
def test_no_application_means_not_deployed(status: ServeStatus) -> None:
    assert read(status) == StageStates(False, dict.fromkeys(FEWEST, "not deployed"))


class Controller:
    """Gives each of ``answers`` in turn, then the last again."""

    def __init__(self, *answers: ServeStatus | Callable[[], ServeStatus]) -> None:
        self.answers, self.asked = answers, 0

    def __call__(self) -> ServeStatus:
        self.asked += 1
        answer = self.answers[min(self.asked, len(self.answers)) - 1]
        return answer() if callable(answer) else answer


def unreachable() -> ServeStatus:
    raise ConnectionError("no controller")


@pytest.fixture
def never_fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readiness, "_FRESH_SECONDS_WHEN_READY", 0.0)
    monkeypatch.setattr(readiness, "_FRESH_SECONDS_WHEN_NOT", 0.0)


async def test_the_answer_is_remembered_and_shared() -> None:
    controller = Controller(READY)
    probe = ReadinessProbe(APP, FEWEST, controller)
    found = await asyncio.gather(*(probe.states() for _ in range(20)))
    assert all(states.ready for states in found)
    await probe.require()
    assert controller.asked == 1


async def test_a_bad_answer_is_remembered_for_less_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readiness, "_FRESH_SECONDS_WHEN_NOT", 0.0)
    controller = Controller(NOT_READY, READY)
    probe = ReadinessProbe(APP, FEWEST, controller)
    assert not (await probe.states()).ready
    assert (await probe.states()).ready
    assert (await probe.states()).ready
    assert controller.asked == 2


@pytest.mark.usefixtures("never_fresh")
async def test_the_answer_goes_stale() -> None:
    controller = Controller(READY, NOT_READY)
    probe = ReadinessProbe(APP, FEWEST, controller)
    await probe.require()
    assert not (await probe.states()).ready
    await probe.require()  # once it was up, a stage that is replaced is waited for, not refused


@pytest.mark.usefixtures("never_fresh")
async def test_the_last_answer_stands_while_the_controller_is_away(caplog: pytest.LogCaptureFixture) -> None:
    probe = ReadinessProbe(APP, FEWEST, Controller(READY, unreachable, NOT_READY))
    assert (await probe.states()).ready
    with caplog.at_level(logging.WARNING):
        assert (await probe.states()).ready
    assert "no controller" in caplog.text
    assert not (await probe.states()).ready


async def test_not_ready_until_the_controller_has_said_so() -> None:
    probe = ReadinessProbe(APP, FEWEST, Controller(unreachable))
    assert await probe.states() == StageStates(False, dict.fromkeys(FEWEST, "starting"))


async def becomes(probe: ReadinessProbe, *, ready: bool) -> None:
    for _ in range(1000):
        if (await probe.states()).ready == ready:
            return
        await asyncio.sleep(0.01)
    pytest.fail(f"not {ready=} in ten seconds")


@pytest.mark.usefixtures("never_fresh")
async def test_a_controller_that_hangs_delays_requests_but_does_not_hold_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readiness, "_PATIENCE_SECONDS", 0.01)
    back = threading.Event()

    def hang() -> ServeStatus:
        back.wait(30)
        return NOT_READY

    controller = Controller(READY, hang)
    probe = ReadinessProbe(APP, FEWEST, controller)
    try:
        await becomes(probe, ready=True)  # the first answer may take longer than the patience left
        for _ in range(3):
            assert (await probe.states()).ready
        assert controller.asked == 2
    finally:
        back.set()
    await becomes(probe, ready=False)


async def test_requests_are_refused_until_it_was_ready_once() -> None:
    probe = ReadinessProbe(APP, FEWEST, Controller(NOT_READY))
    with pytest.raises(UnavailableError, match=r"not ready: Generator is starting; try again"):
        await probe.require()
