"""What goes wrong inside an engine: who is told, and who must not notice."""

import copy
import logging
import subprocess
import sys
import textwrap
import threading
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from fastervlm_video.errors import FasterVLMError, InvalidRequestError, UnavailableError
from fastervlm_video.language import EngineLimits, Event, GenerationRequest, PagedEngine, Prompt, generate, iter_events
from fastervlm_video.models.base import LanguageHalf
from tests.language.kit import PATIENCE_SECONDS, Gate, Listener, wait_until
from tests.language.toys import VISION_WIDTH, Oracle, make_half, make_request


def fail_once(engine: PagedEngine, error: BaseException, *, skip: int) -> None:
    """Make one of an engine's forward passes raise."""
    passes = iter(range(skip))

    def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
        if next(passes, None) is None:
            raise error

    engine._model.register_forward_pre_hook(hook)


@pytest.fixture
def endless(tokenizer: PreTrainedTokenizerFast) -> LanguageHalf:
    """A model that never ends an answer by itself."""
    return make_half(tokenizer, end_ids=[])


def test_a_failing_projector_fails_one_request_only(endless: LanguageHalf, tokenizer: PreTrainedTokenizerFast) -> None:
    requests = [make_request(endless, seed=number, num_visual=number + 1) for number in range(4)]
    oracle = Oracle(endless)
    expected = [oracle.answer(request) for request in requests]

    def refuse_three(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        if len(args[0]) == 3:
            raise RuntimeError("three is too many")

    endless.projector.register_forward_pre_hook(refuse_three)
    listeners = [Listener() for _ in requests]
    with PagedEngine(endless, tokenizer) as engine:
        gate = Gate(engine)
        for request, listener in zip(requests, listeners, strict=True):
            engine.submit(request, listener)
        gate.open()
        assert "three is too many" in str(listeners[2].error)
        for number in (0, 1, 3):
            assert listeners[number].finished.token_ids == expected[number]


def test_a_row_that_overflows_fails_alone(endless: LanguageHalf, tokenizer: PreTrainedTokenizerFast) -> None:
    requests = [make_request(endless, seed=number, max_tokens=12) for number in range(3)]
    object.__setattr__(requests[1], "visual", torch.full((5, VISION_WIDTH), 3e38))
    oracle = Oracle(endless)
    listeners = [Listener() for _ in requests]
    with PagedEngine(endless, tokenizer) as engine:
        gate = Gate(engine)
        for request, listener in zip(requests, listeners, strict=True):
            engine.submit(request, listener)
        gate.open()
        assert "not finite" in str(listeners[1].error)
        for number in (0, 2):
            assert listeners[number].finished.token_ids == oracle.answer(requests[number])


def test_a_tokenizer_that_fails_fails_one_request_only(
    endless: LanguageHalf, tokenizer: PreTrainedTokenizerFast
) -> None:
    requests = [make_request(endless, seed=number) for number in range(3)]
    oracle = Oracle(endless)
    zero, one, two = (oracle.answer(request) for request in requests)
    poison = next(i for i in one if i not in zero + two)

    class Moody(type(tokenizer)):  # type: ignore[misc]  # a dynamic base: whatever class the fixture has
        def convert_ids_to_tokens(self, ids: Any, skip_special_tokens: bool = False) -> Any:
            if ids == poison:
                raise KeyError(poison)
            return super().convert_ids_to_tokens(ids, skip_special_tokens)

    moody = copy.copy(tokenizer)
    moody.__class__ = Moody
    listeners = [Listener() for _ in requests]
    with PagedEngine(endless, moody) as engine:
        for request, listener in zip(requests, listeners, strict=True):
            engine.submit(request, listener)
        assert f"KeyError({poison})" in str(listeners[1].error)
        for number in (0, 2):
            assert listeners[number].finished.token_ids == oracle.answer(requests[number])


def test_a_callback_that_raises_ends_its_own_request_only(
    endless: LanguageHalf, tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    calls: list[Event] = []

    def broken(event: Event) -> None:
        calls.append(event)
        raise RuntimeError("Event loop is closed")

    other = Listener()
    with PagedEngine(endless, tokenizer) as engine, caplog.at_level(logging.CRITICAL + 1, "fastervlm_video"):
        engine.submit(make_request(endless, seed=1, max_tokens=30), broken)
        engine.submit(make_request(endless, seed=2, max_tokens=30), other)
        assert len(other.finished.token_ids) == 30
    assert len(calls) == 1


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("mat1 and mat2"),
        torch.OutOfMemoryError("out of memory"),
        torch.AcceleratorError("device-side assert"),
        SystemExit(3),
    ],
)
def test_a_broken_engine_says_so_and_leaves_nobody_waiting(
    endless: LanguageHalf, tokenizer: PreTrainedTokenizerFast, error: BaseException
) -> None:
    listeners = [Listener() for _ in range(4)]
    with PagedEngine(endless, tokenizer, EngineLimits(max_batch_size=2)) as engine:  # two of them are still waiting
        gate = Gate(engine)
        fail_once(engine, error, skip=2)
        for number, listener in enumerate(listeners):
            engine.submit(make_request(endless, seed=number, max_tokens=20), listener)
        gate.open()
        for listener in listeners:
            assert isinstance(listener.error, UnavailableError)
            assert str(error) in str(listener.error)
        wait_until(lambda: not engine.healthy)
        assert engine.running == engine.queue_depth == 0
        with pytest.raises(UnavailableError, match=type(error).__name__):
            engine.submit(make_request(endless), Listener())


