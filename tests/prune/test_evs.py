"""Efficient Video Sampling against its description in plain Python."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastervlm_video.prune import EVS, UNIFORM_GRID
from tests.prune.kit import by_frame, cosine, lists, make_inputs

torch.set_num_threads(1)


def oracle(features: list[list[list[float]]], k: int) -> list[set[int]]:
    """The first frame whole, then the most changed of all later patches."""
    frames, patches = len(features), len(features[0])
    later = [(t, i) for t in range(1, frames) for i in range(patches)]
    later.sort(key=lambda at: cosine(features[at[0]][at[1]], features[at[0] - 1][at[1]]))
    kept = [set(range(patches)), *[set() for _ in range(frames - 1)]]
    for t, i in later[: frames * k - patches]:
        kept[t].add(i)
    return kept


@settings(deadline=None, max_examples=60)
@given(
    rows=st.integers(1, 5),
    columns=st.integers(1, 5),
    frames=st.integers(1, 7),
    seed=st.integers(0, 2**31),
    data=st.data(),
)
def test_the_first_frame_and_what_changed_most(
    rows: int, columns: int, frames: int, seed: int, data: st.DataObject
) -> None:
    patches = rows * columns
    k = data.draw(st.integers(-(-patches // frames), patches))
    inputs = make_inputs(k, (rows, columns), frames, seed=seed)
    selection = EVS.select(inputs)
    assert [set(run) for run in by_frame(selection)] == oracle(lists(inputs)[1], k)
    assert sum(selection.counts) == frames * k


@pytest.mark.parametrize("k", [1, 2, 3])
def test_less_than_a_frame_is_an_even_sample_of_the_first(k: int) -> None:
    selection = EVS.select(make_inputs(k, (4, 4), frames=5))
    expected = UNIFORM_GRID.select(make_inputs(5 * k, (4, 4), frames=1))
    assert selection.counts == (5 * k, 0, 0, 0, 0)
    assert torch.equal(selection.indices, expected.indices)


def test_what_stands_still_is_kept_once() -> None:
    """One patch of six changes, in frames 2 and 3 of 4. Lengths of features do not matter."""
    inputs = make_inputs(2, (2, 3), frames=4)
    assert inputs.features is not None
    inputs.features[:] = inputs.features[:1]
    inputs.features[1] *= 3
    inputs.features[2, 4] *= -1
    inputs.features[3, 4] += 10
    selection = EVS.select(inputs)
    assert by_frame(selection) == [[0, 1, 2, 3, 4, 5], [], [4], [4]]
    assert float(selection.scores[6]) == pytest.approx(2)


def test_a_still_video_needs_its_first_frame_only() -> None:
    """Equal changes are kept in order of time, so what the budget leaves over goes to the earliest."""
    inputs = make_inputs(3, (2, 3), frames=4, kind="constant")
    assert EVS.select(inputs).counts == (6, 6, 0, 0)
