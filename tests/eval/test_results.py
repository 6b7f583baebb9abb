"""Numbers of made-up predictions, worked out by hand or by loops."""

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from fastervlm_video.errors import InvalidInputError, InvalidRequestError
from fastervlm_video.eval import (
    BLIND,
    FULL,
    ORACLE,
    Prediction,
    PredictionStore,
    Score,
    compare_arms,
    compare_runs,
    comparison_table,
    results_markdown,
    results_table,
    score_prediction,
    summarise,
    write_report,
)
from fastervlm_video.eval.results import Results, Scored

SETTINGS = {"model": "toy", "dataset": "made-up [set]"}
TYPES = ("color", "count")


def prediction(
    video: int, number: int, method: str, keep: float, right: bool, seed: int = 0, **changes: Any
) -> Prediction:
    values: dict[str, Any] = {
        "id": f"{video}-{number}",
        "video": f"v{video}",
        "question": f"question {number}?",
        "answer": "red",
        "pred": "red" if right else "blue",
        "type": TYPES[number % 2],
        "choices": None,
        "method": method,
        "keep": keep,
        "seed": seed,
        "tokens": round(100 * keep),
        "mean_tokens": float(round(100 * keep)),
        "encode_seconds": 0.01 * (video + 1),
        "prune_seconds": 0.001,
        "generate_seconds": 0.1,
    }
    return Prediction(**{**values, **changes})


def arm(method: str, keep: float, share: float, seed: int = 0, videos: int = 20, **changes: Any) -> list[Scored]:
    """Four questions about each video; each is right with that probability."""
    generator = np.random.default_rng([len(method), round(1000 * keep), seed])
    found = [
        prediction(video, number, method, keep, bool(generator.random() < share), seed, **changes)
        for video in range(videos)
        for number in range(4)
    ]
    return [(p, score_prediction(p)) for p in found]


def mean(scored: list[Scored]) -> float:
    return float(np.mean([score.value for _, score in scored]))


def whole_run() -> list[Scored]:
    scored = arm(FULL, 1.0, 0.9) + arm(BLIND, 0.0, 0.25)
    for keep, shares in {0.5: (0.9, 0.8, 0.9), 0.1: (0.8, 0.5, 0.85), 0.025: (0.7, 0.35, 0.8)}.items():
        scored += arm("cls_attention", keep, shares[0]) + arm(ORACLE, keep, shares[2])
        scored += [one for seed in range(3) for one in arm("random", keep, shares[1], seed)]
    return scored


@pytest.fixture(scope="module")
def scored() -> list[Scored]:
    return whole_run()


@pytest.fixture(scope="module")
def results(scored: list[Scored]) -> Results:
    return summarise(scored, settings=SETTINGS, failures={"v99": "broken"}, bootstrap=500)


def of(scored: list[Scored], method: str, keep: float) -> list[Scored]:
    return [one for one in scored if (one[0].method, one[0].keep) == (method, keep)]


def test_every_number_of_a_row(scored: list[Scored], results: Results) -> None:
    cls, random, oracle = (mean(of(scored, method, 0.1)) for method in ("cls_attention", "random", ORACLE))
    full = mean(of(scored, FULL, 1.0))
    row = results.row("cls_attention", 0.1)
    assert row.accuracy.value == pytest.approx(cls)
    assert row.retention is not None
    assert row.retention.value == pytest.approx(cls / full)
    assert row.gap_closed is not None
    assert row.gap_closed.value == pytest.approx((cls - random) / (oracle - random))
    for estimate in (row.accuracy, row.retention, row.gap_closed):
        assert estimate.low < estimate.value < estimate.high
    for kind in TYPES:
        ones = [one for one in of(scored, "cls_attention", 0.1) if one[0].type == kind]
        assert row.by_type[kind].value == pytest.approx(mean(ones))
    assert (row.tokens, row.mean_tokens, row.seeds, row.questions) == (10, 10, 1, 80)
    assert row.encode_seconds == pytest.approx(0.105)
    assert (row.prune_seconds, row.generate_seconds) == (0.001, 0.1)
    assert (row.parse_failures, row.unjudged, row.errors, row.grade) == (0, 0, 0, None)
    assert results.videos == 20
    assert results.types == list(TYPES)


def test_seeds_are_averaged(scored: list[Scored], results: Results) -> None:
    row = results.row("random", 0.1)
    assert (row.seeds, row.questions) == (3, 80)
    assert row.accuracy.value == pytest.approx(mean(of(scored, "random", 0.1)))
    assert row.gap_closed is None
    one = summarise([o for o in scored if o[0].seed == 0], settings=SETTINGS, bootstrap=500).row("random", 0.1)
    assert row.accuracy.high - row.accuracy.low < one.accuracy.high - one.accuracy.low