def test_closing_fails_what_is_in_the_engine(endless: LanguageHalf, tokenizer: PreTrainedTokenizerFast) -> None:
    threads_before = set(threading.enumerate())
    engine = PagedEngine(endless, tokenizer, EngineLimits(max_batch_size=1))
    gate = Gate(engine)
    (worker,) = set(threading.enumerate()) - threads_before
    active, waiting = Listener(), Listener()
    engine.submit(make_request(endless, max_tokens=50), active)
    engine.submit(make_request(endless), waiting)
    raised: list[FasterVLMError] = []

    def consume() -> None:
        try:
            list(iter_events(engine, make_request(endless)))
        except FasterVLMError as error:
            raised.append(error)

    consumer = threading.Thread(target=consume)
    consumer.start()
    wait_until(lambda: engine.queue_depth == 2)
    closer = threading.Thread(target=engine.close)
    closer.start()
    wait_until(lambda: not engine.healthy)
    gate.open()
    closer.join(PATIENCE_SECONDS)
    consumer.join(PATIENCE_SECONDS)
    assert not worker.is_alive()
    for error in (active.error, waiting.error, *raised):
        assert isinstance(error, UnavailableError)
        assert "closed" in str(error)
    assert len(raised) == 1
    engine.close()
    with pytest.raises(UnavailableError, match="closed"):
        engine.submit(make_request(endless), Listener())


@pytest.mark.parametrize("ending", ["", "raise SystemExit(3)", "engine.close()"])
def test_a_process_ends_whether_or_not_its_engine_was_closed(ending: str) -> None:
    """In the middle of an answer; whoever waits for it is told."""
    code = f"""
        from fastervlm_video.language import Failed, PagedEngine
        from tests.language.toys import byte_level_tokenizer, make_half, make_request

        def tell(event):
            if isinstance(event, Failed):
                print("told:", event.error, flush=True)

        tokenizer = byte_level_tokenizer()
        half = make_half(tokenizer, end_ids=[], context_length=100_000)
        engine = PagedEngine(half, tokenizer)
        engine.submit(make_request(half, max_tokens=90_000), tell)
        while not engine.running:
            pass
        {ending}
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=2 * PATIENCE_SECONDS, check=False)
    assert result.returncode == (3 if "3" in ending else 0), result.stderr
    assert "told: the language engine was closed" in result.stdout
    assert "Traceback" not in result.stderr


def test_an_engine_can_be_closed_from_its_own_callback(
    endless: LanguageHalf, tokenizer: PreTrainedTokenizerFast
) -> None:
    listener = Listener()
    engine = PagedEngine(endless, tokenizer)

    def on_event(event: Event) -> None:
        listener(event)
        engine.close()

    engine.submit(make_request(endless, max_tokens=30), on_event)
    assert isinstance(listener.error, UnavailableError)
    wait_until(lambda: not engine.healthy)


@pytest.mark.parametrize(
    "visual",
    [
        torch.zeros(4, VISION_WIDTH),
        torch.zeros(5, VISION_WIDTH, dtype=torch.int64),
        torch.zeros(1, 5, VISION_WIDTH),
        torch.full((5, VISION_WIDTH), float("nan")),
        torch.full((5, VISION_WIDTH), float("inf"), dtype=torch.float16),
    ],
)
def test_malformed_visual_tokens_never_reach_an_engine(endless: LanguageHalf, visual: Tensor) -> None:
    with pytest.raises(InvalidRequestError, match="visual"):
        GenerationRequest("x", Prompt((1,), 5, (7,)), visual, make_request(endless).sampling)


@pytest.mark.parametrize(
    ("separators", "features", "complaint"),
    [
        ((5,), 4, r"\[0, 5\), got \(5,\)"),
        ((-1,), 4, "ascending"),
        ((2, 2), 3, "ascending"),
        ((3, 1), 3, "ascending"),
        ((1.5,), 4, "ascending"),
        ((1, 3), 5, r"\[3, C\] beside 2 separators, got torch.float32 \[5"),
        ((1,), 3, r"\[4, C\]"),
        (tuple(range(6)), 0, "ascending"),
    ],
)
def test_separators_must_be_some_of_the_visual_tokens(
    endless: LanguageHalf, separators: tuple[int, ...], features: int, complaint: str
) -> None:
    visual, sampling = torch.zeros(features, VISION_WIDTH), make_request(endless).sampling
    with pytest.raises(InvalidRequestError, match=complaint):
        GenerationRequest("x", Prompt((1,), 5, (7,)), visual, sampling, separators=separators)


def test_a_video_of_separators_only_is_a_request(endless: LanguageHalf, tokenizer: PreTrainedTokenizerFast) -> None:
    request = make_request(endless, separators=tuple(range(5)))
    assert "beside 5 separators" in repr(request)
    with PagedEngine(endless, tokenizer) as engine:
        assert generate(engine, request).token_ids == Oracle(endless).answer(request)
