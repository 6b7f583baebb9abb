"""Transformers' engine under this project's adapter: scheduling, prefixes, eviction, preemption and its end."""

import copy
import gc
import queue
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from fastervlm_video.language.continuous import BatcherLimits, ContinuousBatcher
from fastervlm_video.language.paged_attention import PAGED_ATTENTION
from fastervlm_video.models.base import LanguageHalf
from tests.language.kit import PATIENCE_SECONDS

PAGE = 4


class Script:
    """A listener that runs what a test asks for on the engine's thread, and writes down all that it is told."""

    def __init__(self) -> None:
        self.batcher: ContinuousBatcher
        self.answers: dict[str, list[int]] = {}
        self.shared: dict[str, int] = {}
        self.ended = threading.Event()
        self.error: BaseException | None = None
        self._asked: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._told = threading.Condition()

    def on_turn(self) -> None:
        while not self._asked.empty():
            self._asked.get()()

    def choose(self, request_ids: Sequence[str], logits: Tensor) -> Tensor:
        assert len(request_ids) == len(logits) > 0
        assert logits.dtype == torch.float32
        return logits.argmax(dim=-1)

    def on_token(self, request_id: str, token_id: int, shared_tokens: int) -> None:
        with self._told:
            self.answers.setdefault(request_id, []).append(token_id)
            self.shared[request_id] = shared_tokens
            self._told.notify_all()

    def on_end(self, error: BaseException | None) -> None:
        assert not self.ended.is_set()
        self.error = error
        self.ended.set()

    def run(self, action: Callable[[], Any]) -> Any:
        """On the engine's thread, between two steps."""
        result: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._asked.put(lambda: result.put(action()))
        self.batcher.wake()
        return result.get(timeout=PATIENCE_SECONDS)

    def add_all(self, prompts: dict[str, list[int]], tokens: int) -> None:
        for request_id, ids in prompts.items():
            self.batcher.add(request_id, ids, tokens)

    def shares(self, ids: list[int]) -> int:
        """Tokens that are there already."""
        found: int = self.run(lambda: self.batcher.shared_tokens(ids))
        return found

    def wait(self, request_id: str, tokens: int) -> list[int]:
        """For an answer of this length."""
        with self._told:
            assert self._told.wait_for(lambda: len(self.answers.get(request_id, ())) >= tokens, PATIENCE_SECONDS)
            return self.answers[request_id]

    def answer(self, request_id: str, prompt: list[int], tokens: int) -> list[int]:
        """Add a request and wait for its answer."""
        self.run(lambda: self.batcher.add(request_id, prompt, tokens))
        found = self.wait(request_id, tokens)
        self.run(lambda: self.batcher.cancel(request_id))
        return found


@contextmanager
def batching(
    half: LanguageHalf, *, pages: int = 200, batch_tokens: int = 500, batch_size: int = 8, end_ids: Sequence[int] = ()
) -> Iterator[Script]:
    model = copy.deepcopy(half.language_model)
    model.config._attn_implementation = PAGED_ATTENTION
    script = Script()
    script.batcher = ContinuousBatcher(model, BatcherLimits(PAGE, pages, batch_tokens, batch_size), script, end_ids)
    script.batcher.start()
    try:
        yield script
    finally:
        assert script.batcher.close(PATIENCE_SECONDS)
        assert script.ended.is_set()


def prompt(number: int, length: int) -> list[int]:
    return torch.randint(5, 250, (length,), generator=torch.Generator().manual_seed(number)).tolist()


@torch.no_grad()
def by_hugging_face(model: PreTrainedModel, prompt_ids: list[int], tokens: int) -> list[int]:
    generate: Any = model.generate
    ids = generate(torch.tensor([prompt_ids]), do_sample=False, max_new_tokens=tokens, eos_token_id=None)
    answer: list[int] = ids[0, len(prompt_ids) :].tolist()
    return answer


@pytest.fixture
def model(half: LanguageHalf) -> PreTrainedModel:
    half.language_model.generation_config.eos_token_id = None
    return half.language_model


@pytest.mark.parametrize("batch_tokens", [1, 3, 7, 500])
def test_prompts_in_any_number_of_pieces_give_the_same_answers(
    half: LanguageHalf, model: PreTrainedModel, batch_tokens: int
) -> None:
    prompts = {str(number): prompt(number, length) for number, length in enumerate([1, 2, 4, 9, 16, 33])}
    with batching(half, batch_tokens=batch_tokens) as script:
        script.run(lambda: script.add_all(prompts, 6))
        for name, ids in prompts.items():
            assert script.wait(name, 6) == by_hugging_face(model, ids, 6)
            assert script.shared[name] == 0


def test_requests_that_lose_their_pages_to_others_come_again(half: LanguageHalf, model: PreTrainedModel) -> None:
    """Over-committed on purpose: who is put back computes its answer so far again, and goes on where it was."""
    prompts = {str(number): prompt(number, 9) for number in range(6)}
    with batching(half, pages=14) as script:
        inner: Any = script.batcher._manager._processor.offloading_manager
        offload, put_back = inner.offload_requests, []

        def watched() -> bool:
            before = len(inner.scheduler.waiting_requests)
            found: bool = offload()
            put_back.append(len(inner.scheduler.waiting_requests) - before)
            return found

        inner.offload_requests = watched
        script.run(lambda: script.add_all(prompts, 30))
        for name, ids in prompts.items():
            assert script.wait(name, 30) == by_hugging_face(model, ids, 30)
            assert script.shared[name] == 0  # its own tokens, computed a second time, are nobody else's
        assert max(put_back) > 0


