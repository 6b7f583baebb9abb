import sys
import tracemalloc
import zlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastervlm_video.cache import Storage, check_blob, decode_tokens, encode_tokens, read_header
from fastervlm_video.config import Medium
from fastervlm_video.errors import FingerprintMismatchError, InvalidRequestError, TokenFormatError
from tests.cache.samples import FINGERPRINT, PREFIX, assert_same, forge, make_tokens, put_together, take_apart

FLOATS = (Storage.FLOAT16, Storage.BFLOAT16, Storage.FLOAT32)


@given(
    counts=st.lists(st.integers(0, 12), min_size=1, max_size=5).map(tuple),
    width=st.integers(1, 9),
    dtype=st.sampled_from(Storage),
    nested=st.booleans(),
    cls=st.booleans(),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=60, deadline=None)
def test_round_trip(*, counts: tuple[int, ...], width: int, dtype: Storage, nested: bool, cls: bool, seed: int) -> None:
    tokens = make_tokens(counts, width=width, nested=nested, cls=cls, seed=seed)
    blob = encode_tokens(tokens, dtype=dtype)
    assert_same(decode_tokens(blob, expect_fingerprint=FINGERPRINT), tokens, dtype)
    assert_same(decode_tokens(memoryview(bytearray(blob))), tokens, dtype)


def test_views_of_a_picture_make_the_round_trip() -> None:
    tokens = make_tokens(
        (3, 2, 0),
        medium=Medium.IMAGE,
        picture_size=(480, 640),
        views_per_picture=3,
        capacities=(12, 2, 0),
    )
    blob = encode_tokens(tokens)
    assert_same(decode_tokens(blob), tokens)
    header = read_header(blob)
    # Two tokens are all that the second view has, and none all of the third: the entry holds a budget of 3.
    assert (header.holds(3), header.holds(4), tokens.holds(3), tokens.holds(4)) == (True, False, True, False)
    assert tokens.select(1).counts == (1, 1, 0)


def test_layout_as_documented() -> None:
    """Read by struct, json and numpy alone."""
    tokens = make_tokens((2, 3), width=5, cls=True)
    blob = encode_tokens(tokens, extra={"made_by": "test", "n": 3, "none": None})
    magic, version, reserved, text_size, payload_size, payload_crc, header_crc = PREFIX.unpack_from(blob)
    assert (magic, version, reserved) == (b"\x89FVTOK\r\n", 2, 0)
    header, payload = take_apart(blob)
    assert (len(payload), zlib.crc32(payload)) == (payload_size, payload_crc)
    assert zlib.crc32(blob[:28] + blob[32 : 32 + text_size]) == header_crc
    assert (32 + text_size) % 64 == 0
    assert header == {
        "byteorder": sys.byteorder,
        "capacities": None,
        "cls": True,
        "counts": [2, 3],
        "dtype": "float16",
        "extra": {"made_by": "test", "n": 3, "none": None},
        "fingerprint": FINGERPRINT,
        "grid": [3, 4],
        "medium": "video",
        "method": "cls_attention",
        "nested": True,
        "picture_size": None,
        "pts_seconds": [0.0, 1 / 3],
        "views": 1,
        "width": 5,
    }
    # 5 x 5 and 2 x 5 halves, 5 floats, 5 shorts: 50, 20, 20 and 10 bytes, each in its own 64.
    assert payload_size == 4 * 64
    assert tokens.cls_features is not None
    np.testing.assert_array_equal(np.frombuffer(payload[:50], np.float16).reshape(5, 5), tokens.features.half())
    np.testing.assert_array_equal(np.frombuffer(payload[64:84], np.float16), tokens.cls_features.half().flatten())
    np.testing.assert_array_equal(np.frombuffer(payload[128:148], np.float32), tokens.scores)
    np.testing.assert_array_equal(np.frombuffer(payload[192:202], np.uint16), tokens.indices)


