"""What a pruning method is given, what it gives back, and what it must declare about itself.

Methods are text-agnostic: none may look at the question, which is what lets every question share one result.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor

from fastervlm_video.errors import InvalidRequestError

__all__ = ["Need", "PruneInputs", "PruneMethod", "Selection"]

_CPU = torch.device("cpu")


class Need(StrEnum):
    """A tensor that a method reads; the encoder provides what is declared and nothing else."""

    CLS_ATTENTION = "cls_attention"
    FEATURES = "features"
    KEYS = "keys"


@dataclass(frozen=True, slots=True, eq=False)
class PruneInputs:
    """One video, as its pruning method sees it.

    Attributes:
        tokens_per_frame: the budget, in [1, patches per frame].
        grid: (rows, columns) of a frame's patch grid; N is their product.
        pts_seconds: T presentation times.
        device: where the tensors are, and where the indices are wanted.
        seed: for methods that draw lots.
        cls_attention: float32 [T, N], see :func:`~fastervlm_video.prune.scores.cls_attention_scores`.
        features: floating [T, N, C], tower features of the patches, without [CLS].
        keys: floating [T, heads, N, D], the patches' attention keys in the layer whose output is used.

    The last three are None unless the method needs them.

    Raises:
        InvalidRequestError: the budget does not fit the grid.
    """

    tokens_per_frame: int
    grid: tuple[int, int]
    pts_seconds: tuple[float, ...]
    device: torch.device = _CPU
    seed: int = 0
    cls_attention: Tensor | None = None
    features: Tensor | None = None
    keys: Tensor | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.tokens_per_frame <= self.patches_per_frame:
            raise InvalidRequestError(
                f"cannot keep {self.tokens_per_frame} tokens of a frame of {self.patches_per_frame} patches"
            )

    @property
    def num_frames(self) -> int:
        """T."""
        return len(self.pts_seconds)

    @property
    def patches_per_frame(self) -> int:
        """N."""
        return self.grid[0] * self.grid[1]


@dataclass(frozen=True, slots=True, eq=False)
class Selection:
    """The chosen patches, laid out as :class:`~fastervlm_video.vision.tokens.VisualTokens` stores them.

    Attributes:
        indices: int64 [sum(counts)], raster indices, frame after frame, best first within a frame.
        scores: float32 [sum(counts)], non-increasing within a frame; equal ones by index.
        counts: how many were chosen in each of the T frames; some may be 0.
        features: floating [sum(counts), C], of methods that merge patches: what stands for each chosen patch.
            None is the patches' own features.
    """

    indices: Tensor
    scores: Tensor
    counts: tuple[int, ...]
    features: Tensor | None = None

    @classmethod
    def equal_counts(cls, indices: Tensor, scores: Tensor, features: Tensor | None = None) -> "Selection":
        """From ``indices`` and ``scores`` [T, k] and ``features`` [T, k, C]: the same count in every frame."""
        frames, count = indices.shape
        merged = None if features is None else features.flatten(0, 1)
        return cls(indices.flatten(), scores.flatten(), (count,) * frames, merged)

    def of_frames(self, start: int, stop: int) -> "Selection":
        """What was chosen in frames ``start`` to ``stop`` (exclusive); views."""
        rows = slice(sum(self.counts[:start]), sum(self.counts[:stop]))
        features = None if self.features is None else self.features[rows]
        return Selection(self.indices[rows], self.scores[rows], self.counts[start:stop], features)


@dataclass(frozen=True, slots=True)
class PruneMethod:
    """A way to choose visual tokens, and the promises the rest of the system builds on.

    Attributes:
        name: what requests call it.
        source: the paper or idea it is from.
        select: the choice itself, a pure function.
        needs: the tensors it reads.
        nested: the tokens for a smaller budget are a prefix, frame by frame, of those for a larger one, so
            that a cached entry can be sliced. Needs ``fixed_count``.
        fixed_count: every frame gets exactly the budget.
        fixed_total: the video gets exactly T times the budget, however spread over its frames, so prompt
            lengths are known before encoding. Follows from ``fixed_count``.
        seeded: the result depends on the seed.
        framewise: what is chosen in a frame, features included, follows from that frame's tensors alone, not from
            the other frames, its place among them, its time or the seed. So a long video may be pruned piece by piece,
            and views of one picture may be shown as frames. Without it, each view is shown as a video of its own.

    Raises:
        ValueError: the promises contradict each other.
    """

    name: str
    source: str
    select: Callable[[PruneInputs], Selection]
    needs: frozenset[Need]
    nested: bool
    fixed_count: bool
    fixed_total: bool
    seeded: bool
    framewise: bool = False

    def __post_init__(self) -> None:
        if self.fixed_count and not self.fixed_total:
            raise ValueError(f"{self.name!r} has a fixed count per frame, and so a fixed total")
        if self.nested and not self.fixed_count:
            raise ValueError(f"{self.name!r} cannot be nested: its cached entries are cut to one count for all frames")
        if self.framewise and self.seeded:
            raise ValueError(f"{self.name!r} cannot be framewise: a seed is drawn from frame by frame")
