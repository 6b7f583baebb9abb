"""DivPrune against farthest-point search in plain Python."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastervlm_video.prune import DIVPRUNE
from tests.prune.kit import by_frame, cosine, lists, make_inputs

torch.set_num_threads(1)


def oracle(features: list[list[float]], k: int) -> list[int]:
    patches = range(len(features))
    distance = [[1 - cosine(features[i], features[j]) for j in patches] for i in patches]
    kept = [max(patches, key=lambda i: min((distance[i][j] for j in patches if j != i), default=0))]
    while len(kept) < k:
        left = [i for i in patches if i not in kept]
        kept.append(max(left, key=lambda i: min(distance[i][j] for j in kept)))
    return kept


@settings(deadline=None, max_examples=60)
@given(rows=st.integers(1, 5), columns=st.integers(1, 5), seed=st.integers(0, 2**31), data=st.data())
def test_each_patch_is_the_farthest_from_those_before(rows: int, columns: int, seed: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, rows * columns))
    inputs = make_inputs(k, (rows, columns), frames=2, seed=seed)
    features = lists(inputs)[1]
    assert by_frame(DIVPRUNE.select(inputs)) == [oracle(features[frame], k) for frame in range(2)]


def test_scores_are_the_distances() -> None:
    inputs = make_inputs(9)
    selection = DIVPRUNE.select(inputs)
    features = lists(inputs)[1]
    for frame, (chosen, scores) in enumerate(zip(by_frame(selection), selection.scores.split(9), strict=True)):
        assert scores[0] > 2, "more than any distance"
        for i in range(1, 9):
            nearest = min(1 - cosine(features[frame][chosen[i]], features[frame][j]) for j in chosen[:i])
            assert abs(float(scores[i]) - nearest) < 1e-5


def test_of_many_alike_one_is_kept_before_a_second() -> None:
    inputs = make_inputs(3, (2, 4), frames=1)
    assert inputs.features is not None
    inputs.features[0] = 0
    for patch, axis in enumerate((0, 0, 0, 1, 1, 2, 0, 0)):
        inputs.features[0, patch, axis] = 1 + patch  # directions count, lengths do not
    (chosen,) = by_frame(DIVPRUNE.select(inputs))
    assert sorted({0: 0, 1: 0, 2: 0, 3: 1, 4: 1, 5: 2, 6: 0, 7: 0}[patch] for patch in chosen) == [0, 1, 2]
    assert chosen[0] == 5, "the only one without a duplicate"