def test_reading_order_and_missing_rows(results: Results) -> None:
    order = [(row.method, row.keep) for row in results.rows]
    assert order[0] == (FULL, 1.0)
    assert order[1:4] == [("cls_attention", 0.5), ("cls_attention", 0.1), ("cls_attention", 0.025)]
    assert order[-1] == (BLIND, 0.0)
    with pytest.raises(KeyError, match=r"x@0\.1"):
        results.row("x", 0.1)


def test_best_constants() -> None:
    answers = {"color": ("red", "Red.", "blue", "green"), "count": ("one", "two", "two", "two")}
    questions = {"color": ("a?", "a?", "b?", "b?"), "count": ("c?", "c?", "c?", "c?")}
    found = [
        prediction(n, k, FULL, 1.0, True, type=kind, answer=answers[kind][n], question=questions[kind][n])
        for k, kind in enumerate(TYPES)
        for n in range(4)
    ]
    constants = summarise([(p, Score(1.0)) for p in found], settings={}, bootstrap=10).constants
    assert constants.by_type == {"color": 0.5, "count": 0.75}
    assert constants.per_type == 5 / 8
    assert constants.per_question == (2 + 1 + 3) / 8


def test_what_the_judge_did_not_judge_is_left_out_and_counted() -> None:
    found = [
        (p, Score(None, parsed=False) if p.id == "0-0" else Score(s.value, grade=3.0)) for p, s in arm(FULL, 1.0, 1.0)
    ]
    row = summarise(found, settings={}, bootstrap=50).row(FULL, 1.0)
    assert (row.unjudged, row.questions, row.accuracy.value, row.parse_failures) == (1, 79, 1.0, 0)
    assert row.grade is not None
    assert row.grade.value == 3


def test_parse_failures_are_counted() -> None:
    choices: dict[str, Any] = {"choices": ("x", "y"), "answer": "A"}
    found = [prediction(v, 0, FULL, 1.0, True, **choices, pred=pred) for v, pred in enumerate(("A", "B", "dunno", ""))]
    row = summarise([(p, score_prediction(p)) for p in found], settings={}, bootstrap=10).row(FULL, 1.0)
    assert (row.parse_failures, row.accuracy.value) == (2, 0.25)


def test_arms_are_compared_on_the_videos_that_all_have() -> None:
    """The random arm was added when two videos could no longer be decoded, all of whose answers had been right."""
    full, random = arm(FULL, 1.0, 0.5, videos=8), arm("random", 0.1, 0.5, videos=8)
    full = [(p, Score(1.0)) if p.video in {"v0", "v5"} else (p, s) for p, s in full]
    common_full, common_random = ([one for one in ones if one[0].video not in {"v0", "v5"}] for ones in (full, random))
    found = summarise([*full, *common_random], settings={}, bootstrap=50)
    assert found == summarise([*common_full, *common_random], settings={}, bootstrap=50)
    assert (found.videos, {row.questions for row in found.rows}) == (6, {24})
    assert found.row(FULL, 1.0).accuracy.value == mean(common_full) < mean(full)


def test_nothing_to_summarise() -> None:
    with pytest.raises(InvalidRequestError, match="got 0"):
        summarise([], settings={})


def test_markdown_has_a_row_per_arm_and_says_what_was_left_out(results: Results) -> None:
    text = results_markdown(results, "quality.png")
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len(table) == 2 + len(results.rows)
    assert len({line.count("|") for line in table}) == 1
    row = results.row("cls_attention", 0.1)
    assert re.search(rf"\| cls_attention \| 0\.1 \| 10 \| {100 * row.accuracy.value:.1f} \[\d", text)
    for words in ("![", "gap closed", "color", "made-up [set]", "1 videos (v99)", "mean over 3 seeds", "Best constant"):
        assert words in text
    assert "per layer" not in text  # nothing to say: no method differs by layer
    fastv = summarise([*whole_run(), *arm("fastv:2", 0.1, 0.5, mean_tokens=55.0)], settings=SETTINGS, bootstrap=20)
    assert "tokens per layer" in results_markdown(fastv)


