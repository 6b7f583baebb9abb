"""The Decoder stage: stored bytes in, a few small frames out. CPU only, and as untrusting as can be."""

import asyncio
import logging
import threading
import time

from fastervlm_video.media import FrameBatch, SandboxedDecoder
from services.logs import join_replica_log
from services.metrics import WorkMeter
from services.settings import Settings
from services.stages import DecodedVideo, DecodeOrder
from services.stores import open_blob_store

__all__ = ["Decoder"]

logger = logging.getLogger(__name__)


class Decoder:
    """Decodes each file in a child process of its own, which is killed when the asker leaves.

    Args:
        settings: limits, and where uploads are.
    """

    def __init__(self, settings: Settings) -> None:
        join_replica_log()
        self._limits = settings.media_limits()
        self._blobs = open_blob_store(settings)
        self._sandbox = SandboxedDecoder()
        self._meter = WorkMeter("decode")

    async def decode(self, order: DecodeOrder) -> DecodedVideo:
        """Take the ordered frames out of a stored video, or the views out of a picture.

        Raises:
            VideoNotFoundError: the file was deleted or has expired.
            MediaError: it cannot be decoded within the limits.
        """
        begin = time.perf_counter()
        cancelled = threading.Event()
        try:
            frames = await asyncio.to_thread(self._decode, order, cancelled)
        except asyncio.CancelledError:
            cancelled.set()
            raise
        seconds = time.perf_counter() - begin
        logger.info("decoded %s in %.3f s", frames, seconds)
        self._meter.record(videos=1, frames=frames.num_pictures, seconds=seconds)
        return DecodedVideo(frames, {"decode": seconds})

    def _decode(self, order: DecodeOrder, cancelled: threading.Event) -> FrameBatch:
        with self._blobs.open_local(order.digest, owner=order.owner) as file:
            return self._sandbox.decode(
                file.fileno(),
                order.sampling,
                limits=self._limits,
                resize=order.resize,
                tiling=order.tiling,
                medium=order.medium,
                cancelled=cancelled,
            )

    def __del__(self) -> None:
        if hasattr(self, "_sandbox"):
            self._sandbox.close()
