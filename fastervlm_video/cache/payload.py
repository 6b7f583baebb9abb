"""The arrays of an entry: tensors to bytes and back."""

import math

import torch
from torch import Tensor

from fastervlm_video.cache.header import EntryHeader, aligned, index_dtype
from fastervlm_video.cache.storage import Storage, are_harmless, from_int8, to_int8
from fastervlm_video.errors import TokenFormatError
from fastervlm_video.vision.tokens import VisualTokens

__all__ = ["Payload", "payload_parts"]


def payload_parts(tokens: VisualTokens, dtype: Storage) -> list[memoryview | bytes]:
    """The arrays' bytes in the order stored, each followed by its padding; nothing is copied that has the right dtype.

    Raises:
        TokenFormatError: a feature is not finite, or not any more as it would be restored; or a score is NaN.
    """
    features, scales = _storable(tokens.features, dtype, "features")
    cls, cls_scales = _storable(tokens.cls_features, dtype, "[CLS] features")
    if torch.isnan(tokens.scores).any():
        raise TokenFormatError("scores hold NaN: tokens cannot be ordered by them")
    indices = tokens.indices.to(index_dtype(tokens.patches_per_frame))
    arrays = [features, cls, tokens.scores, indices, torch.cat([scales, cls_scales])]
    return [part for array in arrays for part in _padded(array)]


class Payload:
    """The arrays of an entry, in a buffer that they may keep.

    Args:
        header: what the entry says of them.
        buffer: writable.
        start: where in it they begin.
    """

    def __init__(self, header: EntryHeader, buffer: bytearray, start: int) -> None:
        self._header, self._buffer = header, buffer
        self._starts = [start]
        for size in header.section_sizes():
            self._starts.append(self._starts[-1] + aligned(size))

    def features(self) -> Tensor:
        """Patches, restored; floating [N, C]."""
        return self._rows("features", 0, 0, self._header.num_tokens)

    def cls_features(self) -> Tensor | None:
        """[CLS] tokens, restored; floating [T, C]."""
        if not self._header.has_cls:
            return None
        return self._rows("[CLS] features", 1, self._header.num_tokens, self._header.num_rows)

    def scores(self) -> Tensor:
        """float32 [N]."""
        return self._array(2, torch.float32, (self._header.num_tokens,))

    def indices(self) -> Tensor:
        """int32 [N]."""
        stored = index_dtype(self._header.grid[0] * self._header.grid[1])
        return self._array(3, stored, (self._header.num_tokens,)).to(torch.int32)

    def _rows(self, name: str, section: int, first: int, last: int) -> Tensor:
        dtype, shape = self._header.dtype, (last - first, self._header.width)
        values = self._array(section, dtype.written, shape)
        if not dtype.has_scales:
            _require_finite(values, name)
            return values
        scales = self._array(4, torch.float32, (self._header.num_rows,))[first:last]
        restored = from_int8(values, scales)
        if not are_harmless(scales):
            _require_finite(restored, name)
        return restored

    def _array(self, section: int, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
        count = torch.Size(shape).numel()
        if count == 0:  # frombuffer refuses to read nothing
            return torch.empty(shape, dtype=dtype)
        return torch.frombuffer(self._buffer, dtype=dtype, count=count, offset=self._starts[section]).view(shape)


def _storable(values: Tensor | None, dtype: Storage, name: str) -> tuple[Tensor, Tensor]:
    """Numbers as they are written, and a scale for each row, if they have scales."""
    if values is None:
        values = torch.empty(0, 1)
    restored = values.detach().to("cpu", dtype.restored)
    _require_finite(restored, name)
    if dtype.has_scales:
        return to_int8(values.detach().cpu())
    return restored, torch.empty(0)


def _require_finite(values: Tensor, name: str) -> None:
    if values.numel() == 0:
        return
    # The extremes of values that hold a NaN are NaN; far cheaper than isfinite() of all of them.
    if not all(math.isfinite(extreme) for extreme in values.aminmax()):
        count = int((~torch.isfinite(values)).sum())
        raise TokenFormatError(f"{count} of {values.numel()} numbers in {name} are not finite as {values.dtype}")


def _padded(array: Tensor) -> tuple[memoryview, bytes]:
    """The array's bytes, not copied, and the zeros that follow them."""
    raw = array.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data
    return raw, bytes(aligned(len(raw)) - len(raw))
