"""The parts of the load test that can be wrong without anybody noticing: shapes, mixes, what is counted."""

import json
from pathlib import Path

import pytest

from tests.load.mixes import MIXES, weights
from tests.load.results import Results, as_text, percentile, write
from tests.load.shapes import SHAPES, Plan, ramp, soak, spike

KINDS = ("cold", "warm", "stream", "chat", "upload", "abuse")
PLAN = Plan(seconds=100, users=30)


def test_a_ramp_goes_up_in_steps_to_the_top() -> None:
    users = [ramp(PLAN, at) for at in range(100)]
    assert users == sorted(users)
    assert sorted(set(users)) == [5, 10, 15, 20, 25, 30]
    assert ramp(PLAN, 100) == 30  # looked at a little late


def test_a_spike_comes_and_goes() -> None:
    assert [spike(PLAN, at) for at in (0, 34, 36, 64, 66, 99)] == [6, 6, 30, 30, 6, 6]


def test_a_soak_is_steady_after_its_beginning() -> None:
    assert soak(PLAN, 1) < 30
    assert {soak(PLAN, at) for at in range(5, 100)} == {30}


@pytest.mark.parametrize("name", SHAPES)
def test_somebody_is_always_there_and_never_more_than_planned(name: str) -> None:
    for users in (1, 2, 50):
        plan = Plan(10, users)
        assert all(1 <= SHAPES[name](plan, at / 10) <= users for at in range(101))


@pytest.mark.parametrize("plan", [(0, 1), (10, 0)])
def test_plans_that_are_none(plan: tuple[float, int]) -> None:
    with pytest.raises(ValueError, match="at least one user"):
        Plan(*plan)


def test_mixes_name_users_that_there_are() -> None:
    for mix in MIXES:
        assert set(weights(mix, KINDS)) == set(KINDS)
    assert all(weights("typical", KINDS).values())
    assert weights("warm=8,stream=2", KINDS) == {**dict.fromkeys(KINDS, 0), "warm": 8, "stream": 2}


@pytest.mark.parametrize("mix", ["", "hot", "hot=1", "warm=x", "warm=0", "warm=-1,cold=2"])
def test_mixes_that_are_none(mix: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        weights(mix, KINDS)


def test_percentiles_are_values_that_there_were() -> None:
    values = [float(number) for number in range(1, 101)]
    assert [percentile(values, percent) for percent in (50, 95, 99, 100)] == [50, 95, 99, 100]
    assert percentile([3.0], 50) == percentile([3.0], 99) == 3
    assert percentile([1.0, 2.0], 50) == 1
    assert percentile([], 50) is None


def seen(*requests: tuple[str, int, str | None]) -> Results:
    results = Results()
    for name, status, failure in requests:
        results.add(name, 0.5, status, failure)
    return results


def test_what_passes_and_what_does_not() -> None:
    fine = seen(("warm", 200, None), ("abuse", 400, None), ("warm", 429, None))
    assert fine.passed
    assert not seen().passed  # nothing was asked
    assert not seen(("warm", 200, None), ("warm", 503, "answered 503")).passed
    assert not seen(("abuse", 500, None)).passed  # a fault of the server, whoever expected it
    assert not seen(("warm", 0, "no connection")).passed


def test_a_summary_for_machines_and_for_people(tmp_path: Path) -> None:
    results = seen(("warm", 200, None), ("warm", 429, None), ("cold", 503, "answered 503"))
    results.cache.update(hit=3, miss=1)
    results.ttft_seconds += [0.25, 0.75]
    summary = results.summary(2.0)
    write(summary, tmp_path / "summary.json")
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    assert (summary["requests"], summary["requests_per_second"]) == (3, 1.5)
    assert (summary["refused_as_too_many"], summary["server_errors"], summary["cache_hit_share"]) == (1, 1, 0.75)
    assert summary["ttft_seconds"] == {"answers": 2, "p50": 0.25, "p95": 0.75, "p99": 0.75}
    text = as_text(summary)
    assert "75%" in text
    assert "FAILED 1 x cold: answered 503" in text
    assert text.splitlines()[-1] == "FAILED"