def test_large_grids_keep_their_indices() -> None:
    tokens = make_tokens((2,), grid=(300, 300))
    tokens = replace(tokens, indices=torch.tensor([89_999, 65_536], dtype=torch.int32))
    assert decode_tokens(encode_tokens(tokens)).indices.tolist() == [89_999, 65_536]
    largest_short = replace(make_tokens((1,), grid=(256, 256)), indices=torch.tensor([65_535], dtype=torch.int32))
    assert decode_tokens(encode_tokens(largest_short)).indices.tolist() == [65_535]


@pytest.mark.parametrize("cls", [False, True])
@pytest.mark.parametrize("dtype", [Storage.FLOAT16, Storage.INT8])
def test_any_damaged_byte_is_noticed(cls: bool, dtype: Storage) -> None:
    blob = encode_tokens(make_tokens((2, 1), width=3, cls=cls), dtype=dtype)
    assert len(blob) < 1024
    for position in range(len(blob)):
        for mask in (0x01, 0x80, 0xFF):
            damaged = bytearray(blob)
            damaged[position] ^= mask
            with pytest.raises(TokenFormatError):
                decode_tokens(damaged)


def test_any_truncation_and_any_addition_is_noticed() -> None:
    blob = encode_tokens(make_tokens((2, 1), width=3))
    for length in range(len(blob)):
        with pytest.raises(TokenFormatError):
            decode_tokens(blob[:length])
    with pytest.raises(TokenFormatError, match=f"should be {len(blob)} long, and are {len(blob) + 1}"):
        decode_tokens(blob + b"\0")


def test_other_versions_and_foreign_bytes_say_so() -> None:
    header, payload = take_apart(encode_tokens(make_tokens()))
    assert header
    with pytest.raises(TokenFormatError, match="format version 1; this release reads 2"):
        decode_tokens(put_together(b"{}", payload, version=1))
    with pytest.raises(TokenFormatError, match="not token bytes"):
        decode_tokens(b"\x80\x04" + bytes(100))
    with pytest.raises(TokenFormatError, match="damaged"):
        decode_tokens(put_together(b"{}", payload, reserved=1))


IMPOSSIBLE: list[tuple[str, Callable[[dict[str, Any]], object]]] = [
    ("fields", lambda h: h.pop("width")),
    ("fields", lambda h: h.update(more=1)),
    ("byteorder", lambda h: h.update(byteorder={"little": "big", "big": "little"}[sys.byteorder])),
    ("cls", lambda h: h.update(cls=0)),
    ("counts", lambda h: h.update(counts=[])),
    ("counts", lambda h: h.update(counts=[3, True])),
    ("counts", lambda h: h.update(counts=[3, -1])),
    ("counts", lambda h: h.update(counts=[3, 3.0])),
    ("counts", lambda h: h.update(counts=[10**4000])),
    ("dtype", lambda h: h.update(dtype="float64")),
    ("dtype", lambda h: h.update(dtype=[])),
    ("extra", lambda h: h.update(extra={"a": []})),
    ("fingerprint", lambda h: h.update(fingerprint=None)),
    ("grid", lambda h: h.update(grid=[12])),
    ("grid", lambda h: h.update(grid=[3, 0])),
    ("medium", lambda h: h.update(medium="sound")),
    ("medium", lambda h: h.update(medium=None)),
    ("picture_size", lambda h: h.update(picture_size=[1])),
    ("picture_size", lambda h: h.update(picture_size=[0, 1])),
    ("views", lambda h: h.update(views=0)),
    ("views", lambda h: h.update(views=None)),
    ("capacities", lambda h: h.update(capacities=[3, -1])),
    ("capacities", lambda h: h.update(capacities=[])),
    ("gives 3 capacities for 2 frames", lambda h: h.update(capacities=[3, 3, 3])),
    ("method", lambda h: h.update(method=1)),
    ("nested", lambda h: h.update(nested="yes")),
    ("pts_seconds", lambda h: h.update(pts_seconds=["0", "1"])),
    ("pts_seconds", lambda h: h.update(pts_seconds=[0, 10**400])),
    ("JSON", lambda h: h.update(pts_seconds=[0, float("nan")])),
    ("width", lambda h: h.update(width=0)),
    ("width", lambda h: h.update(width=2**40)),
    ("contradicts", lambda h: h.update(counts=[3, 13])),
    ("contradicts", lambda h: h.update(pts_seconds=[0.0])),
    ("described", lambda h: h.update(counts=[3, 12])),
    ("described", lambda h: h.update(width=2**31 - 1)),
    ("described", lambda h: h.update(cls=True)),
    ("described", lambda h: h.update(grid=[2**31 - 1, 2**31 - 1], counts=[2**31 - 1, 2**31 - 1])),
]


