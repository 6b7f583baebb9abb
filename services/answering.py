"""From a checked question to a stream of events: cache first, then decode and encode, then generate.

::

    cache holds it?  ──yes──▶ Generator (reads the cache)  ──TokensMissing──┐
          │ no                                                              │ (the cache is not asked again)
          ▼                                                                 ▼
    join the flight of this token set ── Decoder ──▶ Encoder ──▶ Generator (is handed the tokens by reference)

Nothing here knows of HTTP, and only this module knows in which order the stages are called.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Literal

from fastervlm_video.cache import TokenCache
from fastervlm_video.config import FrameSampling, ModelOptions, PruneSpec, SamplingParams
from fastervlm_video.errors import FasterVLMError, FingerprintMismatchError, UnavailableError
from fastervlm_video.language import Message
from fastervlm_video.plan import ModelFacts, TokenPlan
from services.encoding import ClaimBoard, SharedEncoding
from services.flights import Flights
from services.handles import STAGE_FAILURES, AnswerStream, Encoding, Stages, as_own_error
from services.metrics import AnswerMeter
from services.stages import (
    AnswerDone,
    AnswerOrder,
    AnswerText,
    DecodeOrder,
    EncodeOrder,
    StageEvent,
    TokensMissing,
    TokensReady,
)

__all__ = ["AnswerEvent", "Answering", "Question", "VideoReady"]

logger = logging.getLogger(__name__)

_ATTEMPTS = 4
_BACKOFF_SECONDS = 0.25


@dataclass(frozen=True, slots=True)
class Question:
    """A request that has passed all checks.

    Attributes:
        request_id: for logs.
        digest: SHA-256 of the stored file.
        owner: name of the tenant whose file it is.
        messages: the conversation, which ends with the question.
        sampling: which frames.
        prune: which tokens.
        plan: the token set that follows from these.
        params: how to decode the answer.
    """

    request_id: str
    digest: str
    owner: str
    messages: tuple[Message, ...]
    sampling: FrameSampling
    prune: PruneSpec
    plan: TokenPlan
    params: SamplingParams


@dataclass(frozen=True, slots=True)
class VideoReady:
    """First event of an answer: its tokens, and whether they were cached."""

    tokens: TokensReady
    cache: Literal["hit", "miss"]


AnswerEvent = VideoReady | AnswerText | AnswerDone


@dataclass(frozen=True, slots=True, eq=False)
class _Begun:
    """An answer whose first event is there."""

    ready: VideoReady
    stream: AnswerStream


class Answering:
    """Answers questions by calling the stages. For use from one event loop.

    Args:
        facts: of the served checkpoint.
        cache: asked only whether it holds an entry; entries themselves do not come here.
        stages: the other deployments.
        options: with which ``facts`` were opened.

    Attributes:
        meter: counts the answers.
    """

    def __init__(
        self, facts: ModelFacts, cache: TokenCache, stages: Stages, *, options: ModelOptions | None = None
    ) -> None:
        self._facts, self._cache, self._stages = facts, ClaimBoard(cache), stages
        self._options = options or ModelOptions()
        self.meter = AnswerMeter()
        self._flights: Flights[tuple[TokenPlan, bool], SharedEncoding] = Flights(lambda work: work.close(cancel=True))

    async def events(self, question: Question, *, whole: bool = False) -> AsyncGenerator[AnswerEvent, None]:
        """Answer a question.

        A stage replica that dies, or that runs another checkpoint while an upgrade is under way, costs another
        attempt, as long as nothing has been handed out.

        Args:
            question: what to answer.
            whole: hand out nothing before the answer is complete, so that all of it can be tried again.

        Yields:
            :class:`VideoReady`, any number of :class:`~services.stages.AnswerText`, and
            :class:`~services.stages.AnswerDone`.

        Raises:
            FasterVLMError: what a stage raised, or why no attempt succeeded.
        """
        trust_cache = True
        for attempt in range(1, _ATTEMPTS + 1):
            begun = False
            try:
                answer = await self._begin(question, trust_cache=trust_cache)
                # A cache that holds an entry and cannot deliver it is not asked again for this question.
                trust_cache = trust_cache and answer is not None
                if answer is not None:
                    async with answer.stream as stream:
                        held = [_expect_answer(event) async for event in stream] if whole else []
                        begun = True
                        self.meter.record(cache=answer.ready.cache, medium=question.plan.medium)
                        yield answer.ready
                        for known in held:
                            yield known
                        async for event in stream:
                            yield _expect_answer(event)
                    return
                error: FasterVLMError = UnavailableError("the visual tokens were lost before they could be used")
            except STAGE_FAILURES as exc:
                error = as_own_error(exc)
                if begun or not isinstance(error, UnavailableError | FingerprintMismatchError):
                    raise error from exc
            logger.warning("request %s: attempt %d failed: %s", question.request_id, attempt, error)
            if attempt == _ATTEMPTS:
                raise error
            await asyncio.sleep(_BACKOFF_SECONDS * attempt)

    async def _begin(self, question: Question, *, trust_cache: bool) -> _Begun | None:
        """Have an answer begun; None if the cache has lost what it was said to hold."""
        if trust_cache and await self._cache.holds(question.plan):
            return await self._begin_cached(question)
        return await self._begin_encoded(question, trust_cache=trust_cache)

    async def _begin_cached(self, question: Question) -> _Begun | None:
        async with self._stages.generate(self._answer_order(question)) as stream:
            first = await stream.first()
            return None if isinstance(first, TokensMissing) else _Begun(VideoReady(_expect_ready(first), "hit"), stream)

    async def _begin_encoded(self, question: Question, *, trust_cache: bool) -> _Begun | None:
        """Have the video or picture encoded, or wait with others for it, until its tokens have reached a Generator.

        From there on the answer is this request's own affair.
        """
        flight_key = (question.plan, trust_cache)
        with self._flights.join(flight_key, lambda: self._share(question, trust_cache=trust_cache)) as flight:
            encoding = await flight.work.wait()
            if encoding is None:
                begun = await self._begin_cached(question)
            else:
                async with self._stages.generate(self._answer_order(question), encoding) as stream:
                    begun = _Begun(VideoReady(_expect_ready(await stream.first()), "miss"), stream)
            flight.landed = True
            flight.work.close(cancel=False)
        return begun

    def _share(self, question: Question, *, trust_cache: bool) -> SharedEncoding:
        return SharedEncoding(
            self._cache, question.plan, lambda: self._begin_encoding(question), trust_cache=trust_cache
        )

    def _begin_encoding(self, question: Question) -> Encoding:
        medium = question.plan.medium
        steps, fingerprint = self._facts.preprocessing(medium), self._facts.fingerprint(medium)
        return self._stages.begin_encoding(
            DecodeOrder(question.digest, question.sampling, steps.resize, question.owner, medium, steps.tiling),
            EncodeOrder(
                question.digest, question.plan.key, question.prune, fingerprint, question.owner, medium, self._options
            ),
            request_id=question.request_id,
        )

    def _answer_order(self, question: Question) -> AnswerOrder:
        return AnswerOrder(
            request_id=question.request_id,
            messages=question.messages,
            key=question.plan.key,
            tokens_per_frame=question.plan.tokens_per_frame,
            fingerprint=self._facts.fingerprint(question.plan.medium),
            sampling=question.params,
            medium=question.plan.medium,
            options=self._options,
        )


def _expect_ready(event: StageEvent) -> TokensReady:
    if not isinstance(event, TokensReady):
        raise UnavailableError(f"the generator began with {type(event).__name__}; it may run another version")
    return event


def _expect_answer(event: StageEvent) -> AnswerText | AnswerDone:
    if not isinstance(event, AnswerText | AnswerDone):
        raise UnavailableError(f"the generator went on with {type(event).__name__}; it may run another version")
    return event
