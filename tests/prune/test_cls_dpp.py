"""[CLS]-weighted determinantal point process against determinants computed one by one."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastervlm_video.prune import CLS_ATTENTION, CLS_DPP
from tests.prune.kit import by_frame, make_inputs

torch.set_num_threads(1)

MOST_PER_FRAME = 4


def oracle(attention: np.ndarray, features: np.ndarray, k: int) -> list[list[int]]:
    """Greedy over the whole video: always the patch that multiplies its frame's determinant most."""
    frames, patches = attention.shape
    kept: list[list[int]] = [[] for _ in range(frames)]

    def determinant(frame: int, chosen: list[int]) -> float:
        x = features[frame, chosen]
        x = x / np.linalg.norm(x, axis=1, keepdims=True)
        weight = np.sqrt(attention[frame, chosen])
        return float(np.linalg.det(weight[:, None] * (1 + x @ x.T) / 2 * weight)) if chosen else 1.0

    for _ in range(frames * k):
        gain, frame, patch = max(
            (determinant(t, [*kept[t], i]) / determinant(t, kept[t]), t, i)
            for t in range(frames)
            for i in range(patches)
            if i not in kept[t] and len(kept[t]) < min(MOST_PER_FRAME * k, patches)
        )
        assert gain > 0
        kept[frame].append(patch)
    return kept


@settings(deadline=None, max_examples=40)
@given(rows=st.integers(1, 4), columns=st.integers(1, 4), frames=st.integers(1, 4), seed=st.integers(0, 2**31))
def test_greedy_determinants(rows: int, columns: int, frames: int, seed: int) -> None:
    # Features are 6 wide, so determinants of more than 7 patches vanish: stay below.
    k = 1 + seed % max(1, min(2, rows * columns))
    inputs = make_inputs(k, (rows, columns), frames, seed=seed)
    assert inputs.cls_attention is not None
    assert inputs.features is not None
    if MOST_PER_FRAME * k > 6 and frames > 1:
        k, inputs = 1, make_inputs(1, (rows, columns), frames, seed=seed)
    assert inputs.cls_attention is not None
    assert inputs.features is not None
    attention, features = inputs.cls_attention.double().numpy(), inputs.features.double().numpy()
    assert [list(run) for run in by_frame(CLS_DPP.select(inputs))] == oracle(attention, features, k)


def test_two_patches_of_one_object_are_not_both_kept() -> None:
    inputs = make_inputs(2, (1, 4), frames=1)
    assert inputs.cls_attention is not None
    assert inputs.features is not None
    inputs.cls_attention[:] = torch.tensor([0.4, 0.39, 0.1, 0.05])
    inputs.features[0] = torch.eye(4, 6)
    inputs.features[0, 1] = inputs.features[0, 0]
    assert CLS_DPP.select(inputs).indices.tolist() == [0, 2]
    assert CLS_ATTENTION.select(inputs).indices.tolist() == [0, 1]


def test_frames_that_show_more_get_more() -> None:
    inputs = make_inputs(2, (2, 4), frames=3)
    assert inputs.cls_attention is not None
    assert inputs.features is not None
    inputs.features[:] = torch.eye(8)[:, :6] + 0.1
    inputs.cls_attention[:] = 0.01
    inputs.cls_attention[1, :5] = 0.15
    counts = CLS_DPP.select(inputs).counts
    assert counts[1] == 5
    assert sum(counts) == 6


def test_no_frame_takes_more_than_four_times_the_budget() -> None:
    inputs = make_inputs(1, (3, 3), frames=6)
    assert inputs.cls_attention is not None
    inputs.cls_attention[0] *= 1e6
    assert CLS_DPP.select(inputs).counts[0] == MOST_PER_FRAME


def test_similar_attention_everywhere_is_scale_free() -> None:
    """Attention of another overall size gives the same choice."""
    inputs, larger = make_inputs(2, frames=4), make_inputs(2, frames=4)
    assert larger.cls_attention is not None
    larger.cls_attention.mul_(128.0)
    assert torch.equal(CLS_DPP.select(inputs).indices, CLS_DPP.select(larger).indices)
