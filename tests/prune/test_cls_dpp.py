"""[CLS]-weighted determinantal point process against determinants computed one by one."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastervlm_video.prune import CLS_ATTENTION, CLS_DPP
from tests.prune.kit import by_frame, make_inputs

torch.set_num_threads(1)


def oracle(attention: np.ndarray, features: np.ndarray, k: int) -> list[list[int]]:
    """Greedy in every frame: always the patch that multiplies the determinant most."""
    frames, patches = attention.shape

    def determinant(frame: int, chosen: list[int]) -> float:
        x = features[frame, chosen]
        x = x / np.linalg.norm(x, axis=1, keepdims=True)
        weight = attention[frame, chosen] ** 0.05
        return float(np.linalg.det(weight[:, None] * (1 + x @ x.T) / 2 * weight)) if chosen else 1.0

    kept: list[list[int]] = [[] for _ in range(frames)]
    for frame in range(frames):
        for _ in range(k):
            left = [i for i in range(patches) if i not in kept[frame]]
            kept[frame].append(max(left, key=lambda i: determinant(frame, [*kept[frame], i])))
    return kept


@settings(deadline=None, max_examples=40)
@given(rows=st.integers(1, 4), columns=st.integers(1, 4), frames=st.integers(1, 4), seed=st.integers(0, 2**31))
def test_greedy_determinants(rows: int, columns: int, frames: int, seed: int) -> None:
    # Features are 6 wide, so determinants of more than 7 patches vanish: stay below.
    k = 1 + seed % min(5, rows * columns)
    inputs = make_inputs(k, (rows, columns), frames, seed=seed)
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


def test_similar_attention_everywhere_is_scale_free() -> None:
    """Attention of another overall size gives the same choice."""
    inputs, larger = make_inputs(2, frames=4), make_inputs(2, frames=4)
    assert larger.cls_attention is not None
    larger.cls_attention.mul_(128.0)
    assert torch.equal(CLS_DPP.select(inputs).indices, CLS_DPP.select(larger).indices)
