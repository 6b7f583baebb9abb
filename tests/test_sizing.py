"""The arithmetic of replicas, against what can be worked out otherwise."""

import heapq
import json
import math
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from fastervlm_video.calibrate import with_metrics
from fastervlm_video.errors import InvalidRequestError
from fastervlm_video.sizing import Calibration, Load, erlang_c, shipped_calibration, size
from tests.cli_kit import Run
from tests.services.live import QuietHandler, serve_http

COSTS = Calibration(
    model="toy",
    machine="a desk",
    patches_per_frame=100,
    decode_frame_seconds=0.05,
    encode_frame_seconds=0.01,
    question_seconds=0.02,
    prompt_token_seconds=0.001,
    step_base_seconds=0.01,
    step_answer_seconds=0.001,
)
LOAD = Load(questions_per_second=10, hit_share=0.5, keep_ratio=0.1, num_frames=8, text_tokens=20, answer_tokens=50)


def test_a_load_worked_out_by_hand() -> None:
    found = size(LOAD, COSTS)
    assert found.visual_tokens == 80
    assert found.decoder.per_second == 5
    assert found.decoder.busy_seconds == pytest.approx(0.4)
    assert found.decoder.replicas == math.ceil(5 * 0.4 / 0.7) == 3
    assert found.encoder.busy_seconds == pytest.approx(0.08)
    assert found.encoder.replicas == 1
    each = 0.02 + 100 * 0.001 + 50 * (0.01 + 8 * 0.001) / 8
    assert found.generator.busy_seconds == pytest.approx(each)
    assert found.generator.replicas == math.ceil(10 * each / 0.7) == 4
    assert found.generator.utilisation == pytest.approx(10 * each / 4)
    assert found.miss_seconds > found.hit_seconds > 0.02 + 0.1 + 50 * 0.011


def test_littles_law() -> None:
    found = size(LOAD, COSTS)
    for stage in (found.decoder, found.encoder):
        assert stage.in_flight == pytest.approx(stage.per_second * (stage.waiting_seconds + stage.busy_seconds))
    assert found.generator.in_flight == pytest.approx(10 * found.hit_seconds)
    assert found.generator.in_flight <= found.generator.replicas * LOAD.batch_size


@pytest.mark.parametrize(("servers", "busy"), [(1, 0.6), (3, 2.1), (10, 7.0)])
def test_waiting_is_what_a_simulated_queue_waits(servers: int, busy: float) -> None:
    rng, arrivals = np.random.default_rng(7), 50_000
    times = np.cumsum(rng.exponential(1 / busy, arrivals))
    free, waited = [0.0] * servers, np.empty(arrivals)  # when each server is free again
    for at, (now, takes) in enumerate(zip(times, rng.exponential(1, arrivals), strict=True)):
        waited[at] = max(0.0, free[0] - now)
        heapq.heapreplace(free, max(free[0], now) + takes)
    assert erlang_c(servers, busy) == pytest.approx(float((waited > 0).mean()), abs=0.03)
    assert erlang_c(servers, busy) / (servers - busy) == pytest.approx(float(waited.mean()), rel=0.15)


def test_the_ends_of_erlangs_formula() -> None:
    assert erlang_c(1, 0.25) == pytest.approx(0.25)  # one server: as often as it is busy
    assert erlang_c(4, 0.0) == 0
    assert erlang_c(2, 2.0) == erlang_c(2, 5.0) == 1
    assert 0 < erlang_c(2000, 1400.0) < 1e-6  # where factorials are no numbers any more


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("questions_per_second", (0.1, 1.0, 10.0, 100.0)),
        ("keep_ratio", (0.01, 0.1, 0.5, 1.0)),
        ("num_frames", (1, 8, 64)),
        ("answer_tokens", (1, 64, 1000)),
        ("text_tokens", (0, 100, 1000)),
    ],
)
def test_more_of_it_never_needs_less(name: str, values: tuple[float, ...]) -> None:
    found = [size(replace(LOAD, **{"questions_per_second": 40, name: value}), COSTS) for value in values]  # type: ignore[arg-type]
    for stage in ("decoder", "encoder", "generator"):
        counts = [getattr(one, stage).replicas for one in found]
        assert counts == sorted(counts), stage
    assert found[-1].generator.replicas > found[0].generator.replicas


def test_more_hits_more_reuse_and_fuller_batches_need_less() -> None:
    busy = replace(LOAD, questions_per_second=100)
    for name, values in (("hit_share", (0.0, 0.5, 1.0)), ("reuse_share", (0.0, 1.0)), ("batch_size", (1, 4, 16))):
        found = [size(replace(busy, **{name: value}), COSTS) for value in values]  # type: ignore[arg-type]
        counts = [one.decoder.replicas + one.generator.replicas for one in found]
        assert counts == sorted(counts, reverse=True)
        assert counts[0] > counts[-1], name


def test_no_replica_is_busier_than_the_target() -> None:
    for rate in (0.01, 1.0, 17.0, 300.0):
        for target in (0.3, 0.7, 0.95):
            found = size(replace(LOAD, questions_per_second=rate, target=target), COSTS)
            for stage in (found.decoder, found.encoder, found.generator):
                assert 0 < stage.utilisation <= target + 1e-9
                assert stage.replicas == 1 or stage.utilisation > target * (1 - 1 / stage.replicas) - 1e-9


