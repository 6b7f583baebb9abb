"""Pictures that show what the language model gets to see: kept patches lit, the others dimmed."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from fastervlm_video.config import Medium
from fastervlm_video.errors import InvalidRequestError
from fastervlm_video.media import FrameBatch
from fastervlm_video.vision.tokens import VisualTokens

__all__ = ["draw_kept_patches"]

_CELL_PX = 272
_GAP_PX = 14
_HEADER_PX = 58
_CAPTION_PX = 26
_MAX_COLUMNS = 4
_MAX_VIEW_COLUMNS = 6
_DIMMED = 0.4
_BACKGROUND = (18, 20, 26)
_TEXT = (232, 234, 240)
_FAINT = (150, 156, 170)
_OUTLINE = (255, 196, 61)


@dataclass(frozen=True, slots=True)
class _Grid:
    """Where frames are drawn: ``together`` of them begin a new row, ``columns`` stand in one."""

    frames: int
    together: int
    columns: int

    @classmethod
    def of(cls, tokens: VisualTokens) -> Self:
        """Views of one picture together, else as many frames as fit into a row."""
        views, frames = tokens.views_per_picture, tokens.num_frames
        if views == 1:
            return cls(frames, frames, min(_MAX_COLUMNS, frames))
        return cls(frames, views, min(_MAX_VIEW_COLUMNS, views))

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels of the whole."""
        rows = self.frames // self.together * self._rows
        height = _HEADER_PX + rows * (_CELL_PX + _CAPTION_PX + _GAP_PX) + _GAP_PX
        return self.columns * (_CELL_PX + _GAP_PX) + _GAP_PX, height

    def place(self, index: int) -> tuple[int, int]:
        """(left, top) in pixels of a frame."""
        picture, view = divmod(index, self.together)
        row, column = picture * self._rows + view // self.columns, view % self.columns
        return _GAP_PX + column * (_CELL_PX + _GAP_PX), _HEADER_PX + row * (_CELL_PX + _CAPTION_PX + _GAP_PX)

    @property
    def _rows(self) -> int:
        return -(-self.together // self.columns)


def _kept_mask(indices: Sequence[int], grid: tuple[int, int]) -> npt.NDArray[np.bool_]:
    mask = np.zeros(grid[0] * grid[1], bool)
    mask[list(indices)] = True
    return mask.reshape(grid)


def _lit_frame(frame_hwc_u8: npt.NDArray[np.uint8], mask: npt.NDArray[np.bool_]) -> Image.Image:
    """One frame, enlarged, unkept patches darkened and drained of colour, kept regions outlined."""
    image = Image.fromarray(frame_hwc_u8).resize((_CELL_PX, _CELL_PX), Image.Resampling.BICUBIC)
    lit = np.asarray(image, np.float32)
    gray = lit.mean(axis=2, keepdims=True)
    dim = (gray * 0.7 + lit * 0.3) * _DIMMED
    rows, columns = mask.shape
    row_edges = [round(i * _CELL_PX / rows) for i in range(rows + 1)]
    column_edges = [round(i * _CELL_PX / columns) for i in range(columns + 1)]
    big = np.repeat(np.repeat(mask, np.diff(row_edges), axis=0), np.diff(column_edges), axis=1)[..., None]
    result = Image.fromarray(np.where(big, lit, dim).astype(np.uint8))
    draw = ImageDraw.Draw(result)
    for row, column in zip(*np.nonzero(mask), strict=True):
        top, bottom = row_edges[row], row_edges[row + 1] - 1
        left, right = column_edges[column], column_edges[column + 1] - 1
        sides = (
            (row == 0 or not mask[row - 1, column], (left, top, right, top)),
            (row == rows - 1 or not mask[row + 1, column], (left, bottom, right, bottom)),
            (column == 0 or not mask[row, column - 1], (left, top, left, bottom)),
            (column == columns - 1 or not mask[row, column + 1], (right, top, right, bottom)),
        )
        for is_border, line in sides:
            if is_border:
                draw.line(line, fill=_OUTLINE, width=1)
    return result


def draw_kept_patches(frames: FrameBatch, tokens: VisualTokens, *, title: str = "") -> Image.Image:
    """Draw every frame, or view of a picture, with its kept patches lit and outlined, and the rest dimmed.

    Args:
        frames: the frames as the vision tower saw them (resized and cropped), T of them.
        tokens: the token set made of exactly these frames.
        title: first line above the frames.

    Returns:
        An RGB image, four frames a row; or, where a picture is seen in several views, a picture a row.

    Raises:
        InvalidRequestError: the two do not have the same number of frames.
    """
    if frames.num_frames != tokens.num_frames:
        raise InvalidRequestError(f"{frames.num_frames} frames cannot show the tokens of {tokens.num_frames}")
    grid = _Grid.of(tokens)
    canvas = Image.new("RGB", grid.size, _BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    large, small = ImageFont.load_default(18), ImageFont.load_default(14)
    capacities = tokens.capacities or (tokens.patches_per_frame,) * tokens.num_frames
    kept = f"{sum(tokens.counts)} of {sum(capacities)} patches kept by {tokens.method}"
    draw.text((_GAP_PX, 10), title or "What the language model sees", fill=_TEXT, font=large)
    draw.text((_GAP_PX, 34), kept, fill=_FAINT, font=small)
    start = 0
    for index, (count, most) in enumerate(zip(tokens.counts, capacities, strict=True)):
        mask = _kept_mask(tokens.indices[start : start + count].tolist(), tokens.grid)
        start += count
        left, top = grid.place(index)
        canvas.paste(_lit_frame(frames.frames_thwc_u8[index], mask), (left, top))
        caption = f"{_shown(frames, tokens, index)}{count} of {most} patches"
        draw.text((left, top + _CELL_PX + 5), caption, fill=_FAINT, font=small)
    return canvas


def _shown(frames: FrameBatch, tokens: VisualTokens, index: int) -> str:
    """When a frame was shown, and which view of it this is."""
    moment = "" if tokens.medium is Medium.IMAGE else f"{frames.pts_seconds[index]:.2f} s   "
    if tokens.views_per_picture == 1:
        return moment
    view = index % tokens.views_per_picture
    return f"{moment}{'whole' if view == 0 else f'tile {view}'}   "
