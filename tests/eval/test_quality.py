"""The aims of the shipped model and of pruning it, on a part of the benchmark that takes a minute or two.

What is claimed is measured on more videos (docs/quality.md). Here each aim must not lie outside of the 95 % interval
that this many videos give: a real fall moves the interval away from it, the luck of the draw does not.
"""

import pytest

from fastervlm_video import VideoQA
from fastervlm_video.eval import BLIND, FULL, ORACLE, Results, evaluate, open_dataset
from fastervlm_video.eval.stats import Estimate

VIDEOS = 24
TENTH, TWENTIETH = 0.1, 0.05
METHODS = ("cls_attention", "uniform_grid", "random", ORACLE)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    folder = tmp_path_factory.mktemp("quality")
    dataset = open_dataset("mini", cache_dir=folder / "benchmarks", limit=VIDEOS)
    with VideoQA.from_pretrained("mini") as qa:
        return evaluate(qa, dataset, folder / "run", methods=METHODS, keeps=(1.0, TENTH, TWENTIETH))


def accuracy(results: Results, method: str, keep: float) -> Estimate:
    return results.row(method, keep).accuracy


def test_the_model_is_right_in_nine_of_ten_and_in_every_type(results: Results) -> None:
    full = results.row(FULL, 1.0)
    assert full.accuracy.high >= 0.9
    assert full.accuracy.value >= 0.85
    assert {kind: estimate for kind, estimate in full.by_type.items() if estimate.value < 0.75} == {}


def test_no_type_can_be_answered_without_the_video(results: Results) -> None:
    full, blind = results.row(FULL, 1.0), results.row(BLIND, 0.0)
    assert blind.accuracy.high < 0.35
    for kind, estimate in full.by_type.items():
        assert estimate.value > blind.by_type[kind].value + 0.3, kind
        assert estimate.value > results.constants.by_type[kind] + 0.3, kind


def test_where_the_patches_are_taken_matters(results: Results) -> None:
    retained = results.row("uniform_grid", TENTH).retention
    assert retained is not None
    assert retained.low <= 0.85
    for keep in (TENTH, TWENTIETH):
        assert accuracy(results, ORACLE, keep).low > accuracy(results, "random", keep).value


@pytest.mark.parametrize("keep", [TENTH, TWENTIETH])
def test_cls_attention_closes_most_of_the_gap_to_knowing_the_objects(results: Results, keep: float) -> None:
    closed = results.row("cls_attention", keep).gap_closed
    assert closed is not None
    assert closed.high >= 0.75
    assert closed.low > 0
