"""VisionZip against its description in plain Python."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastervlm_video.prune import VISIONZIP
from tests.prune.kit import HEADS, KEY_WIDTH, WIDTH, by_frame, cosine, lists, make_inputs

torch.set_num_threads(1)


def oracle(
    attention: list[float], features: list[list[float]], keys: list[list[list[float]]], k: int
) -> dict[int, list[float]]:
    """Kept patch to the features that stand for it, in one frame. Keys are by head."""
    patches = range(len(attention))
    contextual = round(k * 10 / 64)
    dominant = sorted(patches, key=lambda i: (-attention[i], i))[: k - contextual]
    kept = {i: features[i] for i in dominant}
    rest = [i for i in patches if i not in kept]
    targets = rest[:: len(rest) // contextual][:contextual] if contextual else []
    key = {i: [sum(head[i][d] for head in keys) / HEADS for d in range(KEY_WIDTH)] for i in rest}
    groups: dict[int, list[int]] = {target: [target] for target in targets}
    for i in rest:
        if targets and i not in groups:
            groups[max(targets, key=lambda target: cosine(key[i], key[target]))].append(i)
    for target, members in groups.items():
        kept[target] = [sum(features[i][c] for i in members) / len(members) for c in range(WIDTH)]
    return kept


@settings(deadline=None, max_examples=60)
@given(rows=st.integers(1, 6), columns=st.integers(1, 6), seed=st.integers(0, 2**31), data=st.data())
def test_dominant_patches_and_averages(rows: int, columns: int, seed: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, rows * columns))
    inputs = make_inputs(k, (rows, columns), frames=2, seed=seed)
    attention, features, keys = lists(inputs)
    selection = VISIONZIP.select(inputs)
    assert selection.features is not None
    for frame, (chosen, found) in enumerate(zip(by_frame(selection), selection.features.split(k), strict=True)):
        expected = oracle(attention[frame], features[frame], keys[frame], k)
        assert set(chosen) == set(expected)
        torch.testing.assert_close(found, torch.tensor([expected[i] for i in chosen]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("k", "dominant"), [(64, 54), (128, 108), (192, 162), (13, 11), (6, 5), (3, 3), (1, 1)])
def test_the_papers_split(k: int, dominant: int) -> None:
    inputs = make_inputs(k, (24, 24), frames=1)
    (chosen,) = by_frame(VISIONZIP.select(inputs))
    attention = lists(inputs)[0][0]
    best = sorted(range(576), key=lambda i: -attention[i])
    ranks = sorted(best.index(i) for i in chosen)
    assert ranks[:dominant] == list(range(dominant))
    rest = sorted(best[dominant:])
    assert sorted(set(chosen) - set(best[:dominant])) == (
        rest[:: len(rest) // (k - dominant)][: k - dominant] if k > dominant else []
    )


def test_merging_uses_everything_and_moves_no_mean() -> None:
    """One contextual patch: the average of all that is not dominant."""
    inputs = make_inputs(6)
    assert inputs.features is not None
    selection = VISIONZIP.select(inputs)
    assert selection.features is not None
    attention, _, _ = lists(inputs)
    for frame, chosen in enumerate(by_frame(selection)):
        best = sorted(range(16), key=lambda i: -attention[frame][i])
        (contextual,) = set(chosen) - set(best[:5])
        merged = selection.features[6 * frame + chosen.index(contextual)]
        torch.testing.assert_close(merged, inputs.features[frame, best[5:]].mean(dim=0))
