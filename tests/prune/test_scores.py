"""Scores and top-k against a few lines of NumPy."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastervlm_video.errors import InvalidRequestError
from fastervlm_video.prune import cls_attention_scores, top_k_stable

quick = settings(deadline=None, max_examples=60)


@quick
@given(shape=st.tuples(*[st.integers(1, 5)] * 4), scale=st.floats(0.1, 4), seed=st.integers(0, 2**31))
def test_scores_are_the_mean_over_heads_of_row_zero(shape: tuple[int, int, int, int], scale: float, seed: int) -> None:
    frames, heads, patches, width = shape
    generator = np.random.default_rng(seed)
    queries = generator.normal(size=(frames, heads, 1 + patches, width)).astype(np.float32)
    keys = generator.normal(size=(frames, heads, 1 + patches, width)).astype(np.float32)
    logits = scale * queries.astype(np.float64) @ keys.astype(np.float64).swapaxes(-1, -2)
    attention = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    expected = attention.mean(1)[:, 0, 1:]

    scores = cls_attention_scores(torch.from_numpy(queries[:, :, 0]), torch.from_numpy(keys), scale)

    assert scores.dtype == torch.float32
    np.testing.assert_allclose(scores.numpy(), expected, atol=1e-5)


def test_the_softmax_runs_over_cls_too() -> None:
    """With every logit equal each of the 1 + 3 keys gets a quarter, and [CLS]'s own quarter is dropped."""
    scores = cls_attention_scores(torch.zeros(1, 2, 4), torch.randn(1, 2, 4, 4), 1.0)
    assert scores.tolist() == [[0.25, 0.25, 0.25]]


def test_scores_of_half_precision_inputs_are_computed_in_float32() -> None:
    """1 and 1.001 are one number in bfloat16; their scores must still differ by what the logits differ."""
    queries, keys = torch.ones(1, 1, 2, dtype=torch.bfloat16), torch.zeros(1, 1, 3, 2, dtype=torch.bfloat16)
    keys[0, 0, 1], keys[0, 0, 2] = 1.0, torch.tensor([1.0, 1.0078125])
    scores = cls_attention_scores(queries, keys, 0.01)
    assert scores.dtype == torch.float32
    assert scores[0, 1] > scores[0, 0]


@quick
@given(st.lists(st.lists(st.integers(0, 4), min_size=7, max_size=7), min_size=1, max_size=3), st.integers(1, 7))
def test_top_k_is_by_score_then_by_index(rows: list[list[int]], k: int) -> None:
    expected = [sorted(range(7), key=lambda i, row=row: (-row[i], i))[:k] for row in rows]  # type: ignore[misc]
    assert top_k_stable(torch.tensor(rows, dtype=torch.float32), k).tolist() == expected


@pytest.mark.parametrize("k", [0, -1, 5])
def test_top_k_refuses_counts_that_do_not_exist(k: int) -> None:
    with pytest.raises(InvalidRequestError, match=rf"cannot keep {k} of 4"):
        top_k_stable(torch.zeros(1, 4), k)
