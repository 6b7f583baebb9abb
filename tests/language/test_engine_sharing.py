"""Questions about one video share its keys and values; those about others do not; and nothing stays behind."""

import random
import threading
from unittest.mock import patch

import pytest
from transformers import PreTrainedTokenizerFast

from fastervlm_video.language import EngineLimits, GenerationRequest, PagedEngine, generate
from fastervlm_video.language.admission import PAGE_TOKENS
from fastervlm_video.language.job import Job
from fastervlm_video.language.visual_table import VisualTable
from fastervlm_video.models.base import LanguageHalf
from tests.language.kit import Gate, Listener, check_answer, holdings, run_on_engine, wait_until
from tests.language.toys import (
    Inserts,
    Oracle,
    make_half,
    make_question,
    make_request,
    random_inserts,
    random_separators,
)

BEFORE = 3  # ids in front of the video


def whole_pages(num_visual: int) -> int:
    return (BEFORE + num_visual) // PAGE_TOKENS * PAGE_TOKENS


@pytest.fixture
def endless(tokenizer: PreTrainedTokenizerFast) -> LanguageHalf:
    return make_half(tokenizer, end_ids=[], context_length=512)


@pytest.mark.parametrize("num_visual", [104, 208])
def test_a_second_question_computes_only_what_is_new(
    endless: LanguageHalf, tokenizer: PreTrainedTokenizerFast, num_visual: int
) -> None:
    first, second = (make_question(endless, video=1, question=number, num_visual=num_visual) for number in (1, 2))
    oracle = Oracle(endless)
    with PagedEngine(endless, tokenizer) as engine:
        gate = Gate(engine)
        gate.open()
        cold = generate(engine, first)
        assert cold.usage.cached_tokens == 0
        assert gate.tokens[0] == len(first.prompt)
        passes = gate.passes
        warm = generate(engine, second)
        assert warm.usage.cached_tokens == whole_pages(num_visual)
        assert gate.tokens[passes] == len(second.prompt) - whole_pages(num_visual)
        again = generate(engine, first)
    assert cold.token_ids == again.token_ids == oracle.answer(first)
    assert warm.token_ids == oracle.answer(second)
    with PagedEngine(endless, tokenizer) as engine:
        assert generate(engine, second).token_ids == warm.token_ids


def test_one_token_answers_leave_their_video_behind_too(
    endless: LanguageHalf, tokenizer: PreTrainedTokenizerFast
) -> None:
    with PagedEngine(endless, tokenizer) as engine:
        generate(engine, make_question(endless, video=1, question=1, max_tokens=1))
        assert generate(engine, make_question(endless, video=1, question=2)).usage.cached_tokens == whole_pages(40)


def test_while_a_video_is_computed_its_other_questions_wait_and_other_videos_do_not(
    endless: LanguageHalf, tokenizer: PreTrainedTokenizerFast
) -> None:
    oracle = Oracle(endless)
    questions = [make_question(endless, video=1, question=number) for number in range(4)]
    other = make_question(endless, video=2, question=0)
    listeners = [Listener() for _ in range(5)]
    with PagedEngine(endless, tokenizer) as engine:
        gate = Gate(engine)
        blocker = engine.submit(make_request(endless), Listener())  # holds the engine while the others come
        wait_until(lambda: engine.running == 1)
        for request, listener in zip([*questions, other], listeners, strict=True):
            engine.submit(request, listener)
        blocker.cancel()
        gate.open(1)  # the blocker's; behind it, the engine takes in who may come, and stops before the next
        wait_until(lambda: (engine.running, engine.queue_depth) == (2, 3))
        gate.open()
        for request, listener in zip([*questions, other], listeners, strict=True):
            check_answer(request, listener, oracle, tokenizer)
        cached = [listener.finished.usage.cached_tokens for listener in listeners]
    assert cached == [0, *[whole_pages(40)] * 3, 0]
    assert gate.tokens[1] == len(questions[0].prompt) + len(other.prompt)
    assert gate.tokens[2] == sum(len(question.prompt) - whole_pages(40) for question in questions[1:]) + 2


