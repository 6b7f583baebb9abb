"""Videos in, kept tokens out: frames of several videos share forward passes, each is pruned its own way."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fastervlm_video.config import PruneSpec
from fastervlm_video.errors import CheckpointError, InvalidRequestError
from fastervlm_video.media.frames import FrameBatch
from fastervlm_video.prune import Need, PruneInputs, get_method
from fastervlm_video.vision.preprocess import Preprocessing
from fastervlm_video.vision.tokens import VisualTokens
from fastervlm_video.vision.tower import TowerOutput, VisionTower

__all__ = ["DEFAULT_MAX_FRAMES_PER_FORWARD", "EncodeJob", "VisionEncoder"]

DEFAULT_MAX_FRAMES_PER_FORWARD = 64


@dataclass(frozen=True, slots=True)
class EncodeJob:
    """One video to encode.

    Attributes:
        frames: its frames, already resized as the checkpoint's preprocessing prescribes.
        spec: which of its tokens to keep.
    """

    frames: FrameBatch
    spec: PruneSpec


class VisionEncoder:
    """The vision half of a checkpoint: preprocessing, tower and pruning.

    Args:
        tower: truncated to the layer whose output is used.
        preprocessing: the checkpoint's own.
        fingerprint: the tower's identity, written into every token set.

    Raises:
        CheckpointError: preprocessing does not end in frames of the tower's size.
    """

    def __init__(self, tower: VisionTower, preprocessing: Preprocessing, fingerprint: str) -> None:
        size = (tower.image_size, tower.image_size)
        if preprocessing.output_size != size:
            raise CheckpointError(
                f"preprocessing makes frames of {preprocessing.output_size} (height, width), the tower takes {size}"
            )
        self.tower = tower
        self.preprocessing = preprocessing
        self.fingerprint = fingerprint

    @property
    def frame_size(self) -> tuple[int, int]:
        """(height, width) in pixels of the frames that the tower takes."""
        return self.tower.image_size, self.tower.image_size

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of a frame's patch grid."""
        return self.tower.grid

    @property
    def patches_per_frame(self) -> int:
        """Patches in one frame before pruning."""
        return self.grid[0] * self.grid[1]

    @property
    def width(self) -> int:
        """The tower's hidden size."""
        return self.tower.width

    @property
    def device(self) -> torch.device:
        """Where the tower runs."""
        return self.tower.device

    @property
    def dtype(self) -> torch.dtype:
        """What the tower computes in."""
        return self.tower.dtype

    def check(self, job: EncodeJob) -> None:
        """Raise what :meth:`encode` would raise for this job alone.

        Jobs of different callers share one call, so a caller's mistake should be found before they do.

        Raises:
            InvalidRequestError: frames of another size, an unknown method, or more tokens than there are.
        """
        height_width = job.frames.frames_thwc_u8.shape[1:3]
        if height_width != self.frame_size:
            raise InvalidRequestError(
                f"frames must be resized to {self.frame_size} (height, width) first, got {height_width}"
            )
        get_method(job.spec.method)
        job.spec.tokens_per_frame(self.patches_per_frame)

    def encode(
        self, jobs: Sequence[EncodeJob], *, max_frames_per_forward: int = DEFAULT_MAX_FRAMES_PER_FORWARD
    ) -> list[VisualTokens]:
        """Encode and prune several videos.

        A video's result does not depend on the others, but for float rounding.

        Args:
            jobs: the videos; their numbers of frames may differ.
            max_frames_per_forward: bounds memory: most frames, of any videos, in one pass of the tower.

        Returns:
            One token set per job, in order, float32 and on the CPU.

        Raises:
            InvalidRequestError: see :meth:`check`; nothing was computed.
            CheckpointError: the tower's output is not finite.
        """
        _check_limit(max_frames_per_forward)
        for job in jobs:
            self.check(job)
        pieces: list[list[TowerOutput]] = [[] for _ in jobs]
        encoded: list[VisualTokens] = []
        for spans in _plan([job.frames.num_frames for job in jobs], max_frames_per_forward):
            output = self._forward([jobs[span.job].frames.frames_thwc_u8[span.start : span.stop] for span in spans])
            for span, piece in zip(spans, _split(output, [len(span) for span in spans]), strict=True):
                pieces[span.job].append(piece)
                if span.stop == jobs[span.job].frames.num_frames:
                    encoded.append(self._prune(jobs[span.job], _join(pieces[span.job])))
                    pieces[span.job].clear()
        return encoded

    def run_tower(
        self, frames: FrameBatch, *, max_frames_per_forward: int = DEFAULT_MAX_FRAMES_PER_FORWARD
    ) -> TowerOutput:
        """The tower's output of one video, to be pruned in several ways with :meth:`prune`.

        Args:
            frames: already resized as the checkpoint's preprocessing prescribes.
            max_frames_per_forward: bounds memory, as in :meth:`encode`.

        Raises:
            InvalidRequestError: frames of another size, or no frame allowed in one pass.
        """
        _check_limit(max_frames_per_forward)
        self.check(EncodeJob(frames, PruneSpec()))
        pixels = frames.frames_thwc_u8
        spans = range(0, len(pixels), max_frames_per_forward)
        return _join([self._forward([pixels[start : start + max_frames_per_forward]]) for start in spans])

    def prune(self, job: EncodeJob, output: TowerOutput) -> VisualTokens:
        """One of the ways to prune a video whose tower output is at hand; equals what :meth:`encode` returns.

        Args:
            job: the video, and which of its tokens to keep.
            output: what :meth:`run_tower` made of its frames.

        Raises:
            InvalidRequestError: see :meth:`check`.
            CheckpointError: the tower's output is not finite.
        """
        self.check(job)
        return self._prune(job, output)

    def _forward(self, runs: Sequence[npt.NDArray[np.uint8]]) -> TowerOutput:
        # Concatenating copies, which frames shared with other processes need: torch takes no read-only arrays.
        frames = torch.from_numpy(np.concatenate(runs))
        output: TowerOutput = self.tower(self.preprocessing.normalise(frames, self.device, self.dtype))
        return output

    def _prune(self, job: EncodeJob, output: TowerOutput) -> VisualTokens:
        method = get_method(job.spec.method)
        cls, patches = output.features[:, 0], output.features[:, 1:]
        selection = method.select(
            PruneInputs(
                tokens_per_frame=job.spec.tokens_per_frame(self.patches_per_frame),
                grid=self.grid,
                pts_seconds=job.frames.pts_seconds,
                device=patches.device,
                seed=job.spec.seed,
                cls_attention=output.cls_attention if Need.CLS_ATTENTION in method.needs else None,
                features=patches if Need.FEATURES in method.needs else None,
                keys=output.keys[:, :, 1:] if Need.KEYS in method.needs else None,
            )
        )
        features = selection.features
        if features is None:
            counts = torch.tensor(selection.counts, device=patches.device)
            frames = torch.arange(len(patches), device=patches.device).repeat_interleave(counts)
            features = patches[frames, selection.indices]
        return VisualTokens(
            features=self._to_host(features),
            indices=selection.indices.to("cpu", torch.int32),
            scores=selection.scores.to("cpu", torch.float32),
            counts=selection.counts,
            grid=self.grid,
            pts_seconds=job.frames.pts_seconds,
            method=method.name,
            nested=method.nested,
            fingerprint=self.fingerprint,
            cls_features=self._to_host(cls.clone()) if job.spec.keep_cls else None,
        )

    def _to_host(self, features: Tensor) -> Tensor:
        on_host = features.to("cpu").to(torch.float32)
        if not bool(on_host.isfinite().all()):
            raise CheckpointError(
                f"the vision tower's features are not finite in {self.dtype}: load it in float32 or bfloat16, "
                "or check the checkpoint's weights"
            )
        return on_host


