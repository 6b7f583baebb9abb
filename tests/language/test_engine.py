"""The engine's answers against Hugging Face's ``generate``, whatever else is going on."""

import random
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from transformers import MistralConfig, MistralForCausalLM, PreTrainedTokenizerFast

from fastervlm_video.errors import CheckpointError, ContextLengthError, InvalidRequestError, OverloadedError
from fastervlm_video.language import Engine, EngineLimits, Event, PagedEngine, TextDelta, generate, turns
from fastervlm_video.language.admission import PAGE_TOKENS
from fastervlm_video.language.embedding import embed_prompt, project
from fastervlm_video.models.base import LanguageHalf
from tests.language.kit import Gate, Listener, check_answer, random_request, wait_until
from tests.language.toys import (
    CONTEXT_LENGTH,
    VISION_WIDTH,
    Oracle,
    make_half,
    make_request,
    sentencepiece_tokenizer,
    whole_text,
)


def test_it_is_an_engine(half: LanguageHalf, tokenizer: PreTrainedTokenizerFast) -> None:
    with PagedEngine(half, tokenizer, EngineLimits(max_batch_size=3, max_queue=4)) as engine:
        assert isinstance(engine, Engine)
        assert (engine.capacity, engine.queue_depth, engine.running, engine.healthy) == (7, 0, 0, True)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kv_cache_tokens", [None, 200])
def test_mixed_requests_are_answered_as_if_alone(
    tokenizer: PreTrainedTokenizerFast, seed: int, kv_cache_tokens: int | None
) -> None:
    """Lengths, budgets, arrivals and departures at random; some are cancelled on the way."""
    rng = random.Random(seed)
    half = make_half(tokenizer, seed=seed, end_ids=[2, *range(60, 80)])
    oracle = Oracle(half)
    requests = [random_request(half, rng) for _ in range(24)]
    listeners = [Listener() for _ in requests]
    doomed = set(rng.sample(range(len(requests)), 5))
    size = rng.choice([2, 5, 16])
    with PagedEngine(half, tokenizer, EngineLimits(max_batch_size=size, kv_cache_tokens=kv_cache_tokens)) as engine:
        handles = []
        for number, (request, listener) in enumerate(zip(requests, listeners, strict=True)):
            handles.append(engine.submit(request, listener))
            time.sleep(rng.choice([0, 0, 0.001, 0.005]))
            if (earlier := number - rng.randint(0, 3)) in doomed:
                handles[earlier].cancel()
        for number in doomed:
            handles[number].cancel()
        reasons = {
            check_answer(requests[number], listeners[number], oracle, tokenizer)
            for number in range(len(requests))
            if number not in doomed
        }
        wait_until(lambda: engine.running == 0)
    assert reasons == {"stop", "length"}


def test_requests_in_flight_together_share_forward_passes(tokenizer: PreTrainedTokenizerFast) -> None:
    half = make_half(tokenizer, end_ids=[])
    listeners = [Listener() for _ in range(8)]
    with PagedEngine(half, tokenizer) as engine:
        gate = Gate(engine)
        for number, listener in enumerate(listeners):
            engine.submit(make_request(half, seed=number, num_visual=3 * number, max_tokens=20), listener)
        gate.open()
        assert [len(listener.finished.token_ids) for listener in listeners] == [20] * 8
    assert max(gate.rows) == 8
    assert gate.passes <= 20 + 3  # one by one it would be 160