def test_a_prefix_is_shared_in_whole_pages_and_never_all_of_a_prompt(
    half: LanguageHalf, model: PreTrainedModel
) -> None:
    base = prompt(0, 4 * PAGE)
    with batching(half) as script:
        script.answer("first", base, 2)
        for name, ids, shared in [
            ("same", base, 3 * PAGE),
            ("longer", [*base, 7], 4 * PAGE),
            ("branch", [*base[: 2 * PAGE + 1], 6, 6, 6, 6], 2 * PAGE),
            ("other", prompt(1, 9), 0),
            ("short", base[:PAGE], 0),
        ]:
            assert script.shares(ids) == shared
            assert script.answer(name, ids, 5) == by_hugging_face(model, ids, 5)
            assert script.shared[name] == shared


def test_the_oldest_prefix_goes_first_and_of_it_the_end(half: LanguageHalf) -> None:
    prompts = [prompt(number, 4 * PAGE + 1) for number in range(4)]
    with batching(half, pages=13) as script:
        for number in range(2):  # four whole pages each stay behind; the fifth does not
            script.answer(str(number), prompts[number], 1)
        script.answer("again", prompts[0], 1)
        assert (script.batcher.free_pages, script.batcher.idle_pages) == (5, 8)
        script.answer("2", prompts[2], 1)
        assert (script.batcher.free_pages, script.batcher.idle_pages) == (1, 12)
        script.answer("3", prompts[3], 1)  # needs five, one is free
        shared = [script.shares(ids) for ids in prompts]
        assert shared == [4 * PAGE, 0, 4 * PAGE, 4 * PAGE]
        script.answer("1", prompts[1][: 2 * PAGE], 1)  # needs three: the oldest is now 0's, and loses its end
        shared = [script.shares(ids) for ids in prompts]
        assert shared == [2 * PAGE, 2 * PAGE, 4 * PAGE, 4 * PAGE]


def test_room_is_not_made_of_what_the_newcomer_shares(half: LanguageHalf) -> None:
    old, shared = prompt(1, 4 * PAGE + 1), prompt(0, 4 * PAGE + 1)
    with batching(half, pages=9) as script:
        script.answer("shared", shared, 1)
        script.answer("old", old, 1)
        script.answer("newcomer", [*shared[:-1], *prompt(2, 3 * PAGE)], 1)
        assert script.shared["newcomer"] == 4 * PAGE


def test_leaving_frees_pages_before_the_next_step(half: LanguageHalf) -> None:
    with batching(half, pages=20) as script:
        script.run(lambda: script.batcher.add("a", prompt(0, 30), 10_000))
        script.wait("a", 3)

        def cancel() -> tuple[int, int]:
            script.batcher.cancel("a")
            return script.batcher.free_pages, script.batcher.idle_pages

        free, idle = script.run(cancel)
        assert free + idle == 20
        assert idle >= 30 // PAGE
        script.run(script.batcher.forget_prefixes)
        assert (script.batcher.free_pages, script.batcher.idle_pages) == (20, 0)
        assert script.run(lambda: script.batcher.shared_tokens(prompt(0, 30))) == 0


def test_one_added_and_cancelled_in_the_same_turn_is_never_heard_of(half: LanguageHalf) -> None:
    with batching(half) as script:

        def both() -> None:
            script.batcher.add("gone", prompt(0, 9), 5)
            script.batcher.cancel("gone")

        script.run(both)
        script.answer("other", prompt(1, 9), 3)
    assert "gone" not in script.answers


def test_prefixes_are_not_forgotten_under_a_request(half: LanguageHalf) -> None:
    with batching(half) as script:
        script.run(lambda: script.batcher.add("a", prompt(0, 9), 10_000))
        script.wait("a", 1)

        def forget() -> str:
            try:
                script.batcher.forget_prefixes()
            except AssertionError as error:
                return str(error)
            return ""

        assert "would leave its pages" in script.run(forget)


def test_an_end_id_ends_an_answer(half: LanguageHalf, model: PreTrainedModel) -> None:
    ids = prompt(3, 9)
    answer = by_hugging_face(model, ids, 20)
    last = answer[4]
    with batching(half, end_ids=[last]) as script:
        script.run(lambda: script.batcher.add("a", ids, 20))
        script.wait("a", answer.index(last) + 1)
        script.answer("other", prompt(4, 9), 1)
    assert script.answers["a"] == answer[: answer.index(last) + 1]


@pytest.mark.parametrize("how", ["closed", "raised", "exited"])
def test_its_end_is_told_once_and_leaves_no_thread_and_no_memory(half: LanguageHalf, how: str) -> None:
    threads = set(threading.enumerate())
    with batching(half) as script:
        processor = script.batcher._manager._processor
        cache, model = weakref.ref(processor.cache.cache_tensor), weakref.ref(script.batcher._manager.model)
        del processor
        script.run(lambda: script.batcher.add("a", prompt(0, 9), 10_000))
        script.wait("a", 2)
        if how != "closed":
            error = RuntimeError("broken") if how == "raised" else SystemExit("broken")

            def fail() -> None:
                raise error

            script._asked.put(fail)
            script.batcher.wake()
            assert script.ended.wait(PATIENCE_SECONDS)
            assert script.error is error
            error.__traceback__ = None
    assert (script.error is None) == (how == "closed")
    assert not script.batcher.alive
    assert (script.batcher.free_pages, script.batcher.idle_pages) == (0, 0)
    gc.collect()
    assert cache() is None
    assert model() is None
    assert set(threading.enumerate()) <= threads


def test_a_cache_that_cannot_be_had_is_an_error_at_once(half: LanguageHalf) -> None:
    with pytest.raises((MemoryError, RuntimeError)), batching(half, pages=2**40):
        pass