@pytest.mark.parametrize(("word", "edit"), IMPOSSIBLE)
def test_impossible_headers_with_right_checksums(word: str, edit: Callable[[dict[str, Any]], object]) -> None:
    with pytest.raises(TokenFormatError, match=word):
        decode_tokens(forge(encode_tokens(make_tokens()), edit))


@pytest.mark.parametrize("text", [b"", b"[]", b"7", b"\xff\xfe", b"[" * 100_000, b'{"a":' * 100_000])
def test_headers_that_are_no_json_objects(text: bytes) -> None:
    with pytest.raises(TokenFormatError, match="JSON"):
        decode_tokens(put_together(text, b""))


def test_nothing_is_allocated_by_an_unchecked_number() -> None:
    """Gigabytes are announced; megabytes would be noticed."""
    blob = encode_tokens(make_tokens())
    _, payload = take_apart(blob)
    liars = [
        forge(blob, lambda h: h.update(grid=[2**15, 2**15], counts=[2**30, 2**30], width=2**20)),
        put_together(b"{}", payload, payload_size=2**62),
        blob[:12] + b"\xff\xff\xff\xff" + blob[16:],
    ]
    tracemalloc.start()
    for liar in liars:
        with pytest.raises(TokenFormatError):
            decode_tokens(liar)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20


def test_sound_bytes_of_an_unsound_token_set() -> None:
    """Indices beyond the grid, which only the token type itself knows to refuse."""
    blob = encode_tokens(make_tokens())
    _, payload = take_apart(blob)
    with pytest.raises(TokenFormatError, match="patch indices"):
        decode_tokens(put_together(blob[32 : len(blob) - len(payload)], payload[:-64] + b"\xff" * 64))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_features_that_are_not_finite_are_refused_on_both_sides(dtype: Storage, bad: float) -> None:
    tokens = make_tokens((12, 12), width=16, cls=True)
    assert tokens.cls_features is not None
    good = encode_tokens(tokens, dtype=dtype)
    _, payload = take_apart(good)
    raw = torch.tensor([bad], dtype=dtype.written).view(torch.uint8).numpy().tobytes()
    for at in (0, 1, 100, tokens.features.numel() - 1):
        spoilt = tokens.features.clone()
        spoilt.view(-1)[at] = bad
        with pytest.raises(TokenFormatError, match="1 of 384 numbers in features are not finite"):
            encode_tokens(replace(tokens, features=spoilt), dtype=dtype)
        start = at * dtype.written.itemsize
        with pytest.raises(TokenFormatError, match="not finite"):
            decode_tokens(forge(good, lambda h: None, payload[:start] + raw + payload[start + len(raw) :]))
    cls = tokens.cls_features.clone()
    cls[1, 1] = bad
    with pytest.raises(TokenFormatError, match=r"\[CLS\] features are not finite"):
        encode_tokens(replace(tokens, cls_features=cls), dtype=dtype)


def test_overflow_of_the_stored_dtype_is_not_silent() -> None:
    tokens = make_tokens()
    large = replace(tokens, features=tokens.features.clone().fill_(70_000.0))
    with pytest.raises(TokenFormatError, match=r"not finite as torch\.float16"):
        encode_tokens(large)
    assert_same(decode_tokens(encode_tokens(large, dtype=Storage.BFLOAT16)), large, Storage.BFLOAT16)


