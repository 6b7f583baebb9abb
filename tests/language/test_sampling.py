"""The sampling function against a few lines of numpy."""

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastervlm_video.language import sample_tokens


def numpy_nucleus(logits: npt.NDArray[np.float64], temperature: float, top_p: float) -> npt.NDArray[np.float64]:
    """The distribution that is sampled from, written the slow way."""
    weights = np.exp((logits - logits.max()) / temperature)
    probabilities = weights / weights.sum()
    kept: npt.NDArray[np.float64] = np.zeros(len(logits))
    mass = 0.0
    for token in sorted(range(len(logits)), key=lambda i: (-probabilities[i], i)):
        kept[token] = probabilities[token]
        mass += probabilities[token]
        if mass >= top_p:
            break
    kept /= kept.sum()
    return kept


def sample(logits: npt.NDArray[np.float64], temperature: float, top_p: float, uniforms: torch.Tensor) -> torch.Tensor:
    rows = len(uniforms)
    return sample_tokens(
        torch.tensor(logits).expand(rows, -1), torch.full((rows,), temperature), torch.full((rows,), top_p), uniforms
    )


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    vocabulary=st.integers(1, 40),
    temperature=st.sampled_from([0.1, 0.7, 1.0, 2.0]),
    top_p=st.sampled_from([0.05, 0.31, 0.5, 0.9, 0.999, 1.0]),
)
def test_an_even_grid_of_uniforms_gives_the_nucleus_distribution(
    seed: int, vocabulary: int, temperature: float, top_p: float
) -> None:
    logits = np.random.default_rng(seed).normal(size=vocabulary) * 3
    draws = 4000
    uniforms = (torch.arange(draws) + 0.5) / draws
    frequencies = torch.bincount(sample(logits, temperature, top_p, uniforms), minlength=vocabulary) / draws
    # A token's share of an even grid is its probability to within one draw at either end.
    np.testing.assert_allclose(frequencies, numpy_nucleus(logits, temperature, top_p), atol=2 / draws)


def test_temperature_zero_is_greedy_and_ignores_the_rest() -> None:
    logits = torch.tensor([[0.0, 3.0, 1.0], [5.0, 5.0, 1.0]])
    tokens = sample_tokens(logits, torch.zeros(2), torch.tensor([0.1, 1.0]), torch.tensor([0.99, 0.99]))
    assert tokens.tolist() == [1, 0]


def test_rows_with_different_settings_do_not_mix() -> None:
    logits = torch.randn(6, 50, generator=torch.Generator().manual_seed(1))
    temperatures = torch.tensor([0.0, 1.0, 0.5, 2.0, 0.0, 0.1])
    top_ps = torch.tensor([1.0, 0.9, 0.5, 1.0, 0.2, 0.7])
    uniforms = torch.tensor([0.1, 0.4, 0.9, 0.7, 0.5, 0.2])
    together = sample_tokens(logits, temperatures, top_ps, uniforms)
    alone = [
        sample_tokens(logits[i : i + 1], temperatures[i : i + 1], top_ps[i : i + 1], uniforms[i : i + 1]).item()
        for i in range(6)
    ]
    assert together.tolist() == alone


def test_each_token_owns_a_half_open_interval() -> None:
    logits = np.zeros(4)  # probabilities are exact quarters
    uniforms = torch.tensor([0.0, 0.2499, 0.25, 0.5, 0.7499, 0.75])
    assert sample(logits, 1.0, 1.0, uniforms).tolist() == [0, 0, 1, 2, 2, 3]


@pytest.mark.parametrize("uniform", [0.0, 0.5, 1.0 - 2**-25, 1.0])
def test_rounding_never_leaves_the_nucleus(uniform: float) -> None:
    logits = np.zeros(1000)  # all equal: cumulative sums round most
    token = sample(logits, 1.0, 0.5, torch.tensor([uniform], dtype=torch.float32)).item()
    assert 0 <= token <= 501


def test_impossible_tokens_are_never_chosen() -> None:
    logits = np.array([-np.inf, 1.0, -np.inf, 1.0, -np.inf])
    uniforms = torch.linspace(0, 1, 101)
    assert set(sample(logits, 1.0, 1.0, uniforms).tolist()) == {1, 3}


def test_tiny_temperatures_do_not_overflow() -> None:
    logits = np.array([1e4, 1e4 - 1, -1e4])
    assert sample(logits, 1e-30, 1.0, torch.tensor([0.999])).tolist() == [0]


def test_a_nucleus_is_never_empty() -> None:
    """A top_p that is positive as a double is 0 as a float."""
    logits = torch.tensor([[0.0, 3.0, 1.0], [5.0, 0.0, 0.0]])
    chosen = sample_tokens(logits, torch.ones(2), torch.tensor([1e-46, 1.0]), torch.tensor([0.999, 0.0]))
    assert chosen.tolist() == [1, 0]
