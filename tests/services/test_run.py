"""What a failed start says."""

import dataclasses

from ray.serve.schema import ApplicationStatus, ServeStatus

from services.run import _why_not_started
from tests.services.test_readiness import APP, RUNNING, serving, stage

TRACEBACK = """The deployment failed to start 3 times in a row. This may be due to a problem with its constructor.
Traceback (most recent call last):
  File "generator.py", line 1, in __init__
fastervlm_video.errors.CheckpointError: no tensors under language_model in /models/x
"""


def _status(state: str, message: str) -> ServeStatus:
    failed = dataclasses.replace(stage(state), message=message)
    return serving(ApplicationStatus.DEPLOY_FAILED, Generator=failed, Decoder=RUNNING)


def test_the_error_is_found_in_the_traceback() -> None:
    said = _why_not_started(_status("DEPLOY_FAILED", TRACEBACK), APP)
    assert said == (
        "the service did not start: Generator: CheckpointError: no tensors under language_model in /models/x"
    )


def test_a_message_without_a_traceback_is_passed_on() -> None:
    assert _why_not_started(_status("UNHEALTHY", "no GPU "), APP) == "the service did not start: Generator: no GPU"
    assert _why_not_started(_status("HEALTHY", ""), APP) == "the service did not start: see the log"
