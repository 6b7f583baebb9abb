"""The order of calls, retries and sharing, with scripted stages in place of a cluster."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from typing import Any, Self, cast

import pytest
from ray.exceptions import ActorDiedError, ObjectLostError, RayTaskError
from ray.serve.exceptions import BackPressureError, RayServeException

from fastervlm_video.cache import MemoryStore, TokenCache, encode_tokens
from fastervlm_video.config import FrameSampling, PruneSpec, SamplingParams
from fastervlm_video.errors import (
    CorruptMediaError,
    FasterVLMError,
    FingerprintMismatchError,
    OverloadedError,
    UnavailableError,
)
from fastervlm_video.language import Message
from fastervlm_video.plan import ModelFacts
from services import answering as module
from services.answering import AnswerEvent, Answering, Question, VideoReady
from services.handles import Stages, as_own_error
from services.stages import AnswerDone, AnswerOrder, AnswerText, StageEvent, TokensMissing, TokensReady
from tests.cache.samples import make_tokens

READY = TokensReady((0.0,), "cls_attention", (3,), 64, 3, {})
DONE = AnswerDone("stop", 10, 1, 0, {})
ANSWER: list[StageEvent | BaseException] = [READY, AnswerText("hi"), DONE]


class Stream:
    """One call to the Generator: plays its script, and remembers whether it was cancelled."""

    def __init__(self, script: list[StageEvent | BaseException], gate: asyncio.Event | None) -> None:
        self._script, self._gate = deque(script), gate
        self.cancelled = False

    def __aiter__(self) -> AsyncIterator[StageEvent]:
        return self

    async def __anext__(self) -> StageEvent:
        if self._gate is not None:
            await self._gate.wait()
        if not self._script:
            raise StopAsyncIteration
        step = self._script.popleft()
        if isinstance(step, BaseException):
            raise step
        return step

    async def first(self) -> StageEvent:
        return await anext(self)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.cancelled = self.cancelled or kind is not None


class Work:
    def __init__(self) -> None:
        self.cancelled = 0

    def cancel(self) -> None:
        self.cancelled += 1


class ScriptedStages:
    """Stands for the other deployments: one script per call to the Generator, the last one for all further."""

    def __init__(self, *scripts: list[StageEvent | BaseException], gate: asyncio.Event | None = None) -> None:
        self.scripts, self.gate = deque(scripts), gate
        self.encodings: list[Work] = []
        self.request_ids: list[str] = []
        self.calls: list[tuple[AnswerOrder, Any]] = []
        self.streams: list[Stream] = []

    def begin_encoding(self, *_: object, request_id: str) -> Work:
        self.request_ids.append(request_id)
        self.encodings.append(Work())
        return self.encodings[-1]

    def generate(self, order: AnswerOrder, encoding: Any = None) -> Stream:
        self.calls.append((order, encoding))
        script = self.scripts.popleft() if len(self.scripts) > 1 else self.scripts[0]
        self.streams.append(Stream(script, self.gate))
        return self.streams[-1]


@pytest.fixture(scope="module")
def facts() -> ModelFacts:
    return ModelFacts.open("mini")


@pytest.fixture
def cache() -> TokenCache:
    return TokenCache(MemoryStore(10**7))


@pytest.fixture
def question(facts: ModelFacts) -> Question:
    sampling, prune = FrameSampling(1), PruneSpec(keep_tokens=3)
    plan, asked = facts.plan("0" * 64, sampling, prune), (Message("user", "What?"),)
    return Question("r", "0" * 64, "", asked, sampling, prune, plan, SamplingParams())


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BACKOFF_SECONDS", 0.0)


def _answering(facts: ModelFacts, cache: TokenCache, stages: ScriptedStages) -> Answering:
    return Answering(facts, cache, cast("Stages", stages))


async def _all(answering: Answering, question: Question) -> list[AnswerEvent]:
    return [event async for event in answering.events(question)]


def _fill(cache: TokenCache, question: Question) -> None:
    assert cache.insert(question.plan.key, encode_tokens(make_tokens((3,))))


async def test_a_hit_begins_no_encoding(facts: ModelFacts, cache: TokenCache, question: Question) -> None:
    _fill(cache, question)
    stages = ScriptedStages(ANSWER)
    assert await _all(_answering(facts, cache, stages), question) == [VideoReady(READY, "hit"), AnswerText("hi"), DONE]
    assert not stages.encodings
    assert stages.calls[0][1] is None


async def test_a_miss_hands_the_encoding_to_the_generator(
    facts: ModelFacts, cache: TokenCache, question: Question
) -> None:
    stages = ScriptedStages(ANSWER)
    assert (await _all(_answering(facts, cache, stages), question))[0] == VideoReady(READY, "miss")
    assert stages.calls[0][1] is stages.encodings[0]
    assert stages.request_ids == [question.request_id]
    assert stages.encodings[0].cancelled == 0


async def test_an_entry_evicted_in_between_is_made_anew(
    facts: ModelFacts, cache: TokenCache, question: Question
) -> None:
    class Evicted(ScriptedStages):
        def generate(self, order: AnswerOrder, encoding: Any = None) -> Stream:
            cache.delete_video(question.plan.key.video)
            return super().generate(order, encoding)

    _fill(cache, question)
    stages = Evicted([TokensMissing()], ANSWER)
    assert (await _all(_answering(facts, cache, stages), question))[0] == VideoReady(READY, "miss")
    assert len(stages.encodings) == 1


async def test_a_cache_that_promises_and_never_delivers_is_worked_around(
    facts: ModelFacts, cache: TokenCache, question: Question
) -> None:
    class Lying(ScriptedStages):
        def generate(self, order: AnswerOrder, encoding: Any = None) -> Stream:
            self.scripts = deque([[TokensMissing()] if encoding is None else list(ANSWER)])
            return super().generate(order, encoding)

    _fill(cache, question)
    stages = Lying()
    assert (await _all(_answering(facts, cache, stages), question))[0] == VideoReady(READY, "miss")
    assert len(stages.encodings) == 1
    assert len(stages.calls) == 2


@pytest.mark.parametrize(
    "failure",
    [
        UnavailableError("gone"),
        ObjectLostError("a", b"b", "c"),
        FingerprintMismatchError("upgrading"),
        ActorDiedError(),
    ],
    ids=lambda failure: type(failure).__name__,
)
async def test_what_time_mends_is_tried_again(
    facts: ModelFacts, cache: TokenCache, question: Question, failure: BaseException
) -> None:
    stages = ScriptedStages([failure], [failure], ANSWER)
    assert len(await _all(_answering(facts, cache, stages), question)) == 3
    assert len(stages.encodings) == 3


async def test_trying_again_ends(facts: ModelFacts, cache: TokenCache, question: Question) -> None:
    stages = ScriptedStages([UnavailableError("gone")])
    with pytest.raises(UnavailableError, match="gone"):
        await _all(_answering(facts, cache, stages), question)
    assert 2 <= len(stages.calls) <= 5


@pytest.mark.parametrize("failure", [CorruptMediaError("bad"), OverloadedError("full")])
async def test_what_time_does_not_mend_is_not(
    facts: ModelFacts, cache: TokenCache, question: Question, failure: FasterVLMError
) -> None:
    stages = ScriptedStages([failure])
    with pytest.raises(type(failure)):
        await _all(_answering(facts, cache, stages), question)
    assert len(stages.calls) == 1


async def test_nothing_is_repeated_once_something_was_handed_out(
    facts: ModelFacts, cache: TokenCache, question: Question
) -> None:
    stages = ScriptedStages([READY, AnswerText("half an"), ActorDiedError()], ANSWER)
    events = _answering(facts, cache, stages).events(question)
    assert [await anext(events), await anext(events)] == [VideoReady(READY, "miss"), AnswerText("half an")]
    with pytest.raises(UnavailableError):
        await anext(events)
    assert stages.streams[0].cancelled


async def test_an_answer_wanted_whole_is_begun_anew_when_it_breaks_off(
    facts: ModelFacts, cache: TokenCache, question: Question
) -> None:
    stages = ScriptedStages([READY, AnswerText("half an"), ActorDiedError()], ANSWER)
    events = _answering(facts, cache, stages).events(question, whole=True)
    assert [event async for event in events] == [VideoReady(READY, "miss"), AnswerText("hi"), DONE]
    assert stages.streams[0].cancelled
    assert len(stages.calls) == 2


async def test_questions_that_come_together_share_one_encoding(
    facts: ModelFacts, cache: TokenCache, question: Question
) -> None:
    gate = asyncio.Event()
    stages = ScriptedStages(ANSWER, gate=gate)
    answering = _answering(facts, cache, stages)
    leader, *followers = [asyncio.create_task(_all(answering, question)) for _ in range(4)]
    await asyncio.sleep(0.2)
    leader.cancel()
    await asyncio.sleep(0.1)
    gate.set()
    answers = await asyncio.gather(*followers)
    assert all(len(events) == 3 for events in answers)
    assert len(stages.encodings) == 1
    assert stages.encodings[0].cancelled == 0


async def test_the_last_to_leave_stops_the_work(facts: ModelFacts, cache: TokenCache, question: Question) -> None:
    stages = ScriptedStages(ANSWER, gate=asyncio.Event())
    answering = _answering(facts, cache, stages)
    tasks = [asyncio.create_task(_all(answering, question)) for _ in range(3)]
    await asyncio.sleep(0.2)
    for task in tasks[:2]:
        task.cancel()
    await asyncio.sleep(0.05)
    assert stages.encodings[0].cancelled == 0
    tasks[2].cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert stages.encodings[0].cancelled == 1
    assert all(stream.cancelled for stream in stages.streams)


async def test_leaving_in_the_middle_cancels_the_generator(
    facts: ModelFacts, cache: TokenCache, question: Question
) -> None:
    stages = ScriptedStages(ANSWER)
    events = _answering(facts, cache, stages).events(question)
    await anext(events)
    await events.aclose()
    assert stages.streams[0].cancelled


def _lost_argument() -> RayServeException:
    """As Serve's router says that the replica died whose result the called stage was to be given."""
    error = RayServeException("an upstream actor died")
    error.__cause__ = ActorDiedError()
    return error


def test_failures_in_our_own_terms() -> None:
    cause = CorruptMediaError("bad bytes")
    remote: Any = RayTaskError
    wrapped = remote("decode", "Traceback …", cause).as_instanceof_cause()
    assert as_own_error(remote("encode", "…", wrapped)) is cause
    assert isinstance(as_own_error(ActorDiedError()), UnavailableError)
    assert isinstance(as_own_error(_lost_argument()), UnavailableError)
    lost_on_the_way = remote("encode", "…", ActorDiedError()).as_instanceof_cause()
    lost_on_the_way.cause = None
    assert isinstance(as_own_error(lost_on_the_way), UnavailableError)
    assert type(as_own_error(remote("encode", "…", ValueError("x")).as_instanceof_cause())) is FasterVLMError
    assert type(as_own_error(RayServeException("something else"))) is FasterVLMError
    assert isinstance(as_own_error(BackPressureError(num_queued_requests=1, max_queued_requests=1)), OverloadedError)
    assert type(as_own_error(ZeroDivisionError("x"))) is FasterVLMError
