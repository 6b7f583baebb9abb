"""Attention over pages against a softmax written out, sequence by sequence."""

import math
import random
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from fastervlm_video.language.paged_attention import PagedSequence, StepPlan, paged_attention

PAGE, WIDTH, PAGES = 4, 8, 60


class Cache:
    """A cache full of what would spoil any answer it got into."""

    def __init__(self, key_heads: int, layers: int = 2) -> None:
        self.layers = {
            layer: (
                torch.full((PAGES, PAGE, key_heads, WIDTH), float("nan")),
                torch.full((PAGES, PAGE, key_heads, WIDTH), float("inf")),
            )
            for layer in range(layers)
        }
        self.free = list(range(PAGES))
        random.Random(key_heads).shuffle(self.free)
        self.plan: StepPlan | None = None


class Sequence:
    """One sequence's whole history, beside the cache."""

    def __init__(self) -> None:
        self.pages: list[int] = []
        self.keys: dict[int, list[Tensor]] = {}
        self.values: dict[int, list[Tensor]] = {}
        self.length = 0


def expected(query: Tensor, sequence: Sequence, layer: int, scaling: float) -> Tensor:
    """[heads, new, D] of queries [heads, new, D]: the softmax, one query at a time."""
    keys, values = torch.cat(sequence.keys[layer], dim=1), torch.cat(sequence.values[layer], dim=1)
    heads, new, _ = query.shape
    group = heads // keys.shape[0]
    output = torch.empty_like(query)
    for head in range(heads):
        for position in range(new):
            seen = keys.shape[1] - new + position + 1
            weights = (keys[head // group, :seen] @ query[head, position] * scaling).softmax(dim=0)
            output[head, position] = weights @ values[head // group, :seen]
    return output


def step(cache: Cache, parts: list[tuple[Sequence, int]], heads: int, key_heads: int, scaling: float | None) -> None:
    """Run one step of all layers and compare."""
    total = sum(new for _, new in parts)
    writes: list[int] = []
    planned = []
    for sequence, new in parts:
        first, sequence.length = sequence.length, sequence.length + new
        while len(sequence.pages) * PAGE < sequence.length:
            sequence.pages.append(cache.free.pop())
        writes += [sequence.pages[i // PAGE] * PAGE + i % PAGE for i in range(first, sequence.length)]
        planned.append(PagedSequence(new, sequence.length, sequence.pages))
    cache.plan = StepPlan(planned, cache.layers, torch.tensor(writes), torch.float32)
    for layer in cache.layers:
        query = torch.randn(heads, total, WIDTH)
        key, value = torch.randn(2, key_heads, total, WIDTH).unbind()
        module = nn.Module()
        module.layer_idx = layer  # type: ignore[assignment]
        output, weights = paged_attention(
            module, query[None], key[None], value[None], None, scaling=scaling, cache=cache, is_causal=True
        )
        assert weights is None
        assert output.shape == (1, total, heads, WIDTH)
        first = 0
        for sequence, new in parts:
            mine = slice(first, first + new)
            sequence.keys.setdefault(layer, []).append(key[:, mine])
            sequence.values.setdefault(layer, []).append(value[:, mine])
            wanted = expected(query[:, mine], sequence, layer, scaling or 1 / math.sqrt(WIDTH))
            torch.testing.assert_close(output[0, mine].transpose(0, 1), wanted, atol=1e-5, rtol=1e-4)
            first += new


@pytest.mark.parametrize(("heads", "key_heads"), [(4, 4), (6, 2), (3, 1)])
@pytest.mark.parametrize("seed", range(6))
def test_random_steps_of_random_sequences(heads: int, key_heads: int, seed: int) -> None:
    """Prompts, pieces of prompts behind a past, and single tokens, alone and mixed, in any order."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    cache = Cache(key_heads)
    sequences = [Sequence() for _ in range(4)]
    for _ in range(7):
        chosen = rng.sample(sequences, rng.randint(1, 4))
        parts = [(sequence, rng.choice([1, 1, 1, 2, 5, 9])) for sequence in chosen]
        step(cache, parts, heads, key_heads, rng.choice([None, 0.3]))


def test_single_tokens_of_very_different_lengths() -> None:
    torch.manual_seed(0)
    cache = Cache(2)
    sequences = [Sequence() for _ in range(6)]
    step(cache, [(sequence, 1 + 7 * n) for n, sequence in enumerate(sequences)], 4, 2, None)
    for _ in range(5):
        step(cache, [(sequence, 1) for sequence in sequences], 4, 2, None)
    step(cache, [(sequences[0], 1), (sequences[3], 4), (sequences[5], 1)], 4, 2, None)


def test_single_tokens_of_equally_long_sequences_need_no_mask() -> None:
    torch.manual_seed(0)
    cache = Cache(2)
    sequences = [Sequence() for _ in range(3)]
    step(cache, [(sequence, 6) for sequence in sequences], 4, 2, None)
    for _ in range(3):
        step(cache, [(sequence, 1) for sequence in sequences], 4, 2, None)


def test_sequences_may_share_pages() -> None:
    """Two questions about a video: the same pages, each its own end."""
    torch.manual_seed(0)
    cache = Cache(2)
    first, second = Sequence(), Sequence()
    step(cache, [(first, 2 * PAGE)], 4, 2, None)
    second.pages, second.length = [*first.pages], first.length
    second.keys = {layer: [*keys] for layer, keys in first.keys.items()}
    second.values = {layer: [*values] for layer, values in first.values.items()}
    step(cache, [(first, 3), (second, 1)], 4, 2, None)
    step(cache, [(first, 1), (second, 1)], 4, 2, None)


def test_a_mask_of_transformers_own_would_be_a_mistake() -> None:
    query = torch.zeros(1, 1, 1, WIDTH)
    with pytest.raises(AssertionError):
        paged_attention(nn.Module(), query, query, query, torch.zeros(1), cache=SimpleNamespace(plan=None))
