"""Mistakes in a method are told with its name, wherever it is asked."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from fastervlm_video.config import PruneSpec
from fastervlm_video.errors import InvalidRequestError
from fastervlm_video.prune import PruneInputs, PruneMethod, Selection, check_selection, registry
from fastervlm_video.vision import Region
from fastervlm_video.vision.pruning import VideoPruning
from tests.prune.kit import each_grid, each_kind, each_method, make_inputs

FRAMES, GRID, BUDGET = 3, (2, 3), 2

Make = Callable[[], object]


def chosen(
    indices: tuple[float, ...] = (0, 1, 2, 3, 4, 5),
    scores: tuple[float, ...] = (3.0, 2.0) * FRAMES,
    counts: tuple[object, ...] = (2, 2, 2),
    dtype: torch.dtype = torch.int64,
    features: torch.Tensor | None = None,
) -> Selection:
    return Selection(torch.tensor(indices, dtype=dtype), torch.tensor(scores), counts, features)  # type: ignore[arg-type]


WRONG: dict[str, tuple[Make, str]] = {
    "nothing": (lambda: None, "it must return a Selection, not NoneType"),
    "a frame without a count": (lambda: chosen((0, 1, 2, 3), (3.0, 2.0) * 2, (2, 2)), "3 whole numbers from 0 to 6"),
    "a count that is a tensor": (lambda: chosen(counts=(torch.tensor(2), 2, 2)), "whole numbers"),
    "more than there is": (lambda: chosen(counts=(7, 0, 0)), "whole numbers from 0 to 6"),
    "unequal counts": (lambda: chosen(counts=(3, 1, 2)), "counts must all be 2, got (3, 1, 2)"),
    "indices of another type": (
        lambda: chosen(dtype=torch.int32),
        "indices must be torch.int64 [6] on cpu, got torch.i",
    ),
    "too few scores": (lambda: chosen(scores=(3.0, 2.0)), "scores must be torch.float32 [6]"),
    "integers for features": (lambda: chosen(features=torch.ones(6, 4, dtype=torch.int64)), "floating [6, C]"),
    "too few features": (lambda: chosen(features=torch.ones(5, 4)), "floating [6, C]"),
    "an index beyond the grid": (lambda: chosen((0, 1, 2, 6, 4, 5)), "indices must be in [0, 6), got [6]"),
    "an index below zero": (lambda: chosen((0, 1, 2, -1, 4, 5)), "got [-1]"),
    "a patch twice": (lambda: chosen((0, 1, 3, 3, 4, 5)), "twice"),
    "the worst first": (lambda: chosen(scores=(2.0, 3.0) * FRAMES), "the best score must come first"),
    "ties out of order": (lambda: chosen((1, 0, 2, 3, 4, 5), (1.0,) * 6), "the smaller index"),
    "no number": (lambda: chosen(scores=(float("nan"), 2.0) * FRAMES), "all finite"),
}
METHOD = PruneMethod("wrong", "a test", lambda inputs: chosen(), frozenset(), False, True, True, False)


@pytest.mark.parametrize("case", WRONG)
def test_a_broken_promise_names_the_method(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make, words = WRONG[case]
    monkeypatch.setitem(registry._METHODS, "wrong", replace(METHOD, select=lambda inputs: make()))  # type: ignore[arg-type, return-value]
    with pytest.raises(InvalidRequestError) as told:
        prune()
    assert str(told.value).startswith("the pruning method 'wrong' does not keep its promises: ")
    assert words in str(told.value)
    assert told.value.param == "method"


def prune(regions: tuple[Region, ...] | None = None) -> VideoPruning:
    spec = PruneSpec(method="wrong", keep_tokens=BUDGET)
    return VideoPruning(spec, GRID, (0.0, 1.0, 2.0), torch.device("cpu"), regions)


def test_what_is_right_passes_and_ragged_counts_must_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry._METHODS, "wrong", METHOD)
    assert prune().choose(0, 3, torch.zeros(3, 6)) is not None
    ragged = replace(
        METHOD, fixed_count=False, select=lambda inputs: chosen((0, 1, 2, 3, 4, 5), (9.0, 8.0, 7.0) * 2, (3, 0, 3))
    )
    monkeypatch.setitem(registry._METHODS, "wrong", ragged)
    assert prune().choose(0, 3, torch.zeros(3, 6)) is not None
    monkeypatch.setitem(
        registry._METHODS, "wrong", replace(ragged, select=lambda inputs: chosen((0,), (1.0,), (1, 0, 0)))
    )
    with pytest.raises(InvalidRequestError, match=r"counts must add up to 6, got \(1, 0, 0\)"):
        prune()


def test_regions_are_checked_as_the_method_sees_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Patch 3 is one of the frame, and none of its upper row."""
    monkeypatch.setitem(registry._METHODS, "wrong", METHOD)
    with pytest.raises(InvalidRequestError, match=r"indices must be in \[0, 3\), got \[3, 4, 5\]"):
        prune((Region(0, 0, 1, 3),) * FRAMES)


@each_method
@each_grid
@each_kind
def test_our_own_keep_theirs(method: PruneMethod, grid: tuple[int, int], kind: str) -> None:
    """With their values looked at, too, as if they were others'."""

    def select(inputs: PruneInputs) -> Selection:
        return method.select(inputs)

    for k in {1, (grid[0] * grid[1] + 1) // 2, grid[0] * grid[1]}:
        inputs = make_inputs(k, grid, kind=kind)
        check_selection(replace(method, select=select), inputs, method.select(inputs))
