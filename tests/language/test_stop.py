"""Stop strings against a few-line oracle, however the text is cut, and in a running engine."""

import itertools
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastervlm_video.config import SamplingParams
from fastervlm_video.language import Finished, GenerationRequest, PagedEngine, TextDelta, generate, iter_events
from fastervlm_video.language.stop import StopMatcher
from tests.language.kit import Listener
from tests.language.toys import byte_level_tokenizer, make_half, make_request, whole_text

TOKENIZER = byte_level_tokenizer()
LETTERS = st.text("ab\n🙂", max_size=24)
STOPS = st.lists(st.text("ab\n🙂", min_size=1, max_size=5), max_size=4).map(tuple)


def cut(text: str, stops: tuple[str, ...]) -> str:
    """The text before the stop string that is complete first; of several, the longest."""
    for end in range(len(text) + 1):
        begins = [end - len(stop) for stop in stops if text[:end].endswith(stop)]
        if begins:
            return text[: min(begins)]
    return text


def pieces_of(text: str, cuts: list[int]) -> list[str]:
    places = [0, *sorted(place % (len(text) + 1) for place in cuts), len(text)]
    return [text[begin:end] for begin, end in itertools.pairwise(places)]


@settings(max_examples=600, deadline=None)
@given(text=LETTERS, stops=STOPS, cuts=st.lists(st.integers(0, 100), max_size=12))
def test_any_cutting_gives_the_same_text(text: str, stops: tuple[str, ...], cuts: list[int]) -> None:
    matcher, shown, expected = StopMatcher(stops), "", cut(text, stops)
    for piece in pieces_of(text, cuts):
        shown += matcher.push(piece)
        assert expected.startswith(shown)  # nothing of a stop string, not even for a moment
    assert shown + matcher.flush() == expected
    assert matcher.stopped == any(stop in text for stop in stops)


@settings(max_examples=300, deadline=None)
@given(text=LETTERS, stops=STOPS)
def test_no_more_is_held_back_than_may_begin_a_stop_string(text: str, stops: tuple[str, ...]) -> None:
    matcher = StopMatcher(stops)
    shown = "".join(matcher.push(char) for char in text)
    held = "" if matcher.stopped else text[len(shown) :]
    assert held == "" or any(stop.startswith(held) for stop in stops)


def test_the_string_that_is_complete_first_counts() -> None:
    for stops in (("abcd", "bc"), ("bc", "abcd")):
        matcher = StopMatcher(stops)
        assert matcher.push("xabcd") == "xa"
        assert matcher.stopped
        assert matcher.push("more") == matcher.flush() == ""


def test_without_stop_strings_everything_passes_at_once() -> None:
    matcher = StopMatcher(())
    assert matcher.push("anything") == "anything"
    assert matcher.flush() == ""
    assert not matcher.stopped


@pytest.fixture(scope="module")
def engine() -> Iterator[PagedEngine]:
    # With no end token in reach, every answer has all its tokens.
    with PagedEngine(make_half(TOKENIZER, end_ids=TOKENIZER.convert_tokens_to_ids("<pad>")), TOKENIZER) as engine:
        yield engine


def request_with(engine: PagedEngine, stop: tuple[str, ...], seed: int = 0, max_tokens: int = 30) -> GenerationRequest:
    request = make_request(engine._half, seed=seed, num_before=2, num_after=2, max_tokens=max_tokens)
    return GenerationRequest(
        request.request_id, request.prompt, request.visual, SamplingParams(max_tokens=max_tokens, stop=stop)
    )


@pytest.mark.parametrize("seed", range(3))
def test_an_answer_ends_before_its_stop_string_whichever_part_of_it_that_is(engine: PagedEngine, seed: int) -> None:
    free = generate(engine, request_with(engine, (), seed))
    assert len(free.text) > 8
    for begin in range(0, len(free.text) - 3, 4):
        for length in (1, 2, 3):
            stop = free.text[begin : begin + length]
            if "\ufffd" in stop:
                continue
            got = generate(engine, request_with(engine, (stop,), seed))
            assert (got.text, got.finish_reason) == (cut(free.text, (stop,)), "stop")
            count = got.usage.completion_tokens
            assert got.token_ids == free.token_ids[:count]
            assert stop in whole_text(TOKENIZER, list(got.token_ids))
            assert stop not in whole_text(TOKENIZER, list(got.token_ids[:-1]))


def test_a_stop_string_that_never_comes_leaves_the_answer_whole(engine: PagedEngine) -> None:
    free = generate(engine, request_with(engine, ()))
    last = free.text[-1]
    got = generate(engine, request_with(engine, (last + "never said",)))  # its beginning is held back to the end
    assert (got.text, got.finish_reason, got.token_ids) == (free.text, "length", free.token_ids)


def test_a_streamed_answer_shows_no_part_of_it(engine: PagedEngine) -> None:
    free = generate(engine, request_with(engine, ()))
    stop = free.text[5:9]
    events = list(iter_events(engine, request_with(engine, (stop,))))
    text = ""
    for event in events[:-1]:
        assert isinstance(event, TextDelta)
        text += event.text
        assert free.text[: free.text.index(stop)].startswith(text)
    finished = events[-1]
    assert isinstance(finished, Finished)
    assert finished.finish_reason == "stop"
    assert finished.usage.completion_tokens == len(finished.token_ids) < 30


def test_one_that_stops_leaves_the_others_alone(engine: PagedEngine) -> None:
    free = [generate(engine, request_with(engine, (), seed)) for seed in range(4)]
    listeners = [Listener() for _ in free]
    for seed, (listener, whole) in enumerate(zip(listeners, free, strict=True)):
        engine.submit(request_with(engine, (whole.text[4:6],) if seed % 2 else (), seed), listener)
    for seed, (listener, whole) in enumerate(zip(listeners, free, strict=True)):
        expected = cut(whole.text, (whole.text[4:6],)) if seed % 2 else whole.text
        assert listener.finished.finish_reason == ("stop" if seed % 2 else "length")
        assert listener.text == expected
