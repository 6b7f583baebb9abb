"""The Encoder stage: frames of several videos and pictures in one pass of a tower, pruned, cached."""

import asyncio
import logging
import time
from collections.abc import Hashable
from dataclasses import dataclass

import torch

from fastervlm_video.cache import encode_tokens
from fastervlm_video.config import Medium
from fastervlm_video.errors import FasterVLMError, FingerprintMismatchError, UnavailableError, VideoNotFoundError
from fastervlm_video.plan import ModelFacts
from fastervlm_video.vision import EncodeJob, VisionEncoder, VisualTokens
from services.frame_batches import FrameBatches
from services.logs import join_replica_log
from services.metrics import CacheReporter, EncoderMeter, WorkMeter
from services.scaling import FRAMES, WorkInHand
from services.settings import Settings
from services.stages import DecodedVideo, EncodedTokens, EncodeOrder
from services.stores import open_blob_store, open_service_cache

__all__ = ["Encoder"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class _Encoded:
    tokens: VisualTokens
    seconds: float


def _count_frames(jobs: list[EncodeJob]) -> int:
    return sum(job.frames.num_frames for job in jobs)


def _load_encoders(facts: ModelFacts, settings: Settings) -> dict[Medium, VisionEncoder]:
    """By medium; media that one tower sees in one way have one encoder."""
    loaded: dict[Hashable, VisionEncoder] = {}
    for medium in Medium:
        which = facts.checkpoint.vision_of(medium)
        if which not in loaded:
            loaded[which] = facts.checkpoint.load_vision(
                settings.device, settings.dtype, medium=medium, compile_tower=settings.encoder_compile
            )
    return {medium: loaded[facts.checkpoint.vision_of(medium)] for medium in Medium}


class Encoder:
    """Runs the vision half of the checkpoint: one tower for videos and pictures, or one for each.

    One thread runs the towers and does nothing else; packing and storing a video's tokens go on beside the next pass.
    Memory is bounded by settings: a pass by ``max_batch_frames``; what waits for a pass, or for being stored, by
    ``encoder.max_ongoing_requests`` videos of at most ``max_num_frames`` frames, each with its views.

    Args:
        settings: model, device, batching and cache.
    """

    def __init__(self, settings: Settings) -> None:
        join_replica_log()
        torch.set_num_threads(settings.encoder.threads())
        self._options = settings.model_options()
        self._facts = ModelFacts.open(settings.model, revision=settings.revision, options=self._options)
        self._encoders = _load_encoders(self._facts, settings)
        self._cache, self._blobs = open_service_cache(settings), open_blob_store(settings)
        CacheReporter(self._cache).start()
        self._meter, self._load = WorkMeter("encode"), EncoderMeter()
        self._in_hand = WorkInHand(FRAMES)
        self._max_batch_frames = settings.max_batch_frames
        self._batches = FrameBatches(
            self._encode_by_tower,
            max_frames=settings.max_batch_frames,
            wait_seconds=settings.encode_batch_wait_seconds,
        )
        self._broken: str | None = None

    async def encode(self, video: DecodedVideo, order: EncodeOrder) -> EncodedTokens:
        """Encode and prune one video or picture, and put its tokens into the cache.

        Raises:
            FingerprintMismatchError: the asker means another tower, or another layout, than this replica runs.
            InvalidRequestError: the frames or the budget do not fit the tower.
        """
        encoder = self._encoders[order.medium]
        if (order.fingerprint, order.options) != (encoder.fingerprint, self._options):
            raise FingerprintMismatchError(
                f"this encoder runs the tower {encoder.fingerprint[:12]} with {self._options}, not "
                f"{order.fingerprint[:12]} with {order.options}; an upgrade may be under way, try again"
            )
        job = self._facts.encode_job(video.frames, order.prune, order.medium)
        encoder.check(job)
        with self._in_hand.holding(job.frames.num_frames):
            with self._load.waiting(job.frames.num_frames):
                encoded = await self._batches.run(job, job.frames.num_frames)
            if isinstance(encoded, FasterVLMError):
                raise encoded
            logger.info("encoded %s, kept %s", video.frames, encoded.tokens)
            blob = await asyncio.to_thread(self._store, order, encoded.tokens)
        return EncodedTokens(blob, {**video.seconds, "encode": encoded.seconds})

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Frames in hand; called by Serve now and then."""
        return self._in_hand.stats()

    def _store(self, order: EncodeOrder, tokens: VisualTokens) -> bytes:
        """Pack the tokens and cache them, unless their file was deleted while they were made."""
        blob = encode_tokens(tokens, dtype=self._cache.dtype)
        self._cache.insert(order.key, blob)
        try:
            self._blobs.stat(order.digest, owner=order.owner)
        except VideoNotFoundError:
            self._cache.delete_video(order.key.video)
        except FasterVLMError as exc:
            logger.warning("cannot tell whether the file is still there: %s", exc)
        return blob

    def check_health(self) -> None:
        """Called by Serve now and then; an error makes it replace this replica.

        Raises:
            UnavailableError: the device has failed in a way that this process cannot recover from.
        """
        if self._broken is not None:
            raise UnavailableError(f"the encoder's device is broken: {self._broken}")

    def _encode_by_tower(self, jobs: list[EncodeJob]) -> list[_Encoded | FasterVLMError]:
        """One tower after the other, each with all that is for it; results in the order of the jobs."""
        self._load.together(_count_frames(jobs))
        results: dict[int, _Encoded | FasterVLMError] = {}
        for encoder in set(self._encoders.values()):
            places = [at for at, job in enumerate(jobs) if self._encoders[job.medium] is encoder]
            if places:
                encoded = self._encode(encoder, [jobs[at] for at in places])
                results |= dict(zip(places, encoded, strict=True))
        return [results[at] for at in range(len(jobs))]

    def _encode(self, encoder: VisionEncoder, jobs: list[EncodeJob]) -> list[_Encoded | FasterVLMError]:
        """One pass. Errors are results, so that each reaches its own asker; if the pass fails as a whole, every
        video is tried alone, so that only the one at fault is lost.
        """
        begin = time.perf_counter()
        try:
            tokens = encoder.encode(jobs, max_frames_per_forward=self._max_batch_frames)
        except (FasterVLMError, RuntimeError) as exc:  # torch's are RuntimeErrors, out of memory among them
            if isinstance(exc, torch.AcceleratorError):
                self._broken = str(exc)
                return [UnavailableError("the encoder's device has failed; try again")] * len(jobs)
            if len(jobs) > 1:
                logger.warning("encoding %d videos together failed, trying each alone: %s", len(jobs), exc)
                return [result for job in jobs for result in self._encode(encoder, [job])]
            if isinstance(exc, FasterVLMError):
                return [exc]
            logger.exception("encoding a video failed")
            return [UnavailableError(f"encoding failed ({type(exc).__name__}); try again")]
        seconds = time.perf_counter() - begin
        logger.info("encoded %d videos, %d frames, in %.3f s", len(jobs), _count_frames(jobs), seconds)
        self._meter.record(videos=len(jobs), frames=_count_frames(jobs), seconds=seconds)
        return [_Encoded(one, seconds) for one in tokens]
