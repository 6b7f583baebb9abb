"""Token sets and keys for tests, and a second, independent reading of the token format."""

import json
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastervlm_video.cache import CacheKey, Storage
from fastervlm_video.vision.tokens import VisualTokens

PREFIX = struct.Struct("<8sHHIQII")
FINGERPRINT = "tower-1"


def make_tokens(
    counts: tuple[int, ...] = (3, 3),
    *,
    width: int = 4,
    grid: tuple[int, int] = (3, 4),
    nested: bool = True,
    cls: bool = False,
    seed: int = 0,
    fingerprint: str = FINGERPRINT,
    **of_views: Any,
) -> VisualTokens:
    """Random tokens in score order. For one seed, smaller counts are prefixes of larger ones.

    ``of_views`` goes into the token set as it is: ``medium``, ``views_per_picture`` and so on.
    """
    generator = torch.Generator().manual_seed(seed)
    frames, patches = len(counts), grid[0] * grid[1]
    features = torch.randn(frames, patches, width, generator=generator)
    scores = torch.rand(frames, patches, generator=generator).sort(descending=True).values
    indices = torch.stack([torch.randperm(patches, generator=generator) for _ in range(frames)]).to(torch.int32)
    cls_features = torch.randn(frames, width, generator=generator)
    return VisualTokens(
        features=torch.cat([features[t, :n] for t, n in enumerate(counts)]),
        indices=torch.cat([indices[t, :n] for t, n in enumerate(counts)]),
        scores=torch.cat([scores[t, :n] for t, n in enumerate(counts)]),
        counts=counts,
        grid=grid,
        pts_seconds=tuple(t / 3 for t in range(frames)),
        method="cls_attention",
        nested=nested,
        fingerprint=fingerprint,
        cls_features=cls_features if cls else None,
        **of_views,
    )


def make_cache_key(video: str = "a", variant: str = "b") -> CacheKey:
    """A key whose digests repeat one digit."""
    return CacheKey(video=video * 64, variant=variant * 64)


def as_stored(features: Tensor, dtype: Storage) -> Tensor:
    """What is to be read back; for int8, worked out once more, with numpy."""
    if dtype is not Storage.INT8:
        return features.to({"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}[dtype])
    values = features.numpy().astype(np.float32)
    scales = np.abs(values).max(axis=1, keepdims=True) / np.float32(127)
    numbers = np.rint(np.divide(values, scales, out=np.zeros_like(values), where=scales > 0)).clip(-127, 127)
    return torch.from_numpy((numbers * scales).astype(np.float16))


def assert_same(found: VisualTokens | None, wanted: VisualTokens, dtype: Storage = Storage.FLOAT16) -> None:
    """Every field equal; features as they are stored, bit for bit."""
    assert found is not None
    features = as_stored(wanted.features, dtype)
    assert found.features.dtype == features.dtype
    assert torch.equal(found.features, features)
    assert torch.equal(found.indices, wanted.indices)
    assert torch.equal(found.scores, wanted.scores)
    assert (found.cls_features is None) == (wanted.cls_features is None)
    if found.cls_features is not None and wanted.cls_features is not None:
        assert torch.equal(found.cls_features, as_stored(wanted.cls_features, dtype))
    names = ("counts", "grid", "pts_seconds", "method", "nested", "fingerprint")
    for name in (*names, "medium", "picture_size", "views_per_picture", "capacities"):
        assert getattr(found, name) == getattr(wanted, name)


def take_apart(blob: bytes) -> tuple[dict[str, Any], bytes]:
    """JSON header and payload, read with struct and json alone."""
    size = PREFIX.unpack_from(blob)[3]
    return json.loads(blob[PREFIX.size : PREFIX.size + size]), blob[PREFIX.size + size :]


def put_together(
    text: bytes, payload: bytes, *, version: int = 2, reserved: int = 0, payload_size: int | None = None
) -> bytes:
    """An entry whose checksums are right, whatever it says."""
    size = len(payload) if payload_size is None else payload_size
    checked = struct.pack("<8sHHIQI", b"\x89FVTOK\r\n", version, reserved, len(text), size, zlib.crc32(payload))
    return checked + struct.pack("<I", zlib.crc32(checked + text)) + text + payload


def forge(blob: bytes, edit: Callable[[dict[str, Any]], object], payload: bytes | None = None) -> bytes:
    """The entry with an edited header, and checksums that fit."""
    header, original = take_apart(blob)
    edit(header)
    return put_together(json.dumps(header).encode(), original if payload is None else payload)