def test_nan_scores_and_odd_arguments_are_refused() -> None:
    tokens = make_tokens()
    with pytest.raises(TokenFormatError, match="scores"):
        encode_tokens(replace(tokens, scores=torch.full_like(tokens.scores, torch.nan)))
    with pytest.raises(InvalidRequestError, match="not as float64"):
        encode_tokens(tokens, dtype="float64")  # type: ignore[arg-type]
    with pytest.raises(InvalidRequestError, match="JSON scalars"):
        encode_tokens(tokens, extra={"a": [1]})  # type: ignore[dict-item]
    with pytest.raises(InvalidRequestError, match="JSON scalars"):
        encode_tokens(tokens, extra={1: "a"})  # type: ignore[dict-item]
    with pytest.raises(InvalidRequestError, match="finite"):
        encode_tokens(tokens, extra={"a": float("inf")})
    with pytest.raises(InvalidRequestError, match="too long"):
        encode_tokens(tokens, extra={"a": "x" * 2**20})


def test_another_towers_tokens_are_refused_before_they_are_used() -> None:
    blob = encode_tokens(make_tokens())
    with pytest.raises(FingerprintMismatchError, match="'tower-1', but 'tower-2' is wanted"):
        decode_tokens(blob, expect_fingerprint="tower-2")


def test_header_can_be_read_without_the_payload() -> None:
    tokens = make_tokens((3, 2), cls=True)
    blob = encode_tokens(tokens, dtype=Storage.BFLOAT16, extra={"k": "v"})
    header = read_header(blob)
    assert header == read_header(blob[: header.header_size]) == check_blob(blob)
    assert (header.counts, header.grid, header.width, header.dtype) == ((3, 2), (3, 4), 4, Storage.BFLOAT16)
    assert (header.method, header.nested, header.fingerprint) == ("cls_attention", True, FINGERPRINT)
    assert (header.pts_seconds, header.has_cls, dict(header.extra)) == (tokens.pts_seconds, True, {"k": "v"})
    assert (header.format_version, header.total_size, header.num_tokens) == (2, len(blob), 5)
    assert (header.holds(2), header.holds(3), header.holds(None)) == (True, False, True)
    assert read_header(encode_tokens(replace(tokens, nested=False))).holds(3)  # its budget is in the key
    with pytest.raises(TokenFormatError, match="are there"):
        read_header(blob[: header.header_size - 1])


def test_decoded_tokens_are_nobody_elses_memory() -> None:
    tokens = make_tokens()
    source = bytearray(encode_tokens(tokens))
    decoded = decode_tokens(source)
    source[:] = bytes(len(source))
    assert_same(decoded, tokens)
    decoded.features.zero_()  # writable, without a warning


@pytest.mark.parametrize("dtype", Storage)
def test_tokens_made_in_place_use_the_bytes_they_were_given(dtype: Storage) -> None:
    """The tensors are views of the bytearray, but for what has to be worked out from it."""
    tokens = make_tokens((3, 2), cls=True)
    source = bytearray(encode_tokens(tokens, dtype=dtype))
    decoded = decode_tokens(source, in_place=True)
    assert_same(decoded, tokens, dtype)
    source[:] = bytes(len(source))
    assert not decoded.scores.any()
    assert decoded.features.any() == (dtype is Storage.INT8)
    unchangeable = encode_tokens(tokens, dtype=dtype)
    decode_tokens(unchangeable, in_place=True).scores.zero_()  # bytes are copied all the same
    assert_same(decode_tokens(unchangeable), tokens, dtype)


def test_tensors_that_need_gradients_or_are_strided_are_stored() -> None:
    tokens = make_tokens()
    strided = tokens.features.t().contiguous().t().requires_grad_()
    assert_same(decode_tokens(encode_tokens(replace(tokens, features=strided))), tokens)
