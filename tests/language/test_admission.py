"""What an engine takes in: sizes, promises of pages, kinds of models."""

import random
from math import ceil
from typing import Any

import pytest
import torch
from transformers import MistralConfig, PreTrainedConfig, PreTrainedTokenizerFast, Qwen2Config
from transformers.models.lfm2 import Lfm2Config

from fastervlm_video.errors import CheckpointError, InvalidRequestError
from fastervlm_video.language import EngineLimits, Prompt
from fastervlm_video.language.admission import PAGE_TOKENS, PagesPromised, check_full_attention
from fastervlm_video.models.base import LanguageHalf
from tests.language.toys import make_half

SIZES: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}


def prompt(before: int, visual: int, after: int) -> Prompt:
    return Prompt((5,) * before, visual, (6,) * after)


def test_defaults_take_what_a_full_batch_of_full_contexts_needs(half: LanguageHalf) -> None:
    limits = EngineLimits(max_batch_size=3)
    assert limits.pages(half) == 3 * half.context_length // PAGE_TOKENS
    assert limits.table_pages(half) == limits.pages(half)


def test_sizes_that_are_given_are_kept_in_whole_pages(half: LanguageHalf) -> None:
    limits = EngineLimits(kv_cache_tokens=50, visual_rows=PAGE_TOKENS + 1)
    assert (limits.pages(half), limits.table_pages(half)) == (4, 2)


def test_no_more_memory_is_taken_than_a_share_of_what_is_free(tokenizer: PreTrainedTokenizerFast) -> None:
    half = make_half(tokenizer, context_length=64)
    greedy = EngineLimits(max_batch_size=10**9)
    layers, heads, width, two = 2, 2, 8, 2
    taken = greedy.pages(half) * PAGE_TOKENS * layers * heads * width * two * torch.float32.itemsize
    with open("/proc/meminfo") as file:
        total = 1024 * int(next(line for line in file if line.startswith("MemTotal")).split()[1])
    assert 0 < taken < 0.11 * total


@pytest.mark.parametrize(
    "limits",
    [
        {"max_batch_size": 0},
        {"max_queue": -1},
        {"max_batch_tokens": 0},
        {"kv_cache_tokens": 0},
        {"visual_rows": 0},
    ],
)
def test_bad_limits_are_refused(limits: dict[str, int]) -> None:
    (name,) = limits
    with pytest.raises(InvalidRequestError, match=f"{name} must be at least"):
        EngineLimits(**limits)


def test_a_request_is_split_where_its_video_ends() -> None:
    promised = PagesPromised(100)
    assert promised.split(prompt(3, 40, 9), 8, shares=True) == (2, 2)  # 43 tokens are two whole pages; 60 are four
    assert promised.split(prompt(3, 40, 9), 8, shares=False) == (0, 4)
    assert promised.split(prompt(3, 13, 1), 1, shares=True) == (1, 1)
    assert promised.split(prompt(3, 13, 0), 17, shares=True) == (0, 3)  # the last token is computed in any case
    assert promised.split(prompt(3, 0, 1), 1, shares=True) == (0, 1)


def test_text_between_visual_tokens_is_shared_and_text_behind_them_is_not() -> None:
    promised = PagesPromised(100)
    between, behind = (Prompt((5,) * 3, 26, (6,) * 9, ((at, (7, 7, 7)),)) for at in (25, 26))
    assert promised.split(between, 8, shares=True) == (2, 2)  # 32 tokens up to the last visual one, 49 in all
    assert promised.split(behind, 8, shares=True) == (1, 3)


def test_what_is_shared_is_promised_once() -> None:
    promised = PagesPromised(7)
    for _ in range(2):
        assert promised.fits("video", 3, 2)
        promised.promise("video", 3, 2)
    assert promised.promised == 7
    assert not promised.fits("video", 3, 1)
    promised.give_back("video", 2)
    assert promised.promised == 5
    assert promised.fits("video", 3, 2)
    assert not promised.fits("other", 1, 2)
    promised.give_back("video", 2)
    assert promised.promised == 0


def test_promises_are_the_sum_of_what_is_there() -> None:
    rng = random.Random(0)
    promised = PagesPromised(50)
    there: list[tuple[str, int, int]] = []
    for _ in range(2000):
        sharer = rng.choice("abcde")
        shared, own = ord(sharer) % 5, rng.randint(0, 6)
        if rng.random() < 0.6:
            pages = sum(own for _, _, own in there) + sum({s: n for s, n, _ in [*there, (sharer, shared, 0)]}.values())
            assert promised.fits(sharer, shared, own) == (pages + own <= 50)
            if promised.fits(sharer, shared, own):
                promised.promise(sharer, shared, own)
                there.append((sharer, shared, own))
        elif there:
            sharer, _, own = there.pop(rng.randrange(len(there)))
            promised.give_back(sharer, own)
        assert promised.promised == sum(o for _, _, o in there) + sum({s: n for s, n, _ in there}.values())


def test_pages_are_counted_up(half: LanguageHalf) -> None:
    for tokens in (1, 15, 16, 17, 95):
        assert EngineLimits(kv_cache_tokens=tokens).pages(half) == ceil(tokens / PAGE_TOKENS)


@pytest.mark.parametrize(
    ("config", "layer"),
    [
        (MistralConfig(**SIZES, num_hidden_layers=1, sliding_window=8), "Sliding"),
        (Lfm2Config(**SIZES, num_hidden_layers=2, layer_types=["conv", "full_attention"]), "Linear|Conv"),
    ],
)
def test_caches_with_more_than_keys_and_values_are_refused(config: PreTrainedConfig, layer: str) -> None:
    with pytest.raises(CheckpointError, match=layer):
        check_full_attention(config)


def test_plain_attention_is_accepted(half: LanguageHalf) -> None:
    check_full_attention(half.language_model.config)
    check_full_attention(Qwen2Config(**SIZES, num_hidden_layers=1))
