"""The compact token set of a video or a picture: what crosses from the encoder to the language model, and is cached.

Tokens are stored frame after frame and, inside a frame, **by score, best first** (ties: smaller patch
index first). For a nested method the best k of a larger set are then a prefix of each frame's run, so any
smaller budget is a slice::

    counts  = (3, 3)
    indices = [ 7 2 5 | 4 7 0 ]        select(2) -> counts (2, 2), indices [ 7 2 | 4 7 ]
                frame 0  frame 1       raster()  -> indices [ 2 7 | 4 7 ]   (what the LLM sees)

"Frame" means what the tower sees at once. Where a picture, or a frame of a video, is seen in several views
(:mod:`fastervlm_video.vision.layout`), each view is such a frame, and a picture's views follow each other.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fastervlm_video.config import Medium
from fastervlm_video.errors import InvalidRequestError

__all__ = ["VisualTokens", "cut_to_capacities"]


@dataclass(frozen=True, slots=True, eq=False)
class VisualTokens:
    """Kept tower features of one video or picture, before the projector.

    Attributes:
        features: floating [N, C], N = sum(counts); frame by frame, best score first. A method may have
            merged other patches into those that it kept.
        indices: int32 [N], raster index of each token's patch in its frame's grid.
        scores: float32 [N], the method's scores, non-increasing within a frame.
        counts: tokens kept in each of the T frames; some may be 0.
        grid: (rows, columns) of a frame's patch grid.
        pts_seconds: T presentation times.
        method: name of the pruning method.
        nested: whether a smaller budget is a prefix of a larger one.
        fingerprint: identity of the tower that made the features.
        cls_features: floating [T, C], each frame's [CLS] token, if it is kept.
        medium: what the tokens are of.
        picture_size: (height, width) in pixels of the pictures before they were resized; None if it plays no part.
        views_per_picture: V; T is a multiple of it.
        capacities: patches of each of the T frames that may be kept at all; None is all of them.

    Raises:
        InvalidRequestError: shapes, dtypes or ranges do not fit together.
    """

    features: Tensor
    indices: Tensor
    scores: Tensor
    counts: tuple[int, ...]
    grid: tuple[int, int]
    pts_seconds: tuple[float, ...]
    method: str
    nested: bool
    fingerprint: str
    cls_features: Tensor | None = None
    medium: Medium = Medium.VIDEO
    picture_size: tuple[int, int] | None = None
    views_per_picture: int = 1
    capacities: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        self._check_views()
        total, patches = sum(self.counts), self.patches_per_frame
        if len(self.pts_seconds) != len(self.counts):
            raise InvalidRequestError(f"{len(self.counts)} frames came with {len(self.pts_seconds)} timestamps")
        if self.features.ndim != 2 or not self.features.is_floating_point() or len(self.features) != total:
            raise InvalidRequestError(
                f"features must be floating [{total}, C], got {self.features.dtype} {list(self.features.shape)}"
            )
        for name, tensor, dtype in (("indices", self.indices, torch.int32), ("scores", self.scores, torch.float32)):
            if tensor.dtype != dtype or tensor.shape != (total,):
                raise InvalidRequestError(f"{name} must be {dtype} [{total}], got {tensor.dtype} {list(tensor.shape)}")
        if total and not all(0 <= int(extreme) < patches for extreme in self.indices.aminmax()):
            raise InvalidRequestError(f"patch indices must be in [0, {patches})")
        cls = self.cls_features
        if cls is not None and (cls.shape != (len(self.counts), self.width) or cls.dtype != self.features.dtype):
            raise InvalidRequestError(
                f"cls_features must be {self.features.dtype} [{len(self.counts)}, {self.width}], "
                f"got {cls.dtype} {list(cls.shape)}"
            )

    def _check_views(self) -> None:
        most = self.capacities or (self.patches_per_frame,) * len(self.counts)
        if not self.counts or len(most) != len(self.counts) or max(most) > self.patches_per_frame:
            raise InvalidRequestError(
                f"{len(self.counts)} frames of {self.patches_per_frame} patches came with the capacities {most}"
            )
        if any(not 0 <= count <= room for count, room in zip(self.counts, most, strict=True)):
            raise InvalidRequestError(f"counts must be in [0, {most}] per frame, got {self.counts}")
        if self.views_per_picture < 1 or len(self.counts) % self.views_per_picture:
            raise InvalidRequestError(f"{len(self.counts)} frames are not pictures of {self.views_per_picture} views")
        if self.views_per_picture > 1 and self.picture_size is None:
            raise InvalidRequestError("pictures of several views need a picture_size")

    @property
    def num_frames(self) -> int:
        """T."""
        return len(self.counts)

    @property
    def num_pictures(self) -> int:
        """Frames of the video, or 1 for a picture: T / V."""
        return self.num_frames // self.views_per_picture

    @property
    def width(self) -> int:
        """C, the tower's hidden size."""
        return int(self.features.shape[1])

    @property
    def patches_per_frame(self) -> int:
        """Patches in one frame before pruning."""
        return self.grid[0] * self.grid[1]

    @property
    def tokens_full(self) -> int:
        """Visual tokens of the unpruned video (with or without [CLS]), separators not counted."""
        patches = sum(self.capacities) if self.capacities else self.num_frames * self.patches_per_frame
        return patches + (self.num_frames if self.cls_features is not None else 0)

    @property
    def tokens_kept(self) -> int:
        """Visual tokens the language model will see, separators not counted."""
        return sum(self.counts) + (self.num_frames if self.cls_features is not None else 0)

    def budgets(self, tokens_per_frame: int) -> tuple[int, ...]:
        """Tokens of each frame at a budget: as many, or all there are."""
        return cut_to_capacities(tokens_per_frame, len(self.counts), self.capacities)

    def holds(self, tokens_per_frame: int) -> bool:
        """Whether every frame has as many tokens as the budget asks for."""
        return all(count >= wanted for count, wanted in zip(self.counts, self.budgets(tokens_per_frame), strict=True))

    def select(self, tokens_per_frame: int) -> "VisualTokens":
        """The same video at a smaller budget: each frame's best ``tokens_per_frame`` tokens.

        A method that is not nested may have spread the budget unevenly over the frames. Its tokens are
        returned as they are, if they are as many as the budget says.

        Raises:
            InvalidRequestError: fewer are held, or the method is not nested and the budget differs.
        """
        wanted = self.budgets(tokens_per_frame)
        if self.counts == wanted:
            return self
        if not self.nested:
            if sum(self.counts) == sum(wanted):
                return self
            raise InvalidRequestError(f"{self.method!r} is not nested: its tokens cannot be cut to a smaller budget")
        if not self.holds(tokens_per_frame):
            raise InvalidRequestError(f"{tokens_per_frame} tokens per frame asked for, {min(self.counts)} held")
        counts, budgets = torch.tensor(self.counts), torch.tensor(wanted)
        place = torch.arange(sum(self.counts)) - (counts.cumsum(0) - counts).repeat_interleave(counts)
        rows = (place < budgets.repeat_interleave(counts)).nonzero()[:, 0].to(self.features.device)
        return replace(
            self,
            features=self.features[rows],
            indices=self.indices[rows],
            scores=self.scores[rows],
            counts=wanted,
        )

    def raster_order(self) -> Tensor:
        """int64 [N]: the permutation that puts each frame's tokens into raster order."""
        frames = torch.repeat_interleave(
            torch.arange(self.num_frames, device=self.indices.device),
            torch.tensor(self.counts, device=self.indices.device),
        )
        return torch.argsort(frames * self.patches_per_frame + self.indices)

    def sequence(self) -> Tensor:
        """Floating [tokens_kept, C]: what the projector is given, in raster order, [CLS] first in its frame."""
        patches = self.features[self.raster_order()]
        if self.cls_features is None:
            return patches
        runs = torch.split(patches, list(self.counts))
        return torch.cat([part for cls, run in zip(self.cls_features, runs, strict=True) for part in (cls[None], run)])

    def __repr__(self) -> str:
        counts = f"{self.counts[0]} each" if len(set(self.counts)) == 1 else str(list(self.counts))
        return (
            f"VisualTokens({self.num_frames} frames, {counts} of {self.patches_per_frame}, width {self.width}, "
            f"{self.features.dtype}, {self.method}{', with [CLS]' if self.cls_features is not None else ''})"
        )


def cut_to_capacities(tokens_per_frame: int, num_frames: int, capacities: tuple[int, ...] | None) -> tuple[int, ...]:
    """What each of ``num_frames`` frames keeps at a budget: it, or all patches that the frame has to offer."""
    if capacities is None:
        return (tokens_per_frame,) * num_frames
    return tuple(min(tokens_per_frame, room) for room in capacities)
