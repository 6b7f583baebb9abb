"""What a failed start says."""

import dataclasses
import socket

import pytest
from ray.serve.schema import ApplicationStatus, ServeStatus

from fastervlm_video.errors import InvalidRequestError
from services.run import _check_port_is_free, _impatient, _why_not_started
from services.settings import load_settings
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


def test_ctrl_c_waits_a_moment_only_where_nobody_else_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert _impatient(load_settings()).graceful_shutdown_seconds == 5
    assert _impatient(load_settings(graceful_shutdown_seconds=60)).graceful_shutdown_seconds == 60
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:6379")
    assert _impatient(load_settings()).graceful_shutdown_seconds is None


def test_a_port_in_use_is_refused_before_anything_starts() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(InvalidRequestError, match=rf"cannot listen on 127.0.0.1 port {port}: .*in use"):
            _check_port_is_free("127.0.0.1", port, "FASTERVLM_PORT")
    _check_port_is_free("127.0.0.1", port, "FASTERVLM_PORT")


def test_a_host_that_is_not_ours_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match=r"cannot listen on 192\.0\.2\.77 port"):
        _check_port_is_free("192.0.2.77", 1, "FASTERVLM_HOST")
