"""Rows of a batch choose by their own settings and their own randomness."""

import pytest
import torch

from fastervlm_video.config import SamplingParams
from fastervlm_video.language.row_sampler import RowSampler, choose_tokens


def logits(rows: int, *, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, 40, generator=torch.Generator().manual_seed(seed))


def test_greedy_rows_take_the_likeliest() -> None:
    scores = logits(5)
    assert choose_tokens(scores, [RowSampler(SamplingParams()) for _ in range(5)]) == scores.argmax(dim=1).tolist()


def test_a_row_chooses_the_same_alone_and_in_any_company() -> None:
    settings = [
        SamplingParams(seed=1),
        SamplingParams(temperature=1.0, seed=5),
        SamplingParams(temperature=2.0, top_p=0.7, seed=5),
        SamplingParams(temperature=0.5, seed=2**63 - 1),
    ]
    steps = [logits(4, seed=step) for step in range(20)]
    together = [RowSampler(params) for params in settings]
    batch = [choose_tokens(scores, together) for scores in steps]
    for row, params in enumerate(settings):
        alone = RowSampler(params)
        assert [choose_tokens(scores[row : row + 1], [alone])[0] for scores in steps] == [step[row] for step in batch]


def test_greedy_rows_draw_nothing() -> None:
    sampler = RowSampler(SamplingParams(seed=3))
    assert [sampler.draw() for _ in range(3)] == [0.0] * 3
    first, second = (RowSampler(SamplingParams(temperature=1.0, seed=3)) for _ in range(2))
    draws = [first.draw() for _ in range(50)]
    assert draws == [second.draw() for _ in range(50)]
    assert len(set(draws)) == 50
    assert all(0 <= draw < 1 for draw in draws)


def test_without_a_seed_no_two_are_alike() -> None:
    assert len({RowSampler(SamplingParams(temperature=1.0)).draw() for _ in range(10)}) == 10


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_rows_that_are_not_finite_have_nothing_to_offer_and_disturb_nobody(bad: float, temperature: float) -> None:
    scores = logits(3)
    samplers = [RowSampler(SamplingParams(temperature=temperature, seed=7)) for _ in range(3)]
    expected = choose_tokens(scores, samplers)
    scores[1, 4] = bad
    samplers = [RowSampler(SamplingParams(temperature=temperature, seed=7)) for _ in range(3)]
    assert choose_tokens(scores, samplers) == [expected[0], None, expected[2]]


def test_impossible_tokens_are_no_overflow() -> None:
    scores = logits(1)
    scores[0, 1:] = -torch.inf
    assert choose_tokens(scores, [RowSampler(SamplingParams(temperature=1.0))]) == [0]
    scores[0, 0] = -torch.inf
    assert choose_tokens(scores, [RowSampler(SamplingParams())]) == [None]


def test_half_precision_logits_are_widened() -> None:
    assert choose_tokens(logits(2).half(), [RowSampler(SamplingParams(temperature=0.7, seed=1))] * 2)
