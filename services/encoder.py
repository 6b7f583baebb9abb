"""The Encoder stage: frames of several videos in one pass of the tower, pruned, cached."""

import asyncio
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from ray import serve

from fastervlm_video.cache import encode_tokens
from fastervlm_video.errors import FasterVLMError, FingerprintMismatchError, UnavailableError
from fastervlm_video.plan import STORAGE_DTYPE, ModelFacts
from fastervlm_video.vision import EncodeJob
from services.settings import Settings
from services.stages import DecodedVideo, EncodedVideo, EncodeOrder
from services.stores import open_service_cache

__all__ = ["Encoder"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class _Encoded:
    blob: bytes
    seconds: float


def _count_frames(jobs: list[EncodeJob]) -> int:
    return sum(job.frames.num_frames for job in jobs)


class Encoder:
    """Runs the vision half of the checkpoint.

    Args:
        settings: model, device, batching and cache.
    """

    def __init__(self, settings: Settings) -> None:
        torch.set_num_threads(settings.encoder.threads())
        facts = ModelFacts.open(settings.model, revision=settings.revision)
        self._encoder = facts.checkpoint.load_vision(device=settings.device, dtype=settings.dtype)
        self._cache = open_service_cache(settings)
        self._max_batch_frames = settings.max_batch_frames
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="tower")
        self._encode_together.set_max_batch_size(max(settings.max_batch_frames, settings.max_num_frames))  # type: ignore[attr-defined]
        self._encode_together.set_batch_wait_timeout_s(settings.encode_batch_wait_seconds)  # type: ignore[attr-defined]

    async def encode(self, video: DecodedVideo, order: EncodeOrder) -> EncodedVideo:
        """Encode and prune one video, and put its tokens into the cache.

        Raises:
            FingerprintMismatchError: the asker means another tower than this replica runs.
            InvalidRequestError: the frames or the budget do not fit the tower.
        """
        if order.fingerprint != self._encoder.fingerprint:
            raise FingerprintMismatchError(
                f"this encoder runs the tower {self._encoder.fingerprint[:12]}, not {order.fingerprint[:12]}; "
                "an upgrade may be under way, try again"
            )
        job = EncodeJob(video.frames, order.prune)
        self._encoder.check(job)
        encoded = await self._encode_together(job)
        if isinstance(encoded, FasterVLMError):
            raise encoded
        await asyncio.to_thread(self._cache.insert, order.key, encoded.blob)
        return EncodedVideo(encoded.blob, {**video.seconds, "encode": encoded.seconds})

    @serve.batch(batch_size_fn=_count_frames)
    async def _encode_together(self, jobs: list[EncodeJob]) -> list[_Encoded | FasterVLMError]:
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._encode, jobs)

    def _encode(self, jobs: list[EncodeJob]) -> list[_Encoded | FasterVLMError]:
        """One pass; a failure is every job's own result, so that none is lost without a word."""
        begin = time.perf_counter()
        try:
            tokens = self._encoder.encode(jobs, max_frames_per_forward=self._max_batch_frames)
            blobs = [encode_tokens(one, dtype=STORAGE_DTYPE) for one in tokens]
        except FasterVLMError as exc:
            return [exc] * len(jobs)
        except RuntimeError as exc:  # torch's, out of memory among them
            logger.exception("encoding %d videos failed", len(jobs))
            return [UnavailableError(f"encoding failed ({type(exc).__name__}); try again")] * len(jobs)
        seconds = time.perf_counter() - begin
        logger.info("encoded %d videos, %d frames, in %.3f s", len(jobs), _count_frames(jobs), seconds)
        return [_Encoded(blob, seconds) for blob in blobs]
