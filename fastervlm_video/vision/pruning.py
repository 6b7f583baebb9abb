"""One video on its way through the tower: what is chosen when, and what is held until the last of its frames is there.

A method is asked as early as it can answer::

    needs nothing                           ─▶ before the tower runs, for the whole video
    needs [CLS] attention only, and is      ─▶ in each pass, before the needed layer's output is computed, which is
      framewise or has all frames there        then done for the chosen rows alone
    framewise                               ─▶ in each pass, of whose features only the chosen ones are held
    any other                               ─▶ after the last pass; until then all that it needs is held

Where frames are views of which only a region may be kept, the method is asked about frames whose regions are of one
shape together, as if the regions were all there is (:mod:`fastervlm_video.vision.regions`). Where a picture has several
views, a method that is not framewise is asked about each view apart, over all pictures.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastervlm_video.config import PruneSpec
from fastervlm_video.prune import Need, PruneInputs, Selection, check_selection, get_method
from fastervlm_video.vision.layout import Region, is_whole
from fastervlm_video.vision.passes import Span
from fastervlm_video.vision.regions import select_in_regions
from fastervlm_video.vision.tower import TowerOutput

__all__ = ["KeptTokens", "SpanPruning", "VideoPruning"]


@dataclass(frozen=True, slots=True, eq=False)
class KeptTokens:
    """What is left of some frames of a video, on the tower's device.

    Attributes:
        selection: the chosen patches.
        features: floating [sum(counts), C], what stands for each of them.
        cls_features: floating [T, C], if [CLS] is kept.
    """

    selection: Selection
    features: Tensor
    cls_features: Tensor | None

    @classmethod
    def join(cls, pieces: "list[KeptTokens]") -> "KeptTokens":
        """Frames after frames. Always copies, so that nothing larger is kept alive by a view."""
        selections = [piece.selection for piece in pieces]
        selection = Selection(
            torch.cat([each.indices for each in selections]),
            torch.cat([each.scores for each in selections]),
            tuple(count for each in selections for count in each.counts),
        )
        cls_features = [piece.cls_features for piece in pieces if piece.cls_features is not None]
        return cls(
            selection,
            torch.cat([piece.features for piece in pieces]),
            torch.cat(cls_features) if cls_features else None,
        )

    def to_host(self) -> "KeptTokens":
        """The same on the CPU. From a GPU the copies are begun, into pinned memory, and not waited for."""
        chosen, cls_features = self.selection, self.cls_features
        return KeptTokens(
            Selection(_begin_copy(chosen.indices), _begin_copy(chosen.scores), chosen.counts),
            _begin_copy(self.features),
            None if cls_features is None else _begin_copy(cls_features),
        )


class VideoPruning:
    """Prunes one video, of which :meth:`choose` and then one of the two ``add`` see every span of frames in turn.

    Args:
        spec: which tokens to keep.
        grid: (rows, columns) of a frame's patch grid.
        pts_seconds: T presentation times.
        device: of the tower.
        regions: what may be kept of each of the T frames; None is all.
        views: how many neighbouring frames are views of one picture.

    Raises:
        InvalidRequestError: the method is unknown, or the budget does not fit the grid.
    """

    def __init__(
        self,
        spec: PruneSpec,
        grid: tuple[int, int],
        pts_seconds: tuple[float, ...],
        device: torch.device,
        regions: Sequence[Region] | None = None,
        *,
        views: int = 1,
    ) -> None:
        self._spec, self._grid, self._pts_seconds, self._device = spec, grid, pts_seconds, device
        self._regions = None if regions is None or is_whole(regions, grid) else tuple(regions)
        self._method = get_method(spec.method)
        self._views_apart = 1 if self._method.framewise else views
        self._patches = grid[0] * grid[1]
        self._budget = spec.tokens_per_frame(self._patches)
        self._foreseen = None if self._method.needs else self._select(0, len(pts_seconds), {})
        self._kept: list[KeptTokens] = []
        self._held: list[dict[Need, Tensor]] = []

    @property
    def rows_per_frame(self) -> int:
        """Rows of the needed layer's output that are computed, as far as can be told beforehand."""
        early = self._method.needs <= {Need.CLS_ATTENTION} and self._budget < self._patches and self._regions is None
        return self._budget + self._spec.keep_cls if early else 1 + self._patches

    def choose(self, start: int, stop: int, cls_attention: Tensor) -> Selection | None:
        """What to keep in frames ``start`` to ``stop``, or None if their features are needed to say so.

        Args:
            start: first frame.
            stop: last frame, exclusive.
            cls_attention: float32 [stop - start, N].
        """
        if self._foreseen is not None:
            return self._foreseen.of_frames(start, stop)
        if self._method.needs <= {Need.CLS_ATTENTION} and self._may_choose(start, stop):
            return self._select(start, stop, {Need.CLS_ATTENTION: cls_attention})
        return None

    def rows(self, selection: Selection | None) -> Tensor | None:
        """int64 [T, R]: the rows of the needed layer's output that the choice asks for; None is all of them."""
        if selection is None or set(selection.counts) != {self._budget} or self._budget == self._patches:
            return None
        rows = 1 + selection.indices.view(len(selection.counts), self._budget)
        return torch.cat([torch.zeros_like(rows[:, :1]), rows], dim=1) if self._spec.keep_cls else rows

    def add_rows(self, selection: Selection, features: Tensor) -> None:
        """Take the rows that were asked for, floating [T, R, C]."""
        keep_cls = self._spec.keep_cls
        cls_features = features[:, 0] if keep_cls else None
        self._kept.append(KeptTokens(selection, features[:, keep_cls:].flatten(0, 1), cls_features))

    def add_output(self, start: int, stop: int, selection: Selection | None, output: TowerOutput) -> None:
        """Take the whole output of frames ``start`` to ``stop``, and what was chosen of them, if anything was yet."""
        tensors = {Need.FEATURES: output.features, Need.CLS_ATTENTION: output.cls_attention, Need.KEYS: output.keys}
        if selection is None and not self._may_choose(start, stop):
            self._held.append({need: tensors[need] for need in self._method.needs | {Need.FEATURES}})
            return
        self._kept.append(self._take(selection or self._select(start, stop, tensors), output.features))

    def finish(self) -> KeptTokens:
        """The pruned video, after its last frame."""
        if self._held:
            whole = {need: torch.cat([tensors[need] for tensors in self._held]) for need in self._held[0]}
            self._held.clear()
            selection = self._select(0, len(self._pts_seconds), whole)
            self._kept.append(self._take(selection, whole[Need.FEATURES]))
        return KeptTokens.join(self._kept)

    def _may_choose(self, start: int, stop: int) -> bool:
        return self._method.framewise or stop - start == len(self._pts_seconds)

    def _select(self, start: int, stop: int, tensors: Mapping[Need, Tensor]) -> Selection:
        """Ask the method, which sees what it declared that it needs, without [CLS]."""
        given = {need: tensors[need] for need in self._method.needs}
        inputs = PruneInputs(
            tokens_per_frame=self._budget,
            grid=self._grid,
            pts_seconds=self._pts_seconds[start:stop],
            device=self._device,
            seed=self._spec.seed,
            cls_attention=given.get(Need.CLS_ATTENTION),
            features=given[Need.FEATURES][:, 1:] if Need.FEATURES in given else None,
            keys=given[Need.KEYS][:, :, 1:] if Need.KEYS in given else None,
        )
        if self._regions is None and self._views_apart == 1:
            return self._ask(inputs)
        regions = self._regions or (Region(0, 0, *self._grid),) * len(self._pts_seconds)
        return select_in_regions(self._ask, inputs, regions[start:stop], self._views_apart)

    def _ask(self, inputs: PruneInputs) -> Selection:
        selection = self._method.select(inputs)
        check_selection(self._method, inputs, selection)
        return selection

    def _take(self, selection: Selection, features: Tensor) -> KeptTokens:
        """The chosen rows, and [CLS], of features [T, 1+N, C]; copies, so that the rest may go."""
        chosen = selection.features
        if chosen is None:
            counts = torch.tensor(selection.counts, device=features.device)
            frames = torch.arange(len(counts), device=features.device).repeat_interleave(counts)
            chosen = features[frames, 1 + selection.indices]
        return KeptTokens(selection, chosen, features[:, 0].clone() if self._spec.keep_cls else None)


class SpanPruning:
    """A span in its pass, and what its video wants of it.

    Attributes:
        begin: its first frame's place in the pass.
        end: its last frame's, exclusive.
        rows: int64 [T, R], the rows of the needed layer's output that are wanted; None is all of them.

    Args:
        video: whose frames they are.
        span: which of them.
        begin: see above.
        cls_attention: float32 [T, N], theirs.
    """

    def __init__(self, video: VideoPruning, span: Span, begin: int, cls_attention: Tensor) -> None:
        self.begin, self.end = begin, begin + len(span)
        self._video, self._span = video, span
        self._selection = video.choose(span.start, span.stop, cls_attention)
        self.rows = video.rows(self._selection)

    @property
    def rows_per_frame(self) -> int | None:
        """R."""
        return None if self.rows is None else self.rows.shape[1]

    def hand_over(self, output: TowerOutput) -> None:
        """Give the video the needed layer's output; of its features, only the rows that are wanted."""
        if self.rows is None or self._selection is None:
            self._video.add_output(self._span.start, self._span.stop, self._selection, output)
        else:
            self._video.add_rows(self._selection, output.features)


def _begin_copy(tensor: Tensor) -> Tensor:
    return tensor.to("cpu", non_blocking=True)
