"""VisPruner against the paper's description in plain Python."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastervlm_video.prune import VISPRUNER
from tests.prune.kit import by_frame, cosine, lists, make_inputs

torch.set_num_threads(1)


def works(patches: int, k: int) -> bool:
    """Whether the published loop comes to an end at this budget: it takes pairs, and as many as it is to drop.

    An odd one out is harmless in a round that leaves two even ranks, because a dimension of 1 is broadcast.
    """
    left, diverse = patches - k // 2, k - k // 2
    while left > diverse:
        drop = min(8, left - diverse)
        if drop > left // 2 or (left % 2 and left // 2 - drop != 1):
            return False
        left -= drop
    return True


def oracle(attention: list[float], features: list[list[float]], k: int) -> set[int]:
    """The kept set of one frame, by the published loop."""
    ranked = sorted(range(len(attention)), key=lambda i: (-attention[i], i))
    important, residual = ranked[: k // 2], ranked[k // 2 :]
    diverse = k - k // 2
    while len(residual) > diverse:
        drop = min(8, len(residual) - diverse)
        even, odd = residual[::2], residual[1::2]
        likeness = {a: max(cosine(features[a], features[b]) for b in odd) for a in even}
        residual = sorted(even, key=lambda a: -likeness[a])[drop:] + odd
    return set(important) | set(residual)


@settings(deadline=None, max_examples=60)
@given(rows=st.integers(1, 9), columns=st.integers(1, 9), seed=st.integers(0, 2**31), data=st.data())
def test_agrees_with_the_published_loop_wherever_that_works(
    rows: int, columns: int, seed: int, data: st.DataObject
) -> None:
    patches = rows * columns
    k = data.draw(st.sampled_from([k for k in range(1, patches + 1) if works(patches, k)]))
    inputs = make_inputs(k, (rows, columns), frames=2, seed=seed)
    attention, features, _ = lists(inputs)
    assert [set(run) for run in by_frame(VISPRUNER.select(inputs))] == [
        oracle(attention[frame], features[frame], k) for frame in range(2)
    ]


def test_where_the_published_loop_works() -> None:
    """At the paper's budgets of 576 patches, but not at all of those of a video's 256."""
    assert all(works(576, k) for k in (128, 64, 32))
    assert [k for k in (192, 128, 64, 26, 13) if not works(256, k)] == [26]


@pytest.mark.parametrize("k", [2, 7, 13, 26, 64, 128, 192])
def test_budgets_of_a_real_frame(k: int) -> None:
    inputs = make_inputs(k, (16, 16), frames=1)
    attention, features, _ = lists(inputs)
    (chosen,) = by_frame(VISPRUNER.select(inputs))
    assert len(chosen) == k
    assert not works(256, k) or set(chosen) == oracle(attention[0], features[0], k)
    best = sorted(range(256), key=lambda i: -attention[0][i])
    assert set(best[: k // 2]) <= set(chosen)


def test_scores_are_the_attention() -> None:
    inputs = make_inputs(6)
    selection = VISPRUNER.select(inputs)
    assert inputs.cls_attention is not None
    expected = torch.cat([inputs.cls_attention[t, run] for t, run in enumerate(by_frame(selection))])
    assert torch.equal(selection.scores, expected)


def test_a_duplicate_goes_before_what_is_unlike_all_others() -> None:
    """Ranks 2 and 3 show the same, rank 4 something else: at a budget of 5 of 6, rank 2 goes."""
    inputs = make_inputs(5, (1, 6), frames=1)
    assert inputs.cls_attention is not None
    assert inputs.features is not None
    inputs.cls_attention[0] = torch.tensor([0.6, 0.5, 0.4, 0.3, 0.2, 0.1])
    inputs.features[0] = torch.eye(6)
    inputs.features[0, 3] = inputs.features[0, 2]
    assert by_frame(VISPRUNER.select(inputs)) == [[0, 1, 3, 4, 5]]
