"""Encode a video or a picture once, ask it many questions: the whole method in one process, without Ray."""

import hashlib
import logging
import os
import threading
import time
import uuid
from collections.abc import Generator, Hashable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from fastervlm_video.cache import DEFAULT_STORAGE, MemoryStore, Storage, TokenCache, decode_tokens, encode_tokens
from fastervlm_video.config import (
    DEFAULT_METHOD,
    DEFAULT_NUM_FRAMES,
    FrameSampling,
    MediaLimits,
    Medium,
    ModelOptions,
    PruneSpec,
    SamplingParams,
)
from fastervlm_video.errors import FingerprintMismatchError, InvalidRequestError
from fastervlm_video.language import (
    Engine,
    FinishReason,
    GenerationRequest,
    PagedEngine,
    TextDelta,
    Usage,
    generate,
    iter_events,
)
from fastervlm_video.media import SNIFF_BYTES, FrameBatch, Progress, decode_picture, decode_video, sniff_medium
from fastervlm_video.media.sources import MediaSource, open_source
from fastervlm_video.models import LanguageHalf, resolve_device, resolve_dtype
from fastervlm_video.plan import ModelFacts
from fastervlm_video.prune import get_method
from fastervlm_video.vision import VisionEncoder, VisualTokens

__all__ = ["Answer", "EncodedVideo", "VideoQA"]

logger = logging.getLogger(__name__)

_DEFAULT_CACHE_BYTES = 256 * 1024**2
_READ_BYTES = 1024**2

Source = str | os.PathLike[str] | bytes | BinaryIO


