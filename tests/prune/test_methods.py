"""What the methods promise about themselves, for every budget."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastervlm_video.errors import InvalidRequestError
from fastervlm_video.prune import (
    CLS_ATTENTION,
    RANDOM,
    UNIFORM_GRID,
    Need,
    PruneInputs,
    PruneMethod,
    Selection,
    get_method,
    method_names,
    register,
)

METHODS = (CLS_ATTENTION, RANDOM, UNIFORM_GRID)
GRIDS = ((1, 1), (4, 4), (3, 7), (7, 3), (1, 9))
quick = settings(deadline=None, max_examples=60)


def inputs_of(k: int, grid: tuple[int, int], frames: int = 3, seed: int = 0) -> PruneInputs:
    attention = torch.rand(frames, grid[0] * grid[1], generator=torch.Generator().manual_seed(1))
    # Rounded, so that there are ties.
    return PruneInputs(
        tokens_per_frame=k,
        grid=grid,
        pts_seconds=tuple(float(i) for i in range(frames)),
        seed=seed,
        cls_attention=(attention * 8).round() / 8,
    )


def by_frame(selection: Selection) -> list[list[int]]:
    return [run.tolist() for run in selection.indices.split(list(selection.counts))]


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
@pytest.mark.parametrize("grid", GRIDS)
def test_every_budget_gives_that_many_distinct_patches_best_first(method: PruneMethod, grid: tuple[int, int]) -> None:
    patches = grid[0] * grid[1]
    for k in range(1, patches + 1):
        selection = method.select(inputs_of(k, grid))
        assert selection.counts == (k, k, k)
        assert selection.indices.dtype == torch.int64
        assert selection.scores.dtype == torch.float32
        for chosen, scores in zip(by_frame(selection), selection.scores.split(k), strict=True):
            assert len(set(chosen)) == k
            assert set(chosen) <= set(range(patches))
            ranked = list(zip((-scores).tolist(), chosen, strict=True))
            assert ranked == sorted(ranked)


@pytest.mark.parametrize("method", [method for method in METHODS if method.nested], ids=lambda method: method.name)
@pytest.mark.parametrize("grid", GRIDS)
def test_nested_methods_give_prefixes(method: PruneMethod, grid: tuple[int, int]) -> None:
    full = by_frame(method.select(inputs_of(grid[0] * grid[1], grid)))
    for k in range(1, grid[0] * grid[1] + 1):
        assert by_frame(method.select(inputs_of(k, grid))) == [run[:k] for run in full]


def test_uniform_grid_is_not_nested_as_it_says() -> None:
    full = by_frame(UNIFORM_GRID.select(inputs_of(16, (4, 4))))[0]
    assert by_frame(UNIFORM_GRID.select(inputs_of(3, (4, 4))))[0] != full[:3]


def test_cls_attention_keeps_the_given_scores() -> None:
    inputs = inputs_of(4, (3, 3))
    assert inputs.cls_attention is not None
    selection = CLS_ATTENTION.select(inputs)
    attention = inputs.cls_attention.numpy()
    expected = [np.lexsort((np.arange(9), -row))[:4] for row in attention]
    assert by_frame(selection) == [run.tolist() for run in expected]
    np.testing.assert_array_equal(
        selection.scores.numpy(), np.concatenate([row[run] for row, run in zip(attention, expected, strict=True)])
    )


def test_random_depends_on_seed_and_frame_index_alone() -> None:
    torch.manual_seed(1)
    long = by_frame(RANDOM.select(inputs_of(5, (4, 4), frames=6, seed=3)))
    torch.manual_seed(2)
    assert by_frame(RANDOM.select(inputs_of(5, (4, 4), frames=2, seed=3))) == long[:2]
    assert by_frame(RANDOM.select(inputs_of(5, (4, 4), frames=6, seed=4))) != long
    assert len({tuple(run) for run in long}) == 6


def test_random_stays_what_it_is() -> None:
    """Cached entries outlive releases, so the draw must not change with one."""
    assert by_frame(RANDOM.select(inputs_of(4, (4, 4), frames=2, seed=7))) == [[1, 5, 7, 8], [6, 13, 14, 12]]


def test_random_is_fair() -> None:
    """Each of 16 patches is kept in a quarter of 4,000 frames, within five standard deviations."""
    selection = RANDOM.select(inputs_of(4, (4, 4), frames=4000))
    kept = torch.bincount(selection.indices, minlength=16)
    assert (kept - 1000).abs().max() < 5 * (4000 * 0.25 * 0.75) ** 0.5


@quick
@given(st.integers(1, 12), st.integers(1, 12), st.data())
def test_uniform_grid_spreads_evenly(rows: int, columns: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, rows * columns))
    chosen = by_frame(UNIFORM_GRID.select(inputs_of(k, (rows, columns), frames=1)))[0]
    per_row = np.bincount(np.array(chosen) // columns, minlength=rows)
    used = per_row[per_row > 0]
    assert used.max() - used.min() <= 1
    gaps = np.diff(np.flatnonzero(per_row))
    assert gaps.size == 0 or gaps.max() - gaps.min() <= 1


def test_uniform_grid_of_a_square_number_is_a_square() -> None:
    assert by_frame(UNIFORM_GRID.select(inputs_of(4, (4, 4), frames=1))) == [[5, 7, 13, 15]]


def test_budgets_must_fit_the_grid() -> None:
    with pytest.raises(InvalidRequestError, match="cannot keep 10 tokens of a frame of 9 patches"):
        inputs_of(10, (3, 3))


def test_the_registry_knows_its_methods() -> None:
    assert {"cls_attention", "random", "uniform_grid"} <= set(method_names())
    assert all(get_method(method.name) is method for method in METHODS)
    with pytest.raises(InvalidRequestError, match=r"unknown pruning method 'best': choose one of .*cls_attention"):
        get_method("best")


def test_a_name_belongs_to_one_method() -> None:
    other = PruneMethod("random", "elsewhere", RANDOM.select, frozenset({Need.KEYS}), True, True, False)
    with pytest.raises(ValueError, match="'random' is registered already"):
        register(other)
    assert register(RANDOM) is RANDOM
