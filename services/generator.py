"""The Generator stage: projector and language model, answering many questions at once."""

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing

import torch

from fastervlm_video.cache import decode_tokens
from fastervlm_video.errors import FingerprintMismatchError, UnavailableError
from fastervlm_video.language import EngineLimits, Finished, GenerationRequest, PagedEngine, TextDelta, stream
from fastervlm_video.plan import ModelFacts
from fastervlm_video.vision import VisualSequence, VisualTokens
from services.logs import join_replica_log
from services.metrics import CacheReporter, GeneratorMeter
from services.scaling import TOKENS, WorkInHand
from services.settings import Settings
from services.stages import AnswerDone, AnswerOrder, AnswerText, EncodedTokens, StageEvent, TokensMissing, TokensReady
from services.stores import open_service_cache

__all__ = ["Generator"]

logger = logging.getLogger(__name__)


def _ready(tokens: VisualTokens, sequence: VisualSequence, seconds: dict[str, float]) -> TokensReady:
    return TokensReady(
        pts_seconds=tokens.pts_seconds[:: tokens.views_per_picture],
        method=tokens.method,
        tokens_per_frame=tokens.counts,
        tokens_full=tokens.tokens_full + len(sequence.separators),
        tokens_kept=len(sequence),
        seconds=seconds,
        medium=tokens.medium,
        views_per_picture=tokens.views_per_picture,
    )


def _answer_event(event: TextDelta | Finished) -> AnswerText | AnswerDone:
    if isinstance(event, TextDelta):
        return AnswerText(event.text)
    return AnswerDone(
        finish_reason=event.finish_reason,
        prompt_tokens=event.usage.prompt_tokens,
        completion_tokens=event.usage.completion_tokens,
        cached_tokens=event.usage.cached_tokens,
        seconds={"first_token": event.timings.ttft_seconds, "generate": event.timings.total_seconds},
    )


def _limits(settings: Settings) -> EngineLimits:
    return EngineLimits(
        max_batch_size=settings.generator_max_batch_size,
        max_queue=settings.generator_max_queue,
        max_batch_tokens=settings.generator_max_batch_tokens,
        kv_cache_tokens=settings.generator_kv_cache_tokens,
        visual_rows=settings.generator_visual_rows,
    )


class Generator:
    """Runs the language half of the checkpoint.

    Args:
        settings: model, device, batching and cache.
    """

    def __init__(self, settings: Settings) -> None:
        join_replica_log()
        torch.set_num_threads(settings.generator.threads())
        self._options = settings.model_options()
        self._facts = ModelFacts.open(settings.model, revision=settings.revision, options=self._options)
        half = self._facts.checkpoint.load_language(device=settings.device, dtype=settings.dtype)
        self._engine = PagedEngine(
            half,
            self._facts.checkpoint.tokenizer,
            _limits(settings),
        )
        self._cache = open_service_cache(settings)
        CacheReporter(self._cache).start()
        self._meter, self._in_hand = GeneratorMeter(self._engine), WorkInHand(TOKENS)
        self._meter.start()

    async def generate(
        self, order: AnswerOrder, encoded: EncodedTokens | None = None
    ) -> AsyncGenerator[StageEvent, None]:
        """Answer one question.

        Args:
            order: question, budget and sampling.
            encoded: the tokens if they come straight from the Encoder; None takes them from the cache.

        Yields:
            :class:`TokensMissing` alone if the cache does not have them (any more); otherwise
            :class:`TokensReady`, any number of :class:`AnswerText`, and :class:`AnswerDone`.

        Raises:
            FingerprintMismatchError: the asker means another tower than this replica's projector, or another layout.
            ContextLengthError: prompt, visual tokens and answer exceed the context. The asker cannot always know
                beforehand: how many tokens a picture has that is seen in several views depends on its size.
            OverloadedError: the engine's queue is full.
        """
        fingerprint = self._facts.fingerprint(order.medium)
        if (order.fingerprint, order.options) != (fingerprint, self._options):
            raise FingerprintMismatchError(
                f"this generator's projector belongs to the tower {fingerprint[:12]}, with {self._options}, not to "
                f"{order.fingerprint[:12]} with {order.options}; an upgrade may be under way, try again"
            )
        tokens = await asyncio.to_thread(self._tokens, order, encoded)
        if tokens is None:
            yield TokensMissing()
            return
        sequence = self._facts.arrange(tokens)
        prompt = self._facts.chat_prompt(order.messages, sequence.runs, order.sampling, tokens.medium)
        request = GenerationRequest(
            request_id=order.request_id,
            prompt=prompt,
            visual=sequence.features,
            separators=sequence.separators,
            sampling=order.sampling,
            cache_identity=order.token_set,
        )
        num_tokens = len(prompt) + order.sampling.max_tokens
        with self._in_hand.holding(num_tokens):
            async with aclosing(stream(self._engine, request)) as events:
                # Nothing is handed out before the engine has begun: until then the request can still be refused.
                first = await anext(events)
                self._meter.begin()
                yield _ready(tokens, sequence, encoded.seconds if encoded else {})
                yield _answer_event(first)
                async for event in events:
                    yield _answer_event(event)
        logger.info("generated an answer to a prompt of %d tokens, %d of them visual", len(prompt), prompt.num_visual)

    def _tokens(self, order: AnswerOrder, encoded: EncodedTokens | None) -> VisualTokens | None:
        if encoded is None:
            return self._cache.lookup(order.key, order.tokens_per_frame, order.fingerprint)
        return decode_tokens(encoded.blob, expect_fingerprint=order.fingerprint).select(order.tokens_per_frame)

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Tokens in hand, of prompts and of answers asked for; called by Serve now and then."""
        return self._in_hand.stats()

    def check_health(self) -> None:
        """Called by Serve now and then; an error makes it replace this replica.

        Raises:
            UnavailableError: the engine has died.
        """
        if not self._engine.healthy:
            raise UnavailableError("the language model engine has died")

    def __del__(self) -> None:
        if hasattr(self, "_engine"):
            self._engine.close()
