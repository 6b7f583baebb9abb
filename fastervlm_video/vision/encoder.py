"""Videos in, kept tokens out: frames of several videos share forward passes, each is pruned its own way."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fastervlm_video.config import Medium, PruneSpec
from fastervlm_video.errors import CheckpointError, InvalidRequestError
from fastervlm_video.media.frames import FrameBatch
from fastervlm_video.prune import get_method
from fastervlm_video.vision.compiled import CompiledOrEager
from fastervlm_video.vision.layout import Region, is_whole
from fastervlm_video.vision.passes import Span, frames_per_pass, plan_passes
from fastervlm_video.vision.preprocess import Preprocessing
from fastervlm_video.vision.pruning import KeptTokens, SpanPruning, VideoPruning
from fastervlm_video.vision.tokens import VisualTokens
from fastervlm_video.vision.tower import ScoredFrames, TowerOutput, VisionTower

__all__ = ["DEFAULT_MAX_FRAMES_PER_FORWARD", "EncodeJob", "VisionEncoder"]

DEFAULT_MAX_FRAMES_PER_FORWARD = 64
_COMPILED_FOR = (2, 1)  # frames: torch.compile makes one version for 1, and one for any larger number


@dataclass(frozen=True, slots=True)
class EncodeJob:
    """One video or picture to encode.

    Attributes:
        frames: its frames, or views, already resized as the checkpoint's preprocessing prescribes.
        spec: which of its tokens to keep.
        medium: what it is.
        regions: what may be kept of each frame; None is all.
    """

    frames: FrameBatch
    spec: PruneSpec
    medium: Medium = Medium.VIDEO
    regions: tuple[Region, ...] | None = None


class VisionEncoder:
    """The vision half of a checkpoint: preprocessing, tower and pruning.

    Args:
        tower: truncated to the layer whose output is used.
        preprocessing: the checkpoint's own.
        fingerprint: the tower's identity, written into every token set.
        compile_tower: compile the tower with ``torch.compile``, now, which takes minutes; where that fails, say so in
            the log and do without.

    Raises:
        CheckpointError: preprocessing does not end in frames of the tower's size.
    """

    def __init__(
        self, tower: VisionTower, preprocessing: Preprocessing, fingerprint: str, *, compile_tower: bool = False
    ) -> None:
        size = (tower.image_size, tower.image_size)
        if preprocessing.output_size != size:
            raise CheckpointError(
                f"preprocessing makes frames of {preprocessing.output_size} (height, width), the tower takes {size}"
            )
        self.tower = tower
        self.preprocessing = preprocessing
        self.fingerprint = fingerprint
        self._scorer: Callable[[Tensor], ScoredFrames] = tower.score
        if compile_tower:
            self._scorer = CompiledOrEager(tower.score, freeze=self.device.type == "cpu")
            for frames in _COMPILED_FOR:
                self._score([np.zeros((frames, *size, 3), np.uint8)])

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
            InvalidRequestError: frames of another size, regions of other frames, an unknown method, or more
                tokens than there are.
        """
        if job.regions is not None and len(job.regions) != job.frames.num_frames:
            raise InvalidRequestError(f"{job.frames.num_frames} frames came with {len(job.regions)} regions")
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
        videos = [self._pruning(job) for job in jobs]
        # Jobs that keep as many rows stand together, so that a pass finishes them in one go.
        order = sorted(range(len(jobs)), key=lambda index: videos[index].rows_per_frame)
        limit = frames_per_pass(self.tower, max_frames_per_forward)
        on_host: dict[int, KeptTokens] = {}
        for spans in plan_passes([job.frames.num_frames for job in jobs], order, limit):
            self._run_pass(jobs, videos, spans)
            for span in spans:
                if span.stop == jobs[span.job].frames.num_frames:
                    on_host[span.job] = videos[span.job].finish().to_host()
        self._wait_for_copies()
        return [self._tokens(job, on_host[index]) for index, job in enumerate(jobs)]

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
        pixels, limit = frames.frames_thwc_u8, frames_per_pass(self.tower, max_frames_per_forward)
        pieces = []
        for start in range(0, len(pixels), limit):
            scored = self._score([pixels[start : start + limit]])
            pieces.append(TowerOutput(self.tower.finish(scored), scored.cls_attention, scored.keys))
        return TowerOutput.join(pieces)

    def prune(self, job: EncodeJob, output: TowerOutput) -> VisualTokens:
        """One of the ways to prune a video whose tower output is at hand.

        Equals what :meth:`encode` returns, but for float rounding.

        Args:
            job: the video, and which of its tokens to keep.
            output: what :meth:`run_tower` made of its frames.

        Raises:
            InvalidRequestError: see :meth:`check`.
            CheckpointError: the tower's output is not finite.
        """
        self.check(job)
        video = self._pruning(job)
        video.add_output(0, job.frames.num_frames, None, output)
        kept = video.finish().to_host()
        self._wait_for_copies()
        return self._tokens(job, kept)

    def _pruning(self, job: EncodeJob) -> VideoPruning:
        frames = job.frames
        return VideoPruning(
            job.spec, self.grid, frames.pts_seconds, self.device, job.regions, views=frames.views_per_frame
        )

    def _run_pass(self, jobs: Sequence[EncodeJob], videos: Sequence[VideoPruning], spans: Sequence[Span]) -> None:
        """Score the frames of all spans, then finish what each video still needs of them."""
        scored = self._score([jobs[span.job].frames.frames_thwc_u8[span.start : span.stop] for span in spans])
        parts, begin = [], 0
        for span in spans:
            part = SpanPruning(videos[span.job], span, begin, scored.cls_attention[begin : begin + len(span)])
            parts.append(part)
            begin = part.end
        for rows_per_frame, run in groupby(parts, key=lambda part: part.rows_per_frame):
            self._finish_run(scored, list(run), whole=rows_per_frame is None)

    def _finish_run(self, scored: ScoredFrames, run: Sequence[SpanPruning], *, whole: bool) -> None:
        """Neighbouring spans of which as many rows are wanted, in one go."""
        first = run[0].begin
        frames = scored.of_frames(first, run[-1].end)
        rows = [part.rows for part in run if part.rows is not None]
        features = self.tower.finish(frames, None if whole else torch.cat(rows))
        output = TowerOutput(features, frames.cls_attention, frames.keys)
        for part in run:
            part.hand_over(output.of_frames(part.begin - first, part.end - first))

    def _score(self, runs: Sequence[npt.NDArray[np.uint8]]) -> ScoredFrames:
        # Concatenating copies, which frames shared with other processes need: torch takes no read-only arrays. Into
        # pinned memory where a GPU can fetch them from there by itself, while the next ones are made ready.
        shape = (sum(map(len, runs)), *runs[0].shape[1:])
        frames = torch.empty(shape, dtype=torch.uint8, pin_memory=self.device.type == "cuda")
        np.concatenate(runs, out=frames.numpy())
        return self._scorer(self.preprocessing.normalise(frames, self.device, self.dtype))

    def _wait_for_copies(self) -> None:
        """Copies from a GPU to pinned memory are only begun by ``to``."""
        if self.device.type == "cuda":
            torch.cuda.current_stream(self.device).synchronize()

    def _tokens(self, job: EncodeJob, kept: KeptTokens) -> VisualTokens:
        method, frames = get_method(job.spec.method), job.frames
        limited = job.regions is not None and not is_whole(job.regions, self.grid)
        return VisualTokens(
            features=self._finite(kept.features),
            indices=kept.selection.indices.to(torch.int32),
            scores=kept.selection.scores.to(torch.float32),
            counts=kept.selection.counts,
            grid=self.grid,
            pts_seconds=frames.pts_seconds,
            method=method.name,
            nested=method.nested,
            fingerprint=self.fingerprint,
            cls_features=None if kept.cls_features is None else self._finite(kept.cls_features),
            medium=job.medium,
            picture_size=(frames.info.height, frames.info.width) if frames.views_per_frame > 1 else None,
            views_per_picture=frames.views_per_frame,
            capacities=tuple(region.size for region in job.regions) if limited and job.regions is not None else None,
        )

    def _finite(self, features: Tensor) -> Tensor:
        if not bool(features.isfinite().all()):
            raise CheckpointError(
                f"the vision tower's features are not finite in {self.dtype}: load it in float32 or bfloat16, "
                "or check the checkpoint's weights"
            )
        return features.to(torch.float32)


def _check_limit(max_frames_per_forward: int) -> None:
    if max_frames_per_forward < 1:
        raise InvalidRequestError(f"max_frames_per_forward must be at least 1, got {max_frames_per_forward}")