def test_who_waits_for_a_video_takes_over_if_its_first_question_goes(
    endless: LanguageHalf, tokenizer: PreTrainedTokenizerFast
) -> None:
    first, second = (make_question(endless, video=1, question=number) for number in (1, 2))
    listener = Listener()
    with PagedEngine(endless, tokenizer, EngineLimits(max_batch_tokens=8)) as engine:
        gate = Gate(engine)
        handle = engine.submit(first, Listener())
        engine.submit(second, listener)
        gate.open(2)  # in the middle of the video
        wait_until(lambda: gate.passes == 2)
        assert (engine.running, engine.queue_depth) == (1, 1)
        handle.cancel()
        gate.open()
        check_answer(second, listener, Oracle(endless), tokenizer)
    assert listener.finished.usage.cached_tokens in (0, PAGE_TOKENS)  # what was whole by then


def test_identities_do_not_share_and_none_shares_with_nobody(
    endless: LanguageHalf, tokenizer: PreTrainedTokenizerFast
) -> None:
    """The very same visual tokens under other names: tenants, say."""
    oracle = Oracle(endless)
    with PagedEngine(endless, tokenizer) as engine:
        for identity in ("one", "two", None, None):
            request = make_question(endless, video=1, question=1, identity=identity)
            result = generate(engine, request)
            assert result.usage.cached_tokens == 0
            assert result.token_ids == oracle.answer(request)
        assert generate(engine, make_question(endless, video=1, question=2, identity="one")).usage.cached_tokens > 0


def test_the_same_video_at_two_budgets_is_two_token_sets(
    endless: LanguageHalf, tokenizer: PreTrainedTokenizerFast
) -> None:
    oracle = Oracle(endless)
    with PagedEngine(endless, tokenizer) as engine:
        for num_visual in (40, 20, 40, 20):
            request = make_question(endless, video=1, question=1, num_visual=num_visual)
            assert generate(engine, request).token_ids == oracle.answer(request)


