"""How a picture becomes views, what of each view may be kept, and how what was kept stands in the prompt.

A *view* is what the tower sees at once: a frame, a picture, or a part of one. Most architectures make one view
of a picture (:class:`PlainLayout`). LLaVA-NeXT (arXiv 2310.03744, "anyres") makes several, whose tokens stand in
one of two orders (:class:`TiledLayout`)::

    reference                            Hugging Face
    base, tile 0, tile 1, …              base, then the tiles' rows as they lie in the picture, without
    each whole, one after the other      what is padding, a separator behind each row

What is kept of a view is chosen among its :class:`Region`: in the Hugging Face order, what is not padding.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from fastervlm_video.config import Tiling
from fastervlm_video.media.tiling import tile_grid, views_per_picture
from fastervlm_video.vision.tokens import VisualTokens

__all__ = ["PlainLayout", "Region", "TiledLayout", "ViewLayout", "VisualSequence", "is_whole"]


@dataclass(frozen=True, slots=True)
class Region:
    """A rectangle of patches in a view's grid; it may be empty.

    Attributes:
        top: first row.
        left: first column.
        rows: how many rows.
        columns: how many columns.
    """

    top: int
    left: int
    rows: int
    columns: int

    @property
    def size(self) -> int:
        """Patches in it."""
        return self.rows * self.columns

    def patches(self, grid_columns: int) -> Tensor:
        """int64 [size]: raster indices, in the grid of ``grid_columns`` columns, of the region's patches."""
        rows = torch.arange(self.top, self.top + self.rows)
        columns = torch.arange(self.left, self.left + self.columns)
        return (rows[:, None] * grid_columns + columns).flatten()


@dataclass(frozen=True, slots=True, eq=False)
class VisualSequence:
    """A token set as the language model is to see it.

    Attributes:
        features: floating [n, C], tower features in order.
        separators: places among the ``n + len(separators)`` visual tokens where the model's learnt separator stands,
            increasing.
        runs: visual tokens, separators included, of each picture.
    """

    features: Tensor
    separators: tuple[int, ...]
    runs: tuple[int, ...]

    def __len__(self) -> int:
        return sum(self.runs)


class ViewLayout(Protocol):
    """One architecture's way with pictures."""

    @property
    def allows_cls(self) -> bool:
        """Whether [CLS] tokens have a place in the sequence."""

    def identity(self) -> Mapping[str, object]:
        """What changes the choice of tokens, beside preprocessing and budget, as plain JSON values."""

    def regions(self, size: tuple[int, int]) -> tuple[Region, ...]:
        """What may be kept of each view of a picture of ``size`` (height, width)."""

    def count(self, size: tuple[int, int], tokens_per_view: int) -> int:
        """Visual tokens of a picture of ``size``, separators included, at a budget, without [CLS]."""

    def fewest(self, tokens_per_view: int) -> int:
        """The same for a picture of unknown size: at least so many."""

    def arrange(self, tokens: VisualTokens) -> VisualSequence:
        """Put tokens into the order of the prompt."""


@dataclass(frozen=True, slots=True)
class PlainLayout:
    """A picture is one view, and its kept patches stand in raster order, behind [CLS] if that is kept.

    Attributes:
        grid: (rows, columns) of a view.
    """

    grid: tuple[int, int]
    allows_cls: bool = True

    def identity(self) -> Mapping[str, object]:
        """Nothing to choose."""
        return {}

    def regions(self, size: tuple[int, int]) -> tuple[Region, ...]:  # noqa: ARG002 - the same for all
        """All of the view."""
        return (Region(0, 0, *self.grid),)

    def count(self, size: tuple[int, int], tokens_per_view: int) -> int:  # noqa: ARG002 - the same for all
        """The budget."""
        return tokens_per_view

    def fewest(self, tokens_per_view: int) -> int:
        """The budget."""
        return tokens_per_view

    def arrange(self, tokens: VisualTokens) -> VisualSequence:
        """Picture after picture."""
        cls = tokens.cls_features is not None
        return VisualSequence(tokens.sequence(), (), tuple(count + cls for count in tokens.counts))