def test_where_nothing_comes_nothing_is_needed() -> None:
    warm = size(replace(LOAD, hit_share=1.0), COSTS)
    assert (warm.decoder.replicas, warm.encoder.replicas) == (0, 0)
    assert warm.generator.replicas > 0
    idle = size(replace(LOAD, questions_per_second=0), COSTS)
    assert (idle.decoder.replicas, idle.generator.replicas) == (0, 0)
    assert idle.miss_seconds > 0


@pytest.mark.parametrize(
    "bad",
    [
        {"questions_per_second": -1},
        {"questions_per_second": math.nan},
        {"questions_per_second": math.inf},
        {"hit_share": 1.1},
        {"keep_ratio": 0},
        {"keep_ratio": 1.5},
        {"target": 1},
        {"target": 0},
        {"num_frames": 0},
        {"batch_size": 0},
        {"answer_tokens": 0},
    ],
    ids=str,
)
def test_loads_that_make_no_sense(bad: dict[str, float]) -> None:
    with pytest.raises(InvalidRequestError, match=next(reversed(bad))):
        Load(**{"questions_per_second": 1, **bad})  # type: ignore[arg-type]


def test_calibrations_go_through_json_and_check_themselves() -> None:
    assert Calibration.from_json(COSTS.to_json()) == COSTS
    for text in (
        "{",
        "[]",
        "{}",
        json.dumps({**asdict(COSTS), "more": 1}),
        json.dumps({**asdict(COSTS), "model": None, "decode_frame_seconds": -1}),
    ):
        with pytest.raises(InvalidRequestError):
            Calibration.from_json(text)
    with pytest.raises(InvalidRequestError, match="no time"):
        replace(COSTS, encode_frame_seconds=0)


def test_the_shipped_one_is_of_the_mini_model() -> None:
    shipped = shipped_calibration()
    assert (shipped.model, shipped.patches_per_frame) == ("fastervlm-video/mini", 64)
    assert 0.0001 < shipped.step_seconds(1) < 1


PAGE = """# TYPE ray_fastervlm_decode_seconds histogram
ray_fastervlm_decode_seconds_sum{replica="a",deployment="Decoder"} 3.0
ray_fastervlm_decode_seconds_sum{replica="b",deployment="Decoder"} 1.0
ray_fastervlm_decoded_frames_total{replica="a"} 40.0
ray_fastervlm_encode_seconds_sum{replica="c"} 0.5
ray_fastervlm_encoded_frames_total 50
"""


def test_what_users_videos_have_taken() -> None:
    found = with_metrics(COSTS, PAGE)
    assert (found.decode_frame_seconds, found.encode_frame_seconds) == (0.1, 0.01)
    assert replace(found, decode_frame_seconds=0.05) == COSTS
    with pytest.raises(InvalidRequestError, match="encoded"):
        with_metrics(COSTS, PAGE.replace("encode_seconds_sum", "other"))


def _machines(page: str) -> dict[str, str]:
    """The page as three machines show it: a Decoder each, and the Encoder by itself."""
    lines = page.splitlines(keepends=True)
    more = "ray_fastervlm_decode_seconds_sum 6.0\nray_fastervlm_decoded_frames_total 10.0\n"
    return {"/one": "".join(lines[:4]), "/two": more, "/three": "".join(lines[4:])}


def test_metrics_of_several_machines_are_added_up(run: Run) -> None:
    pages = _machines(PAGE)

    def respond(handler: QuietHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(pages[handler.path].encode())

    with serve_http(respond) as port:
        options = [f"--metrics=http://127.0.0.1:{port}{path}" for path in (*pages, "/two")]
        found = json.loads(run("size", "--json", *options).out)["calibration"]
        assert (found["decode_frame_seconds"], found["encode_frame_seconds"]) == (10 / 50, 0.01)
        assert "encoded; give the pages of all machines" in run("size", *options[:2]).error
        assert "decoded; give the pages of all machines" in run("size", options[2]).error


def test_the_command(run: Run) -> None:
    options = ("--questions-per-second", 5, "--hit-share", 0.8, "--keep", 0.1)
    shown = run("size", *options)
    assert shown.status == 0
    assert "5 questions per second, 80% of them about cached videos, 48 visual tokens" in shown.out
    assert {"Decoder", "Encoder", "Generator"} <= set(shown.out.split())
    found = json.loads(run("size", *options, "--json").out)
    assert found["sizing"] == asdict(size(Load(5, 0.8, 0.1), shipped_calibration()))


def test_the_command_with_a_file_and_with_mistakes(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "ours.json"
    path.write_text(COSTS.to_json())
    assert "toy on a desk" in run("size", "--calibration", path).out
    assert "No such file" in run("size", "--calibration", tmp_path / "none").error
    assert "give one of them" in run("size", "--calibration", path, "--calibrate", "auto").error
    assert "keep_ratio" in run("size", "--keep", 0).error
    assert "no service at" in run("size", "--calibrate", "http://127.0.0.1:1").error
    assert "no metrics at" in run("size", "--metrics", "http://127.0.0.1:1/metrics").error
