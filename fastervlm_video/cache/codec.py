"""Visual tokens as raw bytes: a fixed prefix, a JSON header, the arrays, checksums over all of it.

::

    offset  size  field
         0     8  magic                            ┐
         8     2  format version                   │
        10     2  reserved, zero                   │ little-endian; covered, like the JSON header,
        12     4  size of the JSON header, h       │ by the header checksum
        16     8  size of the payload, p           │
        24     4  CRC-32 of the payload            ┘
        28     4  CRC-32 of bytes 0..27 and of the JSON header
        32     h  JSON header: shapes, method, fingerprint, times; padded with blanks
      32+h     p  features, [CLS] features, scores, indices, scales; each padded with zeros to 64 bytes

Scales are there if features are stored as int8: a float32 for each of their rows, [CLS] rows last.

CRC-32 and not a cryptographic digest: it detects *every* error of up to 32 bits in a row (any damaged
byte with certainty, not just in all likelihood), it is cheap, and an unkeyed digest would not stop a
writer with bad intent either. Two checksums and not one, so that a header can be trusted without its
payload having been moved.

Nothing is allocated by a number found in the bytes: sizes follow from the header's shapes and are
compared with the length that is really there.
"""

import struct
import zlib
from collections.abc import Iterable, Mapping

from fastervlm_video.cache.header import (
    FORMAT_VERSION,
    MAX_HEADER_BYTES,
    EntryHeader,
    JsonScalar,
    aligned,
    parse_header,
)
from fastervlm_video.cache.payload import Payload, payload_parts
from fastervlm_video.cache.storage import DEFAULT_STORAGE, Storage
from fastervlm_video.errors import FingerprintMismatchError, InvalidRequestError, TokenFormatError
from fastervlm_video.vision.tokens import VisualTokens

__all__ = ["check_blob", "decode_tokens", "encode_tokens", "read_header"]

MAGIC = b"\x89FVTOK\r\n"  # not text, and damaged by whatever translates line ends (as in PNG)
_CHECKED_PREFIX = struct.Struct("<8sHHIQI")
_CRC = struct.Struct("<I")
_PREFIX_BYTES = _CHECKED_PREFIX.size + _CRC.size

Blob = bytes | bytearray | memoryview


def encode_tokens(
    tokens: VisualTokens, *, dtype: Storage = DEFAULT_STORAGE, extra: Mapping[str, JsonScalar] | None = None
) -> bytes:
    """Write a token set as bytes that :func:`decode_tokens` reads back.

    Args:
        tokens: on any device.
        dtype: how features are stored. Scores stay float32.
        extra: notes to keep in the header.

    Raises:
        InvalidRequestError: ``dtype`` or ``extra`` cannot be stored.
        TokenFormatError: a feature is not finite, or not any more as it would be restored; or a score is NaN.
    """
    dtype = Storage.parse(dtype)
    parts = payload_parts(tokens, dtype)
    header = EntryHeader(
        counts=tuple(map(int, tokens.counts)),
        grid=(int(tokens.grid[0]), int(tokens.grid[1])),
        width=tokens.width,
        method=tokens.method,
        nested=tokens.nested,
        fingerprint=tokens.fingerprint,
        dtype=dtype,
        pts_seconds=tuple(map(float, tokens.pts_seconds)),
        has_cls=tokens.cls_features is not None,
        medium=tokens.medium,
        picture_size=tokens.picture_size,
        views_per_picture=tokens.views_per_picture,
        capacities=tokens.capacities,
        extra=dict(extra or {}),
        format_version=FORMAT_VERSION,
        header_size=0,  # not known before its JSON is
        payload_size=sum(map(len, parts)),
        payload_crc32=_crc32(parts),
    )
    return b"".join((_head(header), *parts))


