import pytest

from fastervlm_video.cache import CircuitBreaker
from fastervlm_video.errors import InvalidRequestError


def test_opens_probes_and_closes() -> None:
    now = [100.0]
    breaker = CircuitBreaker(failures=3, cooldown_seconds=5, clock=lambda: now[0])
    for _ in range(2):
        breaker.record_failure()
    assert breaker.allow()
    breaker.record_success()  # not in a row any more
    for _ in range(2):
        breaker.record_failure()
    assert (breaker.allow(), breaker.is_open) == (True, False)
    breaker.record_failure()
    assert (breaker.allow(), breaker.is_open) == (False, True)
    now[0] = 104.9
    assert not breaker.allow()
    now[0] = 105.0
    assert [breaker.allow() for _ in range(3)] == [True, False, False]  # one probe
    breaker.record_failure()
    assert not breaker.allow()
    now[0] = 110.0
    assert breaker.allow()
    breaker.record_success()
    assert [breaker.allow() for _ in range(3)] == [True] * 3


def test_a_probe_that_never_reports_does_not_block_for_ever() -> None:
    now = [0.0]
    breaker = CircuitBreaker(failures=1, cooldown_seconds=5, clock=lambda: now[0])
    breaker.record_failure()
    now[0] = 5.0
    assert breaker.allow()
    now[0] = 10.0
    assert breaker.allow()


def test_arguments_are_checked() -> None:
    with pytest.raises(InvalidRequestError):
        CircuitBreaker(failures=0)
    with pytest.raises(InvalidRequestError):
        CircuitBreaker(cooldown_seconds=-1)