def test_table_for_terminals(results: Results) -> None:
    console = Console(width=240, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(results_table(results))
    text = console.export_text()
    console.file.close()
    assert "made-up [set]" in text
    assert text.count("cls_attention") == 3
    assert "gap closed %" in text


def test_json_is_json(results: Results, tmp_path: Path) -> None:
    paths = write_report(results, tmp_path / "new")
    assert [path.name for path in paths] == ["results.json", "results.md", "quality.png"]
    content = json.loads(paths[0].read_text(), parse_constant=pytest.fail)
    assert content["settings"] == SETTINGS
    assert content["failures"] == {"v99": "broken"}
    row = next(row for row in content["rows"] if (row["method"], row["keep"]) == ("cls_attention", 0.1))
    assert row["accuracy"]["value"] == results.row("cls_attention", 0.1).accuracy.value
    with pytest.raises(InvalidInputError, match="cannot write to"):
        write_report(results, paths[0] / "x")


def test_numbers_without_intervals_are_no_obstacle(tmp_path: Path) -> None:
    found = arm(FULL, 1.0, 0.0) + arm("random", 0.1, 0.0) + arm("cls_attention", 0.1, 0.5)
    results = summarise(found, settings={}, bootstrap=20)
    row = results.row("cls_attention", 0.1)
    assert row.retention is not None
    assert math.isnan(row.retention.value)
    paths = write_report(results, tmp_path)
    json.loads(paths[0].read_text(), parse_constant=pytest.fail)


def test_the_picture(results: Results, tmp_path: Path) -> None:
    (*_, path) = write_report(results, tmp_path)
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        assert picture.width > picture.height > 500
        colors = picture.convert("RGB").getcolors(2**24)
    assert colors is not None
    assert len(colors) > 50
    # The project's own method is the black line.
    assert sum(count for count, color in colors if color == (0, 0, 0)) > 500


def test_comparison_of_two_arms_of_the_same_questions(scored: list[Scored]) -> None:
    a, b = of(scored, "cls_attention", 0.025), of(scored, "random", 0.025)
    comparison = compare_arms(a, b, bootstrap=500, permutations=999)
    assert (comparison.arm_a, comparison.arm_b) == ("cls_attention@0.025", "random@0.025")
    assert (comparison.questions, comparison.videos) == (80, 20)
    assert comparison.accuracy_a.value == pytest.approx(mean(a))
    assert comparison.difference.value == pytest.approx(mean(a) - mean(b))
    assert comparison.difference.low > 0
    assert comparison.p_value < 0.01
    back = compare_arms(b, a, bootstrap=500, permutations=999)
    assert back.difference.value == pytest.approx(-comparison.difference.value)
    same = compare_arms(a, a, bootstrap=500, permutations=999)
    assert (same.difference.low, same.difference.high, same.p_value) == (0, 0, 1)


def test_only_common_questions_are_compared(scored: list[Scored]) -> None:
    a = [one for one in of(scored, "cls_attention", 0.1) if one[0].video in {"v1", "v2", "v3"}]
    b = [one for one in of(scored, "random", 0.1) if one[0].video in {"v2", "v3", "v4"}]
    comparison = compare_arms(a, b, bootstrap=50, permutations=50)
    assert (comparison.questions, comparison.videos) == (8, 2)
    assert comparison.accuracy_a.value == pytest.approx(mean([one for one in a if one[0].video != "v1"]))
    other = [one for one in of(scored, "random", 0.1) if one[0].video == "v9"]
    with pytest.raises(InvalidInputError, match="no question in common"):
        compare_arms(a, other)


def write_run(folder: Path, scored: list[Scored]) -> Path:
    with PredictionStore(folder, SETTINGS) as store:
        store.append([p for p, _ in scored])
    return folder


def test_comparison_of_runs(tmp_path: Path) -> None:
    a = write_run(tmp_path / "a", arm(FULL, 1.0, 0.9) + arm("random", 0.1, 0.4))
    b = write_run(tmp_path / "b", arm("random", 0.1, 0.9, seed=1) + arm("cls_attention", 0.1, 0.8))
    (shared,) = compare_runs(a, b, bootstrap=50, permutations=99)
    assert (shared.arm_a, shared.arm_b) == ("random@0.1", "random@0.1")
    assert shared.difference.high < 0
    (named,) = compare_runs(a, b, arm_a="full@1", arm_b="cls_attention@0.1", bootstrap=50, permutations=99)
    assert (named.arm_a, named.arm_b) == ("full@1", "cls_attention@0.1")
    console = Console(width=160, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(comparison_table([shared, named]))
    assert "cls_attention@0.1" in console.export_text()
    console.file.close()
    with pytest.raises(InvalidInputError, match=r"no predictions of 'oracle@0\.1'; it has full@1, random"):
        compare_runs(a, b, arm_a="oracle@0.1")
    with pytest.raises(InvalidRequestError, match="nothing to be compared with"):
        compare_runs(a, b, arm_b="random@0.1")
    with pytest.raises(InvalidInputError, match="nothing in common"):
        compare_runs(a, write_run(tmp_path / "c", arm("cls_attention", 0.1, 0.8)))
    with pytest.raises(InvalidInputError, match="holds no run"):
        compare_runs(a, tmp_path)
