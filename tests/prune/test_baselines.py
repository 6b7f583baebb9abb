"""The method that is the default, and the baselines that it is measured against."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastervlm_video.prune import CLS_ATTENTION, RANDOM, UNIFORM_GRID
from tests.prune.kit import by_frame, make_inputs

quick = settings(deadline=None, max_examples=60)


def test_uniform_grid_is_not_nested_as_it_says() -> None:
    full = by_frame(UNIFORM_GRID.select(make_inputs(16, (4, 4))))[0]
    assert by_frame(UNIFORM_GRID.select(make_inputs(3, (4, 4))))[0] != full[:3]


def test_cls_attention_keeps_the_given_scores() -> None:
    inputs = make_inputs(4, (3, 3), kind="ties")
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
    long = by_frame(RANDOM.select(make_inputs(5, (4, 4), frames=6, lots=3)))
    torch.manual_seed(2)
    assert by_frame(RANDOM.select(make_inputs(5, (4, 4), frames=2, lots=3))) == long[:2]
    assert by_frame(RANDOM.select(make_inputs(5, (4, 4), frames=6, lots=4))) != long
    assert len({tuple(run) for run in long}) == 6


def test_random_stays_what_it_is() -> None:
    """Cached entries outlive releases, so the draw must not change with one."""
    assert by_frame(RANDOM.select(make_inputs(4, (4, 4), frames=2, lots=7))) == [[1, 5, 7, 8], [6, 13, 14, 12]]


def test_random_is_fair() -> None:
    """Each of 16 patches is kept in a quarter of 4,000 frames, within five standard deviations."""
    selection = RANDOM.select(make_inputs(4, (4, 4), frames=4000))
    kept = torch.bincount(selection.indices, minlength=16)
    assert (kept - 1000).abs().max() < 5 * (4000 * 0.25 * 0.75) ** 0.5


@quick
@given(st.integers(1, 12), st.integers(1, 12), st.data())
def test_uniform_grid_spreads_evenly(rows: int, columns: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, rows * columns))
    chosen = by_frame(UNIFORM_GRID.select(make_inputs(k, (rows, columns), frames=1)))[0]
    per_row = np.bincount(np.array(chosen) // columns, minlength=rows)
    used = per_row[per_row > 0]
    assert used.max() - used.min() <= 1
    gaps = np.diff(np.flatnonzero(per_row))
    assert gaps.size == 0 or gaps.max() - gaps.min() <= 1


def test_uniform_grid_of_a_square_number_is_a_square() -> None:
    assert by_frame(UNIFORM_GRID.select(make_inputs(4, (4, 4), frames=1))) == [[5, 7, 13, 15]]