def _check_limit(max_frames_per_forward: int) -> None:
    if max_frames_per_forward < 1:
        raise InvalidRequestError(f"max_frames_per_forward must be at least 1, got {max_frames_per_forward}")


@dataclass(frozen=True, slots=True)
class _Span:
    """Frames ``start`` to ``stop`` (exclusive) of one job."""

    job: int
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


def _plan(frame_counts: Sequence[int], limit: int) -> list[list[_Span]]:
    """Fill forward passes of at most ``limit`` frames with all jobs' frames, in order.

    ::

        counts (3, 4), limit 4  ─▶  [0: 0..3, 1: 0..1]  [1: 1..4]
    """
    plan: list[list[_Span]] = []
    room = 0
    for job, count in enumerate(frame_counts):
        start = 0
        while start < count:
            if room == 0:
                plan.append([])
                room = limit
            stop = min(count, start + room)
            plan[-1].append(_Span(job, start, stop))
            room -= stop - start
            start = stop
    return plan


def _split(output: TowerOutput, counts: list[int]) -> Iterator[TowerOutput]:
    parts = (output.features.split(counts), output.cls_attention.split(counts), output.keys.split(counts))
    return (TowerOutput(*part) for part in zip(*parts, strict=True))


def _join(pieces: Sequence[TowerOutput]) -> TowerOutput:
    if len(pieces) == 1:
        return pieces[0]
    return TowerOutput(
        torch.cat([piece.features for piece in pieces]),
        torch.cat([piece.cls_attention for piece in pieces]),
        torch.cat([piece.keys for piece in pieces]),
    )