def test_text_alone_is_not_shared_for_it_may_be_somebody_elses(
    endless: LanguageHalf, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Long instructions before the video: only who asks about the same video learns that they are there."""
    oracle = Oracle(endless)
    with PagedEngine(endless, tokenizer) as engine:
        for question, (video, cached) in enumerate([(1, 0), (2, 0), (1, 80), (2, 80)]):
            request = make_question(endless, video=video, question=question, num_before=48)
            answer = generate(engine, request)
            assert answer.usage.cached_tokens == cached
            assert answer.token_ids == oracle.answer(request)
        only_text = make_question(endless, video=1, question=1, num_visual=0, num_after=40)
        assert [generate(engine, only_text).usage.cached_tokens for _ in range(2)] == [0, 0]


FRAMES = tuple((position, (33, 40 + position)) for position in (10, 20, 30))
"""What may stand between four pictures of ten tokens."""


def test_a_second_question_about_several_pictures_computes_only_what_is_new(
    endless: LanguageHalf, tokenizer: PreTrainedTokenizerFast
) -> None:
    oracle = Oracle(endless)
    first, second = (
        make_question(endless, video=1, question=number, inserts=FRAMES, separators=(4, 9, 19, 39)) for number in (1, 2)
    )
    with PagedEngine(endless, tokenizer) as engine:
        cold, warm = generate(engine, first), generate(engine, second)
    assert (cold.usage.cached_tokens, warm.usage.cached_tokens) == (0, whole_pages(40 + 6))
    assert (cold.token_ids, warm.token_ids) == (oracle.answer(first), oracle.answer(second))


def test_text_behind_the_last_visual_token_does_not_keep_prompts_apart(
    endless: LanguageHalf, tokenizer: PreTrainedTokenizerFast
) -> None:
    ends: list[Inserts] = [((40, (33,)),), ((40, (34, 35)),)]
    oracle = Oracle(endless)
    with PagedEngine(endless, tokenizer) as engine:
        for number, (end, cached) in enumerate(zip(ends, (0, whole_pages(40)), strict=True)):
            request = make_question(endless, video=1, question=number, inserts=end)
            result = generate(engine, request)
            assert (result.usage.cached_tokens, result.token_ids) == (cached, oracle.answer(request))


OTHER_INSERTS: list[Inserts] = [
    (),
    FRAMES,
    ((10, (33, 50)), (20, (33, 61)), (30, (33, 70))),
    ((11, (33, 50)), (20, (33, 60)), (30, (33, 70))),
    ((10, (33,)), (20, (50, 33, 60)), (30, (33, 70))),
    ((0, (33,)), *FRAMES),
]


def test_prompts_that_differ_between_their_visual_tokens_share_what_is_before_the_difference(
    endless: LanguageHalf, tokenizer: PreTrainedTokenizerFast
) -> None:
    """All at once: in a cache with room for all of them, and in one with room for two."""
    oracle = Oracle(endless)
    requests = [
        make_question(endless, video=1, question=number, inserts=inserts)
        for number in range(2)
        for inserts in OTHER_INSERTS
    ]
    prefixes = {Job(request, Listener(), tokenizer, [], lambda job: None).prefix_key for request in requests}
    assert len(prefixes) == len(OTHER_INSERTS)
    for limits in (EngineLimits(), EngineLimits(kv_cache_tokens=9 * PAGE_TOKENS)):
        listeners = [Listener() for _ in requests]
        with PagedEngine(endless, tokenizer, limits) as engine:
            before = holdings(engine)
            for request, listener in zip(requests, listeners, strict=True):
                engine.submit(request, listener)
            for request, listener in zip(requests, listeners, strict=True):
                check_answer(request, listener, oracle, tokenizer)
            assert holdings(engine) == before
    assert max(listener.finished.usage.cached_tokens for listener in listeners) > 0


def test_the_same_features_with_other_separators_are_another_token_set(
    endless: LanguageHalf, tokenizer: PreTrainedTokenizerFast
) -> None:
    """As many rows, and the same name: only where the separators stand tells them apart."""
    oracle = Oracle(endless)
    answers = set()
    with PagedEngine(endless, tokenizer) as engine:
        for separators in ((3, 7), (4, 7), (3, 8)):
            request = make_question(endless, video=1, question=1, separators=separators)
            result = generate(engine, request)
            assert (result.usage.cached_tokens, result.token_ids) == (0, oracle.answer(request))
            answers.add(result.token_ids)
            other = make_question(endless, video=1, question=2, separators=separators)
            assert generate(engine, other).usage.cached_tokens == whole_pages(40)
    assert len(answers) > 1  # so that a confusion would have shown


def _traffic(half: LanguageHalf, seed: int, count: int, *, videos: int) -> list[GenerationRequest]:
    """Each video has one or two ways in which text may stand between its tokens; some have separators."""
    rng = random.Random(seed)
    sizes = [[0, 9, 30, 55][video % 4] for video in range(videos)]
    inserts = [[random_inserts(half, rng, size) for _ in range(2)] for size in sizes]
    separators = [random_separators(rng, size) for size in sizes]
    return [
        make_question(
            half,
            video=(video := rng.randrange(videos)),
            question=rng.randrange(5),
            num_visual=sizes[video],
            num_after=rng.randint(1, 20),
            max_tokens=rng.choice([1, 2, 6, 14]),
            identity=None if rng.random() < 0.2 else "",
            inserts=rng.choice(inserts[video]),
            separators=separators[video],
        )
        for _ in range(count)
    ]


@pytest.mark.parametrize(
    "limits",
    [
        EngineLimits(),
        EngineLimits(max_batch_size=3),
        EngineLimits(max_batch_tokens=7),
        EngineLimits(max_batch_tokens=1, max_batch_size=4),
        EngineLimits(kv_cache_tokens=192),
        EngineLimits(kv_cache_tokens=256, max_batch_tokens=11, visual_rows=128),
        EngineLimits(visual_rows=64),
    ],
    ids=str,
)
@pytest.mark.parametrize("seed", range(2))
def test_random_traffic_about_few_videos_is_answered_as_if_each_were_alone(
    tokenizer: PreTrainedTokenizerFast, seed: int, limits: EngineLimits
) -> None:
    """Pieces of prompts, evicted prefixes, tables that are too small, and cancellations."""
    half = make_half(tokenizer, seed=seed, end_ids=[2, *range(60, 80)], context_length=128)
    oracle, rng = Oracle(half), random.Random(seed)
    requests = _traffic(half, seed, 40, videos=9)
    doomed = set(rng.sample(range(40), 8))
    listeners = [Listener() for _ in requests]
    with PagedEngine(half, tokenizer, limits) as engine:
        before = holdings(engine)
        handles = []
        for number, (request, listener) in enumerate(zip(requests, listeners, strict=True)):
            handles.append(engine.submit(request, listener))
            if (earlier := number - rng.randint(0, 4)) in doomed:
                handles[earlier].cancel()
        for number in doomed:
            handles[number].cancel()
        for number, request in enumerate(requests):
            if number not in doomed:
                check_answer(request, listeners[number], oracle, tokenizer)
        assert holdings(engine) == before


def test_used_up_ids_drain_the_engine_and_numbering_begins_again(tokenizer: PreTrainedTokenizerFast) -> None:
    half = make_half(tokenizer, end_ids=[], context_length=128)
    oracle, vocabulary = Oracle(half), half.language_model.config.vocab_size
    requests = _traffic(half, 3, 60, videos=12)
    renumber = VisualTable.renumber
    with patch.object(VisualTable, "renumber", autospec=True, side_effect=renumber) as renumbered:
        limits = EngineLimits(max_batch_size=4, visual_rows=128, largest_id=vocabulary + 2 * 128 - 1)
        with PagedEngine(half, tokenizer, limits) as engine:
            before = holdings(engine)
            listeners = [Listener() for _ in requests]
            for request, listener in zip(requests, listeners, strict=True):
                engine.submit(request, listener)
            for request, listener in zip(requests, listeners, strict=True):
                check_answer(request, listener, oracle, tokenizer)
            holdings(engine)
            run_on_engine(engine, engine._turns._renumber)
            assert holdings(engine) == before
        assert renumbered.call_count > 2


def test_a_cancelled_request_leaves_no_prefix_for_numbers_that_begin_again(tokenizer: PreTrainedTokenizerFast) -> None:
    """Its pages come back in the very turn in which numbering begins again; another video then has its ids."""
    half = make_half(tokenizer, end_ids=[], context_length=128)
    vocabulary = half.language_model.config.vocab_size
    old, new = (make_question(half, video=video, question=1, num_visual=61, max_tokens=20) for video in (1, 2))
    listener = Listener()
    with PagedEngine(half, tokenizer, EngineLimits(visual_rows=64, largest_id=vocabulary + 63)) as engine:
        gate = Gate(engine)
        handle = engine.submit(old, Listener())
        gate.open(2)
        wait_until(lambda: gate.passes == 2)
        engine.submit(new, listener)
        handle.cancel()
        gate.open()
        check_answer(new, listener, Oracle(half), tokenizer)
    assert listener.finished.usage.cached_tokens == 0


def test_cancelling_frees_pages_and_rows_within_one_step(
    endless: LanguageHalf, tokenizer: PreTrainedTokenizerFast
) -> None:
    request = make_question(endless, video=1, question=1, max_tokens=100, identity=None)
    with PagedEngine(endless, tokenizer) as engine:
        before = holdings(engine)
        gate = Gate(engine)
        reached = threading.Event()
        handle = engine.submit(request, lambda event: reached.set())
        gate.open(4)
        assert reached.wait(60)
        assert engine._turns._table.free_rows < before.free_rows
        handle.cancel()
        gate.open(5)
        wait_until(lambda: engine.running == 0)
        assert gate.passes <= 5
        assert engine._turns._table.free_rows == before.free_rows
        assert engine._batcher.free_pages + engine._batcher.idle_pages == before.free_pages
        assert holdings(engine) == before


def test_few_pages_are_enough_for_many_questions_about_one_video(
    endless: LanguageHalf, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Sixteen requests of eight pages each, six of them shared, in a cache of forty."""
    oracle = Oracle(endless)
    questions = [make_question(endless, video=1, question=n, num_visual=93, max_tokens=20) for n in range(16)]
    listeners = [Listener() for _ in questions]
    with PagedEngine(endless, tokenizer, EngineLimits(kv_cache_tokens=40 * PAGE_TOKENS)) as engine:
        gate = Gate(engine)
        for question, listener in zip(questions, listeners, strict=True):
            engine.submit(question, listener)
        gate.open()
        for question, listener in zip(questions, listeners, strict=True):
            check_answer(question, listener, oracle, tokenizer)
    assert max(gate.rows) >= 15
