"""What an entry says about itself: the JSON header of the token format, checked field by field."""

import json
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch

from fastervlm_video.cache.storage import Storage
from fastervlm_video.config import Medium
from fastervlm_video.errors import InvalidRequestError, TokenFormatError
from fastervlm_video.vision.tokens import cut_to_capacities

__all__ = ["FORMAT_VERSION", "EntryHeader", "JsonScalar", "aligned", "index_dtype", "parse_header"]

FORMAT_VERSION = 2
ALIGNMENT_BYTES = 64
MAX_HEADER_BYTES = 1024**2

JsonScalar = str | int | float | bool | None

_STORAGES = frozenset(Storage)
_MEDIA = frozenset(Medium)
_MAX_UINT16_PATCHES = 2**16


def index_dtype(patches_per_frame: int) -> torch.dtype:
    """The narrowest stored dtype that holds every raster index of a frame."""
    return torch.uint16 if patches_per_frame <= _MAX_UINT16_PATCHES else torch.int32


def aligned(size: int) -> int:
    """``size`` bytes rounded up to the next array boundary."""
    return -(-size // ALIGNMENT_BYTES) * ALIGNMENT_BYTES


@dataclass(frozen=True, slots=True)
class EntryHeader:
    """Everything about a stored entry but its arrays.

    Attributes:
        counts: tokens stored for each of the T frames.
        grid: (rows, columns) of a frame's patch grid.
        width: C, numbers per token.
        method: name of the pruning method.
        nested: whether a smaller budget is a prefix of this entry.
        fingerprint: identity of the tower that made the features.
        dtype: how features are stored.
        pts_seconds: T presentation times.
        has_cls: whether each frame's [CLS] token is stored too.
        medium: what the tokens are of.
        picture_size: (height, width) in pixels of the pictures before they were resized, if it plays a part.
        views_per_picture: how many frames make up a picture.
        capacities: patches of each frame that may be kept at all; None is all of them.
        extra: what the writer added.
        format_version: of the bytes.
        header_size: bytes before the payload, prefix included.
        payload_size: bytes of the arrays, padding included.
        payload_crc32: their checksum.
    """

    counts: tuple[int, ...]
    grid: tuple[int, int]
    width: int
    method: str
    nested: bool
    fingerprint: str
    dtype: Storage
    pts_seconds: tuple[float, ...]
    has_cls: bool
    medium: Medium
    picture_size: tuple[int, int] | None
    views_per_picture: int
    capacities: tuple[int, ...] | None
    extra: Mapping[str, JsonScalar]
    format_version: int
    header_size: int
    payload_size: int
    payload_crc32: int

    @property
    def total_size(self) -> int:
        """Bytes of the whole entry."""
        return self.header_size + self.payload_size

    @property
    def num_tokens(self) -> int:
        """N, patches stored over all frames, [CLS] not counted."""
        return sum(self.counts)

    def holds(self, tokens_per_frame: int | None) -> bool:
        """Whether a request for this budget can be served from the entry.

        For a method that is not nested the budget is part of the key, so whatever is stored under the
        key is what was asked for. ``None`` asks for the entry as it is.
        """
        if not self.nested or tokens_per_frame is None:
            return True
        wanted = cut_to_capacities(tokens_per_frame, len(self.counts), self.capacities)
        return all(count >= least for count, least in zip(self.counts, wanted, strict=True))

    @property
    def num_rows(self) -> int:
        """Feature rows stored, [CLS] included."""
        return self.num_tokens + (len(self.counts) if self.has_cls else 0)

    def section_sizes(self) -> tuple[int, int, int, int, int]:
        """Unpadded bytes of features, [CLS] features, scores, indices and scales, in the order stored."""
        row = self.width * self.dtype.written.itemsize
        return (
            self.num_tokens * row,
            (self.num_rows - self.num_tokens) * row,
            self.num_tokens * torch.float32.itemsize,
            self.num_tokens * index_dtype(self.grid[0] * self.grid[1]).itemsize,
            self.num_rows * torch.float32.itemsize if self.dtype.has_scales else 0,
        )

    def to_json(self) -> bytes:
        """The JSON header, not yet padded.

        Raises:
            InvalidRequestError: a number is not finite, or ``extra`` holds more than JSON scalars.
        """
        if not _is_scalar_map(self.extra):
            raise InvalidRequestError(f"extra must map strings to JSON scalars, got {_short(self.extra)}")
        fields = {
            "byteorder": sys.byteorder,
            "capacities": self.capacities,
            "cls": self.has_cls,
            "counts": self.counts,
            "dtype": self.dtype.value,
            "extra": dict(self.extra),
            "fingerprint": self.fingerprint,
            "grid": self.grid,
            "medium": self.medium.value,
            "method": self.method,
            "nested": self.nested,
            "picture_size": self.picture_size,
            "pts_seconds": self.pts_seconds,
            "views": self.views_per_picture,
            "width": self.width,
        }
        try:
            text = json.dumps(fields, separators=(",", ":"), allow_nan=False).encode()
        except ValueError as error:
            raise InvalidRequestError(f"timestamps and extra values must be finite: {error}") from error
        if len(text) > MAX_HEADER_BYTES - ALIGNMENT_BYTES:  # room for the padding
            raise InvalidRequestError(f"a header of {len(text)} bytes is too long; put less into extra")
        return text


def parse_header(text: bytes, *, header_size: int, payload_size: int, payload_crc32: int) -> EntryHeader:
    """Read a JSON header and check every field, and that they add up to ``payload_size``.

    Args:
        text: the JSON, padding included.
        header_size: bytes before the payload, as found.
        payload_size: bytes of the payload, as declared.
        payload_crc32: checksum of the payload, as declared.

    Raises:
        TokenFormatError: a field is missing, unknown, of the wrong kind or impossible.
    """
    fields = _load(text)
    if fields.keys() != _CHECKS.keys():
        raise TokenFormatError(f"the token header has the fields {sorted(fields)}, not {sorted(_CHECKS)}")
    for name, is_valid in _CHECKS.items():
        if not is_valid(fields[name]):
            raise TokenFormatError(f"the token header's {name} cannot be {_short(fields[name])}")
    counts, patches = tuple(fields["counts"]), fields["grid"][0] * fields["grid"][1]
    if max(counts) > patches or len(fields["pts_seconds"]) != len(counts):
        raise TokenFormatError(
            f"the token header contradicts itself: up to {max(counts)} of {patches} patches in each of "
            f"{len(counts)} frames at {len(fields['pts_seconds'])} times"
        )
    capacities, picture_size = fields["capacities"], fields["picture_size"]
    header = EntryHeader(
        counts=counts,
        grid=(fields["grid"][0], fields["grid"][1]),
        width=fields["width"],
        method=fields["method"],
        nested=fields["nested"],
        fingerprint=fields["fingerprint"],
        dtype=Storage(fields["dtype"]),
        pts_seconds=tuple(map(float, fields["pts_seconds"])),
        has_cls=fields["cls"],
        medium=Medium(fields["medium"]),
        picture_size=None if picture_size is None else (picture_size[0], picture_size[1]),
        views_per_picture=fields["views"],
        capacities=None if capacities is None else tuple(capacities),
        extra=MappingProxyType(fields["extra"]),
        format_version=FORMAT_VERSION,
        header_size=header_size,
        payload_size=payload_size,
        payload_crc32=payload_crc32,
    )
    if capacities is not None and len(capacities) != len(counts):
        raise TokenFormatError(f"the token header gives {len(capacities)} capacities for {len(counts)} frames")
    expected = sum(map(aligned, header.section_sizes()))
    if expected != payload_size:
        raise TokenFormatError(f"arrays of {expected} bytes are described, but a payload of {payload_size} is declared")
    return header


def _load(text: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise TokenFormatError(f"the token header is not JSON: {error}") from error
    if not isinstance(fields, dict):
        raise TokenFormatError(f"the token header is not a JSON object but {_short(fields)}")
    return fields


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31


def _is_size(value: object) -> bool:
    return _is_count(value) and value != 0


def _is_finite(value: object) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    # abs() first: an int too large for a float would make isfinite raise.
    return is_number and abs(value) < 2**63 and math.isfinite(value)  # type: ignore[arg-type]


def _is_scalar_map(value: object) -> bool:
    return isinstance(value, Mapping) and all(
        isinstance(name, str) and isinstance(item, str | bool | int | float | None) for name, item in value.items()
    )


def _is_list(of: Callable[[object], bool]) -> Callable[[object], bool]:
    return lambda value: isinstance(value, list) and bool(value) and all(map(of, value))


def _is_pair(value: object) -> bool:
    return _is_list(_is_size)(value) and len(value) == 2  # type: ignore[arg-type]  # a list, as has been seen


_CHECKS: Mapping[str, Callable[[Any], bool]] = MappingProxyType(
    {
        "byteorder": lambda value: value == sys.byteorder,
        "capacities": lambda value: value is None or _is_list(_is_count)(value),
        "cls": lambda value: isinstance(value, bool),
        "counts": _is_list(_is_count),
        "dtype": lambda value: isinstance(value, str) and value in _STORAGES,
        "extra": _is_scalar_map,
        "fingerprint": lambda value: isinstance(value, str),
        "grid": _is_pair,
        "medium": lambda value: isinstance(value, str) and value in _MEDIA,
        "method": lambda value: isinstance(value, str),
        "nested": lambda value: isinstance(value, bool),
        "picture_size": lambda value: value is None or _is_pair(value),
        "pts_seconds": _is_list(_is_finite),
        "views": _is_size,
        "width": _is_size,
    }
)