def test_those_who_come_at_the_same_time_begin_in_one_pass(
    tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An idle engine looks again before it begins: here, each time it does, another one has come, but for the last."""
    half = make_half(tokenizer, end_ids=[])
    listeners = [Listener() for _ in range(4)]
    newcomers = iter(listeners[1:])

    def come(seconds: float) -> None:
        assert 0 < seconds < 0.01
        listener = next(newcomers, None)
        if listener is not None:
            engine.submit(make_request(half), listener)

    with PagedEngine(half, tokenizer, EngineLimits(max_batch_size=8)) as engine:
        gate = Gate(engine)
        gate.open()
        monkeypatch.setattr(turns, "time", SimpleNamespace(sleep=come))
        engine.submit(make_request(half), listeners[0])
        assert all(listener.finished.usage.completion_tokens for listener in listeners)
    assert gate.rows[0] == 4


def test_a_newcomer_joins_a_running_batch_and_leaves_before_it(tokenizer: PreTrainedTokenizerFast) -> None:
    half = make_half(tokenizer, end_ids=[])
    ends: list[str] = []
    long, short = make_request(half, seed=1, max_tokens=60), make_request(half, seed=2, max_tokens=3)
    short_listener, long_listener = Listener(), Listener()

    def on_short(event: Event) -> None:
        if not isinstance(event, TextDelta):
            ends.append("short")
        short_listener(event)

    def on_long(event: Event) -> None:
        if not long_listener.events:
            engine.submit(short, on_short)  # from the engine's own thread
        if not isinstance(event, TextDelta):
            ends.append("long")
        long_listener(event)

    with PagedEngine(half, tokenizer) as engine:
        engine.submit(long, on_long)
        assert long_listener.finished.token_ids == Oracle(half).answer(long)
        assert short_listener.finished.token_ids == Oracle(half).answer(short)
    assert ends == ["short", "long"]


@pytest.mark.parametrize(("limit", "rows"), [(None, 4), (2 * 32, 2), (3 * 32 - PAGE_TOKENS, 2), (32, 1)])
def test_the_batch_stays_within_its_cache(tokenizer: PreTrainedTokenizerFast, limit: int | None, rows: int) -> None:
    half = make_half(tokenizer, end_ids=[])
    listeners = [Listener() for _ in range(9)]
    with PagedEngine(half, tokenizer, EngineLimits(max_batch_size=4, kv_cache_tokens=limit)) as engine:
        gate = Gate(engine)
        for number, listener in enumerate(listeners):
            engine.submit(make_request(half, seed=number, num_visual=15, max_tokens=10), listener)
        gate.open()
        for listener in listeners:
            assert listener.finished.token_ids
    assert max(gate.rows) == rows


def test_sentencepiece_answers_have_no_leading_blank() -> None:
    tokenizer = sentencepiece_tokenizer()
    half = make_half(tokenizer, end_ids=[])
    with PagedEngine(half, tokenizer) as engine:
        for seed in range(6):
            result = generate(engine, make_request(half, seed=seed, max_tokens=30))
            assert result.text == whole_text(tokenizer, list(result.token_ids))
            assert result.text == result.text.lstrip()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_and_padding_give_finite_answers(tokenizer: PreTrainedTokenizerFast, dtype: torch.dtype) -> None:
    half = make_half(tokenizer, end_ids=[])
    torch.nn.Module.to(half.language_model, dtype)
    half.projector.to(dtype)
    listeners = [Listener() for _ in range(4)]
    with PagedEngine(half, tokenizer) as engine:
        gate = Gate(engine)
        for number, listener in enumerate(listeners):
            engine.submit(make_request(half, seed=number, num_visual=12 * number), listener)
        gate.open()
        assert [len(listener.finished.token_ids) for listener in listeners] == [8] * 4
    assert max(gate.rows) == 4


def test_a_seeded_answer_does_not_depend_on_the_batch(half: LanguageHalf, tokenizer: PreTrainedTokenizerFast) -> None:
    requests = [
        make_request(half, seed=number, max_tokens=25, temperature=1.5, top_p=0.9, sampling_seed=number % 3)
        for number in range(9)
    ]
    with PagedEngine(half, tokenizer, EngineLimits(max_batch_size=4)) as engine:
        alone = [generate(engine, request).token_ids for request in requests]
        listeners = [Listener() for _ in requests]
        for request, listener in zip(requests, listeners, strict=True):
            engine.submit(request, listener)
        assert [listener.finished.token_ids for listener in listeners] == alone


def test_seeds_matter(tokenizer: PreTrainedTokenizerFast) -> None:
    half = make_half(tokenizer, end_ids=[])
    with PagedEngine(half, tokenizer) as engine:
        answers = [
            generate(engine, make_request(half, max_tokens=30, temperature=2.0, sampling_seed=seed)).token_ids
            for seed in (1, 2, None, None)
        ]
    assert len(set(answers)) == 4


def test_cancelling_frees_the_row_with_the_next_step(tokenizer: PreTrainedTokenizerFast) -> None:
    half = make_half(tokenizer, end_ids=[])
    first, second = Listener(), Listener()
    passes_when_cancelled = 0

    def on_first(event: Event) -> None:
        nonlocal passes_when_cancelled
        first(event)
        if len(first.events) == 3:
            handle.cancel()
            passes_when_cancelled = gate.passes

    with PagedEngine(half, tokenizer, EngineLimits(max_batch_size=1)) as engine:
        gate = Gate(engine)
        handle = engine.submit(make_request(half, seed=1, max_tokens=70), on_first)
        engine.submit(make_request(half, seed=2, max_tokens=5), second)
        gate.open()
        assert second.finished.token_ids
    assert len(first.events) == 3
    assert gate.passes - passes_when_cancelled == 5


def test_a_full_engine_says_so_and_a_cancelled_request_makes_room(
    half: LanguageHalf, tokenizer: PreTrainedTokenizerFast
) -> None:
    listeners = [Listener() for _ in range(4)]
    with PagedEngine(half, tokenizer, EngineLimits(max_batch_size=1, max_queue=1)) as engine:
        gate = Gate(engine)
        engine.submit(make_request(half), listeners[0])
        wait_until(lambda: engine.running == 1)
        waiting = engine.submit(make_request(half), listeners[1])
        assert (engine.running, engine.queue_depth) == (1, 1)
        with pytest.raises(OverloadedError, match="1 requests running, 1 waiting"):
            engine.submit(make_request(half), listeners[2])
        waiting.cancel()
        waiting.cancel()
        assert engine.queue_depth == 0
        engine.submit(make_request(half), listeners[3])
        gate.open()
        assert listeners[0].finished.token_ids
        assert listeners[3].finished.token_ids
    assert listeners[1].events == listeners[2].events == []


def test_what_does_not_fit_the_model_is_refused(half: LanguageHalf, tokenizer: PreTrainedTokenizerFast) -> None:
    good = make_request(half)
    vocabulary = half.language_model.config.vocab_size
    refused = Listener()
    with PagedEngine(half, tokenizer, EngineLimits(kv_cache_tokens=50)) as engine:
        for ids in ((vocabulary,), (-1,)):
            request = make_request(half, num_before=1)
            object.__setattr__(request.prompt, "ids_before", ids)
            with pytest.raises(InvalidRequestError, match=f"\\[0, {vocabulary}\\)"):
                engine.submit(request, refused)
        wide = make_request(half)
        object.__setattr__(wide, "visual", torch.zeros(5, VISION_WIDTH + 1))
        with pytest.raises(InvalidRequestError, match=f"{VISION_WIDTH + 1} wide"):
            engine.submit(wide, refused)
        with pytest.raises(ContextLengthError, match=f"context is {CONTEXT_LENGTH}"):
            engine.submit(make_request(half, max_tokens=CONTEXT_LENGTH - 11), refused)
        with pytest.raises(ContextLengthError, match="65 cache slots, but the engine has 64"):  # 50, in whole pages
            engine.submit(make_request(half, max_tokens=53), refused)
        assert generate(engine, good).token_ids == Oracle(half).answer(good)
    assert refused.events == []


def test_text_among_visual_tokens_must_be_in_the_vocabulary(
    half: LanguageHalf, tokenizer: PreTrainedTokenizerFast
) -> None:
    vocabulary = half.language_model.config.vocab_size
    with PagedEngine(half, tokenizer) as engine:
        for bad in (vocabulary, -1):
            with pytest.raises(InvalidRequestError, match=f"\\[0, {vocabulary}\\)"):
                engine.submit(make_request(half, inserts=((2, (7, bad)),)), Listener())


def test_separators_for_a_model_that_has_none_are_refused(
    half: LanguageHalf, tokenizer: PreTrainedTokenizerFast
) -> None:
    plain = replace(half, separator=None)
    with PagedEngine(plain, tokenizer) as engine:
        with pytest.raises(InvalidRequestError, match="2 of 5 visual tokens are separators"):
            engine.submit(make_request(half, separators=(1, 4)), Listener())
        good = make_request(half)
        assert generate(engine, good).token_ids == Oracle(half).answer(good)
    with pytest.raises(InvalidRequestError, match="no separator"):
        project(plain, torch.zeros(3, VISION_WIDTH), (1,))


def test_a_separator_of_another_width_is_refused(half: LanguageHalf) -> None:
    with pytest.raises(CheckpointError, match=r"\[32\], got \[33\]"):
        replace(half, separator=torch.zeros(33))


def test_the_whole_prompt_is_embedded_as_the_oracle_has_it(half: LanguageHalf) -> None:
    oracle, rng = Oracle(half), random.Random(5)
    for _ in range(50):
        request = random_request(half, rng)
        embedded = embed_prompt(half, request.prompt, request.visual, request.separators)
        torch.testing.assert_close(embedded, oracle.embeds(request))


@pytest.mark.parametrize("limits", [{"max_batch_size": 0}, {"max_queue": -1}, {"max_batch_tokens": 0}])
def test_bad_limits_are_refused(half: LanguageHalf, tokenizer: PreTrainedTokenizerFast, limits: dict[str, int]) -> None:
    with pytest.raises(InvalidRequestError, match="at least"):
        PagedEngine(half, tokenizer, EngineLimits(**limits))


def test_models_with_other_caches_are_refused(half: LanguageHalf, tokenizer: PreTrainedTokenizerFast) -> None:
    config = MistralConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        sliding_window=8,
    )
    sliding = LanguageHalf(MistralForCausalLM(config), half.projector, VISION_WIDTH, CONTEXT_LENGTH, "toy")
    with pytest.raises(CheckpointError, match="Sliding"):
        PagedEngine(sliding, tokenizer)