@dataclass(frozen=True, slots=True)
class TiledLayout:
    """The whole picture, then tiles of it: LLaVA-NeXT's.

    Attributes:
        grid: (rows, columns) of a view.
        tiling: how views are cut.
        unpad: the Hugging Face order, see above; False is the reference's.
    """

    grid: tuple[int, int]
    tiling: Tiling
    unpad: bool = True
    allows_cls: bool = False

    def identity(self) -> Mapping[str, object]:
        """The tiling is the preprocessing's; what is padding is not kept."""
        return {"unpad": self.unpad}

    def regions(self, size: tuple[int, int]) -> tuple[Region, ...]:
        """The base view whole; of each tile, what is not padding, or all of it in the reference order."""
        rows, columns = self.grid
        whole = Region(0, 0, rows, columns)
        views = views_per_picture(size, self.tiling)
        if not self.unpad:
            return (whole,) * views
        picture, (_, across) = self._unpadded(size), tile_grid(size, self.tiling)
        tiles = (divmod(tile, across) for tile in range(views - 1))
        return (whole, *(_overlap(picture, down * rows, right * columns, self.grid) for down, right in tiles))

    def count(self, size: tuple[int, int], tokens_per_view: int) -> int:
        """The budget in every view that has so many patches, and a separator for each row of the unpadded tiles."""
        kept = sum(min(tokens_per_view, region.size) for region in self.regions(size))
        return kept + (self._unpadded(size).rows if self.unpad else 0)

    def fewest(self, tokens_per_view: int) -> int:
        """The base view's, and in the reference order those of the fewest tiles."""
        if self.unpad:
            return tokens_per_view
        tiles = min(height * width for height, width in self.tiling.resolutions) // self.tiling.tile_size**2
        return tokens_per_view * (1 + tiles)

    def arrange(self, tokens: VisualTokens) -> VisualSequence:
        """Picture after picture, each in the order of the layout."""
        views = tokens.views_per_picture
        if not self.unpad:
            per_picture = [sum(tokens.counts[at : at + views]) for at in range(0, tokens.num_frames, views)]
            return VisualSequence(tokens.sequence(), (), tuple(per_picture))
        assert tokens.picture_size is not None  # of every token set whose pictures have several views
        window, places = self._unpadded(tokens.picture_size), self._places(tokens)
        order, separators, runs, begin = [], [], [], 0
        for first in range(0, tokens.num_frames, views):
            base = sum(tokens.counts[:first]), sum(tokens.counts[: first + 1])
            end = sum(tokens.counts[: first + views])
            in_base = torch.argsort(places[base[0] : base[1]]) + base[0]
            in_tiles = torch.argsort(places[base[1] : end]) + base[1]
            order += [in_base, in_tiles]
            rows = places[base[1] : end] // self._width(tokens.picture_size) - window.top
            per_row = torch.bincount(rows, minlength=window.rows)
            ends = (len(in_base) + per_row.cumsum(0) + torch.arange(window.rows)).tolist()
            separators += [begin + end for end in ends]
            runs.append(len(in_base) + len(in_tiles) + window.rows)
            begin += runs[-1]
        return VisualSequence(tokens.features[torch.cat(order)], tuple(separators), tuple(runs))

    def _width(self, size: tuple[int, int]) -> int:
        return tile_grid(size, self.tiling)[1] * self.grid[1]

    def _places(self, tokens: VisualTokens) -> Tensor:
        """int64 [N]: each token's raster index in its own view, or in all tiles of its picture put together."""
        assert tokens.picture_size is not None
        rows, columns = self.grid
        _, across = tile_grid(tokens.picture_size, self.tiling)
        view = torch.arange(tokens.num_frames).repeat_interleave(torch.tensor(tokens.counts)) % tokens.views_per_picture
        index = tokens.indices.long().cpu()
        row, column = index // columns, index % columns
        tile = view - 1
        in_tiles = (tile // across * rows + row) * (across * columns) + tile % across * columns + column
        return torch.where(view == 0, index, in_tiles)

    def _unpadded(self, size: tuple[int, int]) -> Region:
        """The picture in the patches of all tiles together; as ``unpad_image`` of Hugging Face rounds it."""
        down, across = tile_grid(size, self.tiling)
        rows, columns = down * self.grid[0], across * self.grid[1]
        height, width = size
        if width / height > columns / rows:
            padding = (rows - int(round(height * (columns / width), 7))) // 2
            return Region(padding, 0, max(0, rows - 2 * padding), columns)
        padding = (columns - int(round(width * (rows / height), 7))) // 2
        return Region(0, padding, rows, max(0, columns - 2 * padding))


def _overlap(window: Region, top: int, left: int, grid: tuple[int, int]) -> Region:
    """What of a tile, whose first patch is (``top``, ``left``), lies in the window; counted from the tile's corner."""
    first_row, last_row = max(window.top, top), min(window.top + window.rows, top + grid[0])
    first_column, last_column = max(window.left, left), min(window.left + window.columns, left + grid[1])
    if first_row >= last_row or first_column >= last_column:
        return Region(0, 0, 0, 0)
    return Region(first_row - top, first_column - left, last_row - first_row, last_column - first_column)


def is_whole(regions: Sequence[Region], grid: tuple[int, int]) -> bool:
    """Whether every view may be kept whole."""
    return all((region.rows, region.columns) == grid for region in regions)
