"""The token sets of one video, for all arms: decoded once, through the tower once, pruned in every way."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch

from fastervlm_video.cache import DEFAULT_STORAGE, Storage, decode_tokens, encode_tokens
from fastervlm_video.config import PruneSpec
from fastervlm_video.errors import InvalidRequestError
from fastervlm_video.eval.arms import FULL, ORACLE, Arm
from fastervlm_video.eval.datasets import Coverage
from fastervlm_video.eval.oracle import select_by_coverage
from fastervlm_video.media import FrameBatch
from fastervlm_video.vision import EncodeJob, Region, VisionEncoder, VisualTokens

__all__ = ["TimedTokens", "VideoTokens"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True, eq=False)
class TimedTokens:
    """A token set and what it took.

    Attributes:
        tokens: the values as stored, which is what the engine sees in the service.
        encode_seconds: the tower, the choice of tokens, and their way through storage.
        prune_seconds: the choice of tokens alone.
    """

    tokens: VisualTokens
    encode_seconds: float
    prune_seconds: float


class VideoTokens:
    """One video's frames behind the tower, from which any arm's tokens can be had.

    Args:
        encoder: the vision half.
        frames: the video's, resized.
        name: the video's in its data set.
        coverage: where its objects are, for the oracle.
        dtype: how tokens are stored on their way.
        regions: what may be kept of each frame; None is all.
    """

    def __init__(
        self,
        encoder: VisionEncoder,
        frames: FrameBatch,
        name: str,
        coverage: Coverage | None,
        *,
        dtype: Storage = DEFAULT_STORAGE,
        regions: tuple[Region, ...] | None = None,
    ) -> None:
        self._dtype, self._regions = dtype, regions
        self._encoder, self._frames, self._name, self._coverage = encoder, frames, name, coverage
        self._output, self._tower_seconds = self._timed(lambda: encoder.run_tower(frames))

    def of(self, arm: Arm) -> TimedTokens:
        """What the arm's language model is given.

        Raises:
            InvalidRequestError: the arm is the oracle, and where the objects are is not known.
            CheckpointError: the tower's output is not finite.
        """
        if arm.method == ORACLE:
            return self._oracle(arm)
        job = EncodeJob(self._frames, arm.spec, regions=self._regions)
        pruned, prune_seconds = self._timed(lambda: self._encoder.prune(job, self._output))
        tokens, store_seconds = self._timed(lambda: decode_tokens(encode_tokens(pruned, dtype=self._dtype)))
        return TimedTokens(tokens, self._tower_seconds + prune_seconds + store_seconds, prune_seconds)

    def _oracle(self, arm: Arm) -> TimedTokens:
        if self._coverage is None:
            raise InvalidRequestError(f"where the objects of {self._name} are is not known")
        full = self.of(Arm(FULL, 1.0))
        coverage = self._coverage(self._name, full.tokens.pts_seconds, full.tokens.grid)
        count = PruneSpec(keep_ratio=arm.keep).tokens_per_frame(full.tokens.patches_per_frame)
        tokens = select_by_coverage(full.tokens, coverage, count, seed=arm.seed)
        return TimedTokens(tokens, full.encode_seconds, full.prune_seconds)

    def _timed(self, work: Callable[[], T]) -> tuple[T, float]:
        begin = time.perf_counter()
        result = work()
        if self._encoder.device.type == "cuda":
            torch.cuda.synchronize(self._encoder.device)
        return result, time.perf_counter() - begin