def decode_tokens(
    blob: Blob,
    *,
    expect_fingerprint: str | None = None,
    expect_dtype: Storage | None = None,
    in_place: bool = False,
) -> VisualTokens:
    """Read back what :func:`encode_tokens` wrote. The tensors share one buffer, a fresh one but for ``in_place``.

    Args:
        blob: the bytes of one entry, no more and no less.
        expect_fingerprint: the tower whose features are wanted; None takes any.
        expect_dtype: how the features should be stored; None takes any.
        in_place: if ``blob`` is a bytearray, its owner gives it up, and the tensors are made in it.

    Raises:
        TokenFormatError: the bytes are damaged, foreign, of another version, or describe the impossible; or
            they are stored otherwise than expected.
        FingerprintMismatchError: they are sound, and of another tower.
    """
    header = check_blob(blob)
    if expect_dtype is not None and header.dtype != expect_dtype:
        raise TokenFormatError(f"tokens are stored as {header.dtype}, but {expect_dtype} is wanted")
    if expect_fingerprint is not None and header.fingerprint != expect_fingerprint:
        raise FingerprintMismatchError(
            f"tokens were made by the tower {header.fingerprint!r}, but {expect_fingerprint!r} is wanted: encode again"
        )
    if in_place and isinstance(blob, bytearray):
        payload = Payload(header, blob, header.header_size)
    else:  # a copy: tensors must not alias bytes, which are immutable, nor a view that its owner may rewrite
        payload = Payload(header, bytearray(memoryview(blob)[header.header_size :]), 0)
    try:
        return VisualTokens(
            features=payload.features(),
            indices=payload.indices(),
            scores=payload.scores(),
            counts=header.counts,
            grid=header.grid,
            pts_seconds=header.pts_seconds,
            method=header.method,
            nested=header.nested,
            fingerprint=header.fingerprint,
            cls_features=payload.cls_features(),
            medium=header.medium,
            picture_size=header.picture_size,
            views_per_picture=header.views_per_picture,
            capacities=header.capacities,
        )
    except InvalidRequestError as error:
        raise TokenFormatError(f"the token bytes are sound, but what they describe is not: {error}") from error


def read_header(blob_or_prefix: Blob) -> EntryHeader:
    """The checked header of an entry, from the whole of it or from its first bytes.

    Raises:
        TokenFormatError: as for :func:`decode_tokens`; also if not all of the header is there.
    """
    view = memoryview(blob_or_prefix).cast("B")
    if len(view) < _PREFIX_BYTES:
        raise TokenFormatError(f"{len(view)} bytes are too few for token bytes, which begin with {_PREFIX_BYTES}")
    magic, version, reserved, json_size, payload_size, payload_crc32 = _CHECKED_PREFIX.unpack_from(view)
    if magic != MAGIC:
        raise TokenFormatError(f"these are not token bytes: they begin with {magic!r}, not {MAGIC!r}")
    if version != FORMAT_VERSION:
        raise TokenFormatError(f"token bytes of format version {version}; this release reads {FORMAT_VERSION}")
    header_size = _PREFIX_BYTES + json_size
    if json_size > MAX_HEADER_BYTES or header_size > len(view):
        raise TokenFormatError(
            f"a header of {json_size} bytes is declared, {len(view) - _PREFIX_BYTES} are there, "
            f"and {MAX_HEADER_BYTES} is the limit"
        )
    text = view[_PREFIX_BYTES:header_size]
    found, (declared,) = _crc32((view[: _CHECKED_PREFIX.size], text)), _CRC.unpack_from(view, _CHECKED_PREFIX.size)
    if found != declared or reserved != 0:
        raise TokenFormatError(f"the token header is damaged: checksum {found:08x}, {declared:08x} expected")
    return parse_header(bytes(text), header_size=header_size, payload_size=payload_size, payload_crc32=payload_crc32)


def check_blob(blob: Blob) -> EntryHeader:
    """The header of a whole entry whose length and checksums are right.

    Raises:
        TokenFormatError: as for :func:`decode_tokens`.
    """
    header = read_header(blob)
    view = memoryview(blob).cast("B")
    if len(view) != header.total_size:
        raise TokenFormatError(f"token bytes should be {header.total_size} long, and are {len(view)}")
    found = zlib.crc32(view[header.header_size :])
    if found != header.payload_crc32:
        raise TokenFormatError(
            f"the token payload is damaged: checksum {found:08x}, {header.payload_crc32:08x} expected"
        )
    return header


def _head(header: EntryHeader) -> bytes:
    """Prefix and padded JSON; the payload after them begins on an array boundary."""
    text = header.to_json()
    text = text.ljust(aligned(_PREFIX_BYTES + len(text)) - _PREFIX_BYTES)
    prefix = _CHECKED_PREFIX.pack(MAGIC, FORMAT_VERSION, 0, len(text), header.payload_size, header.payload_crc32)
    return prefix + _CRC.pack(_crc32((prefix, text))) + text


def _crc32(parts: Iterable[Blob]) -> int:
    crc = 0
    for part in parts:
        crc = zlib.crc32(part, crc)
    return crc