@dataclass(frozen=True, slots=True, eq=False)
class EncodedVideo:
    """A video, or a picture, as the language model will see it.

    Attributes:
        tokens: the kept visual tokens.
        digest: SHA-256 of the file's bytes, hex.
        cache: whether the tokens were in the cache.
        seconds: time by stage: ``decode`` and ``encode``; empty on a cache hit.
        frames: the frames (or the picture's views) that the tower saw, if they were decoded.
        identity: of all that determines the tokens; questions about equal ones share work. None shares nothing.
    """

    tokens: VisualTokens
    digest: str
    cache: str
    seconds: dict[str, float] = field(default_factory=dict)
    frames: FrameBatch | None = None
    identity: str | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer to one question.

    Attributes:
        text: the answer.
        finish_reason: ``stop`` if the model ended it, ``length`` if ``max_tokens`` did.
        usage: token counts; ``cached_tokens`` of the prompt had been computed for an earlier question.
        seconds: ``first_token`` and ``generate``.
    """

    text: str
    finish_reason: FinishReason
    usage: Usage
    seconds: dict[str, float]


class VideoQA:
    """Questions about videos and pictures. Build it with :meth:`from_pretrained`, close it when done.

    The two halves of the checkpoint are loaded when they are first needed.

    Args:
        facts: of the checkpoint.
        prune: which visual tokens to keep, unless a call says otherwise.
        sampling: which frames to look at, unless a call says otherwise.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        dtype: ``auto``, ``float32``, ``float16`` or ``bfloat16``.
        cache: of kept tokens; None keeps them in memory.
        limits: bounds on videos.
        cache_dtype: how they are kept in memory: ``float16`` (the default) or ``int8``, which is half as large.

    Raises:
        InvalidRequestError: there is no such ``cache_dtype``, or ``cache`` has another.
    """

    def __init__(
        self,
        facts: ModelFacts,
        *,
        prune: PruneSpec | None = None,
        sampling: FrameSampling | None = None,
        device: str = "auto",
        dtype: str = "auto",
        cache: TokenCache | None = None,
        limits: MediaLimits | None = None,
        cache_dtype: str | None = None,
    ) -> None:
        self.facts = facts
        self._prune = prune or PruneSpec()
        self._sampling = sampling or FrameSampling()
        self._device, self._dtype = device, dtype
        self._loading = threading.RLock()
        self._encoders: dict[Hashable, VisionEncoder] = {}
        self._language: LanguageHalf | None = None
        self._engine: Engine | None = None
        self._closed = False
        self._owns_cache = cache is None
        self._cache = _cache(cache, cache_dtype)
        self._limits = limits or MediaLimits()

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path = "mini",
        *,
        keep_ratio: float | None = None,
        keep_tokens: int | None = None,
        method: str = DEFAULT_METHOD,
        keep_cls: bool = False,
        num_frames: int = DEFAULT_NUM_FRAMES,
        revision: str | None = None,
        device: str = "auto",
        dtype: str = "auto",
        cache: TokenCache | None = None,
        limits: MediaLimits | None = None,
        cache_dtype: str | None = None,
        options: ModelOptions | None = None,
    ) -> Self:
        """Open a checkpoint.

        Args:
            model: ``mini``, a checkpoint's folder, or a Hugging Face id.
            keep_ratio: share of each frame's visual tokens to keep, in (0, 1]; 0.1 if neither this nor
                ``keep_tokens`` is given.
            keep_tokens: visual tokens to keep per frame, instead.
            method: pruning method, see :func:`fastervlm_video.prune.method_names`.
            keep_cls: keep each frame's [CLS] token too, as Hugging Face's Video-LLaVA does.
            num_frames: frames to look at.
            revision: of a Hugging Face id.
            device: where the model runs; ``auto`` is the GPU if there is one.
            dtype: of the weights; ``auto`` is float32 on a CPU and bfloat16 on a GPU.
            cache: of kept tokens; None keeps them in memory.
            limits: bounds on videos.
            cache_dtype: how tokens are kept in memory: ``float16`` (the default) or ``int8``, which is half as large,
                and off by up to 1/254 of each token's largest number. A ``cache`` has its own.
            options: what may be chosen about an architecture: the order of a picture's tokens, labels for frames.

        Raises:
            CheckpointError: there is no such model, or it cannot be loaded.
            InvalidRequestError: a value is out of range.
        """
        return cls.open(
            model,
            prune=PruneSpec(method=method, keep_ratio=keep_ratio, keep_tokens=keep_tokens, keep_cls=keep_cls),
            sampling=FrameSampling(num_frames),
            revision=revision,
            device=device,
            dtype=dtype,
            cache=cache,
            limits=limits,
            cache_dtype=cache_dtype,
            options=options,
        )

    @classmethod
    def open(
        cls,
        model: str | Path,
        *,
        prune: PruneSpec,
        sampling: FrameSampling,
        revision: str | None = None,
        device: str = "auto",
        dtype: str = "auto",
        cache: TokenCache | None = None,
        limits: MediaLimits | None = None,
        cache_dtype: str | None = None,
        options: ModelOptions | None = None,
    ) -> Self:
        """The same, for who has the budget and the sampling as objects.

        Raises:
            CheckpointError: there is no such model, or it cannot be loaded.
            InvalidRequestError: a value is out of range.
        """
        # What is spelt wrong is found before gigabytes are downloaded.
        get_method(prune.method)
        resolve_dtype(dtype, resolve_device(device))
        Storage.parse(cache_dtype or DEFAULT_STORAGE)
        facts = ModelFacts.open(model, revision=revision, options=options)
        return cls(
            facts,
            prune=prune,
            sampling=sampling,
            device=device,
            dtype=dtype,
            cache=cache,
            limits=limits,
            cache_dtype=cache_dtype,
        )

    @property
    def limits(self) -> MediaLimits:
        """Bounds on the files that are decoded."""
        return self._limits

    @property
    def cache_dtype(self) -> Storage:
        """How tokens are stored; what the language model sees are the values as stored."""
        return self._cache.dtype

    @property
    def encoder(self) -> VisionEncoder:
        """The vision half, for videos; loaded on first use."""
        return self.encoder_for(Medium.VIDEO)

    def encoder_for(self, medium: Medium) -> VisionEncoder:
        """The vision half, loaded on first use. An architecture may have a tower of its own for pictures."""
        checkpoint = self.facts.checkpoint
        with self._loading:
            which = checkpoint.vision_of(medium)
            if which not in self._encoders:
                self._encoders[which] = checkpoint.load_vision(self._device, self._dtype, medium=medium)
            return self._encoders[which]

    @property
    def engine(self) -> Engine:
        """The language half, in an engine; loaded on first use, and started again if it has broken."""
        with self._loading:
            if self._engine is not None and not self._engine.healthy and not self._closed:
                logger.warning("the language engine has broken; another one is started")
                self._engine.close()
                self._engine = None
            if self._engine is None:
                self._engine = self._start_engine()
            return self._engine

    @property
    def language(self) -> LanguageHalf:
        """Projector and language model, as the engine has them; loaded on first use."""
        with self._loading:
            if self._language is None:
                self._language = self.facts.checkpoint.load_language(self._device, self._dtype)
            return self._language

    def _start_engine(self) -> Engine:
        return PagedEngine(self.language, self.facts.checkpoint.tokenizer)

    def encode(
        self,
        source: Source,
        *,
        prune: PruneSpec | None = None,
        sampling: FrameSampling | None = None,
        with_frames: bool = False,
        progress: Progress | None = None,
    ) -> EncodedVideo:
        """Turn a video or a picture into its kept visual tokens, or take them from the cache.

        Args:
            source: a path, a file's bytes, or a binary file object, which is read from its start and left open. What
                it is is seen from its first bytes.
            prune: instead of the default.
            sampling: which frames of a video, instead of the default.
            with_frames: decode the frames even if the tokens are cached.
            progress: called with (frames decoded, frames in all).

        Raises:
            VideoNotFoundError: the path names nothing that can be opened.
            MediaError: the file cannot be decoded within the limits.
            InvalidRequestError: unknown method, more tokens asked for than a frame has, or no source at all.
        """
        with open_source(source, self._limits) as media:
            return self._encode(
                media, prune or self._prune, sampling or self._sampling, with_frames=with_frames, progress=progress
            )

    encode_video = encode

    def _encode(
        self,
        media: MediaSource,
        prune: PruneSpec,
        sampling: FrameSampling,
        *,
        with_frames: bool = False,
        progress: Progress | None = None,
    ) -> EncodedVideo:
        digest, medium = _content_digest(media), _medium(media)
        plan = self.facts.plan(digest, sampling, prune, medium=medium, dtype=self._cache.dtype)
        tokens = self._cache.lookup(plan.key, plan.tokens_per_frame, self.facts.fingerprint(medium))
        cached = tokens is not None
        seconds: dict[str, float] = {}
        frames = None
        if not cached or with_frames:
            begin = time.perf_counter()
            frames = self._decode(media, medium, sampling, progress)
            seconds["decode"] = time.perf_counter() - begin
        if tokens is None:
            assert frames is not None
            encoder = self.encoder_for(medium)
            begin = time.perf_counter()
            job = self.facts.encode_job(frames, prune, medium)
            blob = encode_tokens(encoder.encode([job])[0], dtype=self._cache.dtype)
            seconds["encode"] = time.perf_counter() - begin
            self._cache.insert(plan.key, blob)
            tokens = decode_tokens(blob)  # the values as stored, so that an answer never depends on the cache's state
        identity = plan.key.token_set(plan.tokens_per_frame)
        return EncodedVideo(tokens, digest, "hit" if cached else "miss", seconds, frames, identity)

    def _decode(
        self, media: MediaSource, medium: Medium, sampling: FrameSampling, progress: Progress | None
    ) -> FrameBatch:
        preprocessing, limits = self.facts.preprocessing(medium), self._limits
        resize, tiling = preprocessing.resize, preprocessing.tiling
        if medium is Medium.IMAGE:
            frames = decode_picture(media, limits=limits, resize=resize, tiling=tiling)
            if progress is not None:
                progress(1, 1)
            return frames
        return decode_video(media, sampling, limits=limits, resize=resize, tiling=tiling, progress=progress)

    def check_question(
        self, question: str, params: SamplingParams | None = None, medium: Medium = Medium.VIDEO
    ) -> None:
        """Find what is wrong with a question before any work is done for it, at the default budget.

        Raises:
            InvalidRequestError: the question is empty or contains a reserved token.
            ContextLengthError: prompt, video and answer exceed the model's context.
        """
        runs = self.facts.visual_runs(self._sampling, self._prune, medium)
        self.facts.prompt(question, runs, params or SamplingParams(), medium)

    def ask(self, video: EncodedVideo | Source, question: str, params: SamplingParams | None = None) -> Answer:
        """Answer a question. Safe to call from several threads at once: their requests are batched.

        Args:
            video: what :meth:`encode` returned, or a video or picture.
            question: about it.
            params: how to decode the answer; greedy by default.

        Raises:
            InvalidRequestError: the question is empty or contains a reserved token.
            ContextLengthError: prompt, video and answer exceed the model's context.
            FingerprintMismatchError: the video was encoded with another checkpoint.
        """
        request = self._request(video, question, params)
        result = generate(self.engine, request)
        timings = result.timings
        seconds = {"first_token": timings.ttft_seconds, "generate": timings.total_seconds}
        return Answer(result.text, result.finish_reason, result.usage, seconds)

    def stream(
        self, video: EncodedVideo | Source, question: str, params: SamplingParams | None = None
    ) -> Generator[str, None, None]:
        """The same as :meth:`ask`, piece by piece as it is generated; closing the iterator stops it.

        Raises:
            FasterVLMError: as :meth:`ask`.
        """
        request = self._request(video, question, params)
        for event in iter_events(self.engine, request):
            if isinstance(event, TextDelta):
                yield event.text

    def _request(self, video: EncodedVideo | Source, question: str, params: SamplingParams | None) -> GenerationRequest:
        params = params or SamplingParams()
        if isinstance(video, EncodedVideo):
            encoded = video
        else:
            with open_source(video, self._limits) as media:
                self.check_question(question, params, _medium(media))
                encoded = self._encode(media, self._prune, self._sampling)
        tokens = encoded.tokens
        fingerprint = self.facts.fingerprint(tokens.medium)
        if tokens.fingerprint != fingerprint:
            raise FingerprintMismatchError(
                f"the {tokens.medium} was encoded by the tower {tokens.fingerprint[:12]}, but {self.facts.name} has "
                f"{fingerprint[:12]}; encode it again"
            )
        sequence = self.facts.arrange(tokens)
        prompt = self.facts.prompt(question, sequence.runs, params, tokens.medium)
        return GenerationRequest(
            request_id=uuid.uuid4().hex,
            prompt=prompt,
            visual=sequence.features,
            separators=sequence.separators,
            sampling=params,
            cache_identity=encoded.identity,
        )

    def close(self) -> None:
        """End the engine, if it was started, and the cache, if it was not given to the constructor."""
        with self._loading:
            self._closed = True
            if self._engine is not None:
                self._engine.close()
            if self._owns_cache:
                self._cache.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _cache(given: TokenCache | None, dtype: str | None) -> TokenCache:
    """The cache that was given, or one in memory."""
    if given is None:
        return TokenCache(MemoryStore(_DEFAULT_CACHE_BYTES), dtype=Storage.parse(dtype or DEFAULT_STORAGE))
    if dtype not in {None, given.dtype}:
        raise InvalidRequestError(
            f"cache_dtype={dtype} is asked for, but the cache stores {given.dtype}; leave one out"
        )
    return given


def _content_digest(media: MediaSource) -> str:
    """SHA-256 of all bytes, hex."""
    digest = hashlib.sha256()
    media.seek(0)
    while piece := media.read(_READ_BYTES):
        digest.update(piece)
    return digest.hexdigest()


def _medium(media: MediaSource) -> Medium:
    return sniff_medium(media.read_at(0, SNIFF_BYTES))
