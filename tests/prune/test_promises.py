"""What every registered method promises, held to it on pleasant and unpleasant inputs."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from fastervlm_video.errors import InvalidRequestError
from fastervlm_video.prune import (
    CLS_ATTENTION,
    RANDOM,
    Need,
    PruneInputs,
    PruneMethod,
    Selection,
    get_method,
    method_names,
    register,
)
from tests.prune.kit import HEADS, METHODS, WIDTH, by_frame, each_grid, each_kind, each_method, make_inputs

torch.set_num_threads(1)


def check(method: PruneMethod, inputs: PruneInputs, selection: Selection) -> None:
    """All that the rest of the system relies on."""
    k, frames, patches = inputs.tokens_per_frame, inputs.num_frames, inputs.patches_per_frame
    total = sum(selection.counts)
    assert len(selection.counts) == frames
    assert {type(count) for count in selection.counts} == {int}
    assert all(0 <= count <= patches for count in selection.counts)
    assert not method.fixed_count or selection.counts == (k,) * frames
    assert not method.fixed_total or total == k * frames
    assert (selection.indices.dtype, selection.indices.shape) == (torch.int64, (total,))
    assert (selection.scores.dtype, selection.scores.shape) == (torch.float32, (total,))
    assert selection.scores.isfinite().all()
    if selection.features is not None:
        assert selection.features.shape == (total, WIDTH)
        assert selection.features.isfinite().all()
    for chosen, scores in zip(by_frame(selection), selection.scores.split(list(selection.counts)), strict=True):
        assert len(set(chosen)) == len(chosen)
        assert set(chosen) <= set(range(patches))
        ranked = list(zip((-scores).tolist(), chosen, strict=True))
        assert ranked == sorted(ranked), "best first, ties by index"


@each_method
@each_grid
@each_kind
def test_every_budget_keeps_its_promises(method: PruneMethod, grid: tuple[int, int], kind: str) -> None:
    for k in range(1, grid[0] * grid[1] + 1):
        inputs = make_inputs(k, grid, kind=kind)
        check(method, inputs, method.select(inputs))


@each_method
@pytest.mark.parametrize("frames", [1, 2, 6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_any_number_of_frames_in_any_precision(method: PruneMethod, frames: int, dtype: torch.dtype) -> None:
    for k in (1, 2, 5, 11, 12):
        inputs = make_inputs(k, (3, 4), frames, dtype=dtype)
        check(method, inputs, method.select(inputs))


@each_method
@each_kind
def test_the_whole_budget_is_the_whole_video(method: PruneMethod, kind: str) -> None:
    inputs = make_inputs(12, (3, 4), kind=kind)
    selection = method.select(inputs)
    assert [sorted(run) for run in by_frame(selection)] == [list(range(12))] * 3
    if selection.features is not None:
        assert inputs.features is not None
        expected = torch.cat([inputs.features[t, run] for t, run in enumerate(by_frame(selection))])
        torch.testing.assert_close(selection.features, expected, rtol=0, atol=0)


@pytest.mark.parametrize("method", [method for method in METHODS if method.nested], ids=lambda method: method.name)
@each_grid
@each_kind
def test_nested_methods_give_prefixes(method: PruneMethod, grid: tuple[int, int], kind: str) -> None:
    patches = grid[0] * grid[1]
    full = method.select(make_inputs(patches, grid, kind=kind))
    scores = full.scores.view(-1, patches)
    for k in range(1, patches + 1):
        fresh = method.select(make_inputs(k, grid, kind=kind))
        assert by_frame(fresh) == [run[:k] for run in by_frame(full)]
        assert torch.equal(fresh.scores.view(-1, k), scores[:, :k])


@pytest.mark.parametrize("method", [method for method in METHODS if not method.nested], ids=lambda method: method.name)
def test_the_others_are_not_nested_as_they_say(method: PruneMethod) -> None:
    full = by_frame(method.select(make_inputs(16, (4, 4))))
    cut = [[run[:k] for run in full] for k in range(1, 16)]
    assert cut != [by_frame(method.select(make_inputs(k, (4, 4)))) for k in range(1, 16)]


def frame_of(inputs: PruneInputs, frame: int) -> PruneInputs:
    """One frame as a video of its own, which begins at another time and draws other lots."""
    assert inputs.cls_attention is not None
    assert inputs.features is not None
    assert inputs.keys is not None
    one = slice(frame, frame + 1)
    return replace(
        inputs,
        pts_seconds=(7.0,),
        seed=inputs.seed + 1,
        cls_attention=inputs.cls_attention[one],
        features=inputs.features[one],
        keys=inputs.keys[one],
    )


def chosen_frame_by_frame(method: PruneMethod, inputs: PruneInputs) -> list[Selection]:
    return [method.select(frame_of(inputs, frame)) for frame in range(inputs.num_frames)]


@pytest.mark.parametrize("method", [method for method in METHODS if method.framewise], ids=lambda method: method.name)
@each_grid
@pytest.mark.parametrize("kind", ["random", "ties", "zero"])
def test_framewise_methods_may_be_asked_frame_by_frame(method: PruneMethod, grid: tuple[int, int], kind: str) -> None:
    """Not of exact duplicates: between those rounding decides, which differs with the number of frames."""
    for k in range(1, grid[0] * grid[1] + 1):
        inputs = make_inputs(k, grid, kind=kind)
        whole = method.select(inputs)
        for frame, alone in enumerate(chosen_frame_by_frame(method, inputs)):
            part = whole.of_frames(frame, frame + 1)
            assert alone.indices.tolist() == part.indices.tolist()
            torch.testing.assert_close(alone.scores, part.scores, rtol=0, atol=1e-6)
            assert (alone.features is None) == (part.features is None)
            if alone.features is not None and part.features is not None:
                torch.testing.assert_close(alone.features, part.features, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "method", [method for method in METHODS if not method.framewise], ids=lambda method: method.name
)
def test_the_others_are_not_framewise_as_they_say(method: PruneMethod) -> None:
    inputs = make_inputs(5)
    whole, alone = method.select(inputs), chosen_frame_by_frame(method, inputs)
    indices, scores = torch.cat([each.indices for each in alone]), torch.cat([each.scores for each in alone])
    assert (indices.tolist(), scores.tolist()) != (whole.indices.tolist(), whole.scores.tolist())


def test_a_selections_frames() -> None:
    ragged = Selection(torch.arange(6), torch.arange(6.0), (2, 0, 3, 1), torch.eye(6))
    part = ragged.of_frames(1, 3)
    assert (part.indices.tolist(), part.scores.tolist(), part.counts) == ([2, 3, 4], [2.0, 3.0, 4.0], (0, 3))
    assert part.features is not None
    assert torch.equal(part.features, torch.eye(6)[2:5])


def without(inputs: PruneInputs, *needs: Need) -> PruneInputs:
    missing: dict[str, Any] = dict.fromkeys(needs)
    return replace(inputs, **missing)


@each_method
def test_methods_read_what_they_declare_and_nothing_else(method: PruneMethod) -> None:
    inputs = make_inputs(5)
    declared = without(inputs, *(need for need in Need if need not in method.needs))
    assert by_frame(method.select(declared)) == by_frame(method.select(inputs))
    for need in method.needs:
        with pytest.raises((AssertionError, AttributeError, TypeError)):
            method.select(without(inputs, need))


@each_method
def test_the_same_again_gives_the_same_and_changes_no_input(method: PruneMethod) -> None:
    inputs = make_inputs(5, kind="ties")
    before = {need: getattr(inputs, need.value).clone() for need in Need}
    torch.manual_seed(1)
    first = method.select(inputs)
    torch.manual_seed(2)
    again = method.select(inputs)
    assert (first.counts, first.indices.tolist(), first.scores.tolist()) == (
        (again.counts, again.indices.tolist(), again.scores.tolist())
    )
    for need, tensor in before.items():
        assert torch.equal(getattr(inputs, need.value), tensor)


@each_method
def test_the_seed_matters_where_declared(method: PruneMethod) -> None:
    drawn = {tuple(method.select(make_inputs(5, lots=lots)).indices.tolist()) for lots in range(4)}
    assert (len(drawn) > 1) == method.seeded


@each_method
def test_there_is_no_need_of_gradients_nor_of_contiguous_tensors(method: PruneMethod) -> None:
    """As the encoder hands them out: made in inference mode, and views that leave [CLS] out."""
    inputs = make_inputs(5)
    with torch.inference_mode():
        assert inputs.features is not None
        assert inputs.keys is not None
        features = torch.cat([torch.zeros(3, 1, WIDTH), inputs.features], dim=1)
        keys = torch.cat([torch.zeros(3, HEADS, 1, inputs.keys.shape[-1]), inputs.keys], dim=2)
    views = replace(inputs, features=features[:, 1:], keys=keys[:, :, 1:])
    assert by_frame(method.select(views)) == by_frame(method.select(inputs))


@each_method
def test_tensors_are_made_where_the_inputs_are(method: PruneMethod) -> None:
    """Anything made without naming a device would land on one that cannot be mixed with the inputs'."""
    inputs = make_inputs(5)
    expected = by_frame(method.select(inputs))
    with torch.device("meta"):
        selection = method.select(inputs)
    assert by_frame(selection) == expected


def test_budgets_must_fit_the_grid() -> None:
    with pytest.raises(InvalidRequestError, match="cannot keep 10 tokens of a frame of 9 patches"):
        make_inputs(10, (3, 3))


def test_the_registry_knows_its_methods() -> None:
    assert method_names() == (
        "cls_attention",
        "cls_dpp",
        "divprune",
        "evs",
        "random",
        "uniform_grid",
        "visionzip",
        "vispruner",
    )
    assert get_method("cls_attention") is CLS_ATTENTION
    with pytest.raises(InvalidRequestError, match=r"unknown pruning method 'best': choose one of .*cls_attention"):
        get_method("best")


def test_a_name_belongs_to_one_method() -> None:
    other = replace(RANDOM, source="elsewhere")
    with pytest.raises(ValueError, match="'random' is registered already"):
        register(other)
    assert register(RANDOM) is RANDOM


@pytest.mark.parametrize("wrong", [{"fixed_total": False}, {"fixed_count": False}, {"seeded": True}])
def test_promises_must_not_contradict_each_other(wrong: dict[str, bool]) -> None:
    with pytest.raises(ValueError, match="'cls_attention'"):
        replace(CLS_ATTENTION, **wrong)  # type: ignore[arg-type]
