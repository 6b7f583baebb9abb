"""int8 with a scale per token: what it promises of every number, and what it does at the edges of float."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastervlm_video.cache import Storage, decode_tokens, encode_tokens, read_header
from fastervlm_video.cache.storage import from_int8, to_int8
from fastervlm_video.errors import InvalidRequestError, TokenFormatError
from tests.cache.samples import assert_same, forge, make_tokens, take_apart

LARGEST = 65504.0
SMALLEST = 2.0**-149  # a float32 has nothing smaller but zero

# Any float32 that is finite as float16, the smallest ones included.
numbers = st.floats(-LARGEST, LARGEST, width=32)
rows = st.lists(st.lists(numbers, min_size=3, max_size=3), min_size=1, max_size=8).map(torch.tensor)


def restored(values: Tensor) -> Tensor:
    return from_int8(*to_int8(values))


@given(rows)
@settings(max_examples=300, deadline=None)
def test_no_number_is_off_by_more_than_half_a_step(values: Tensor) -> None:
    """In float64: half a step of the row's scale, and what float16 and the scale's own rounding add."""
    quantised, scales = to_int8(values)
    assert quantised.dtype == torch.int8
    assert int(quantised.min()) >= -127
    wanted, found = values.double().numpy(), restored(values).double().numpy()
    largest = np.abs(wanted).max(axis=1, keepdims=True)
    assert np.isfinite(found).all()
    assert (np.abs(found - wanted) <= largest / 254 + np.abs(wanted) * 2**-10 + 2**-24).all()
    np.testing.assert_allclose(scales.double().numpy(), largest[:, 0] / 127, rtol=2**-23, atol=SMALLEST)


@given(rows)
@settings(max_examples=100, deadline=None)
def test_signs_are_treated_alike(values: Tensor) -> None:
    assert torch.equal(restored(-values), -restored(values))


@given(rows)
@settings(max_examples=100, deadline=None)
def test_a_row_does_not_depend_on_the_others(values: Tensor) -> None:
    """So that a slice of an entry is the entry of the slice."""
    alone = torch.cat([restored(row[None]) for row in values])
    assert torch.equal(restored(values), alone)


@given(rows)
@settings(max_examples=100, deadline=None)
def test_storing_again_what_was_restored_changes_next_to_nothing(values: Tensor) -> None:
    once = restored(values).float()
    largest = once.abs().amax(dim=1, keepdim=True)
    assert (restored(once).float() - once).abs().le(largest / 254 + 2**-24).all()


@pytest.mark.parametrize(
    "row",
    [
        [0.0, 0.0, 0.0],
        [-0.0, 0.0, -0.0],
        [SMALLEST, -SMALLEST, 0.0],
        [100 * SMALLEST, -60 * SMALLEST, SMALLEST],  # the scale is rounded to the smallest float, or to zero
        [1e-45, 1e-38, 1.2e-38],
        [2.0**-24, -(2.0**-24), 0.0],
        [LARGEST, -LARGEST, 1.0],
        [65519.99, -65519.99, 0.0],  # still finite as float16, but not if rounded up
    ],
)
def test_the_edges_of_float_are_finite_and_near(row: list[float]) -> None:
    values = torch.tensor([row])
    found = restored(values)
    assert torch.isfinite(found).all()
    wanted = values.half().float()
    assert (found.float() - wanted).abs().le(wanted.abs().max() / 254 + wanted.abs() * 2**-10 + 2**-24).all()


def test_known_values() -> None:
    """Ties go to the even neighbour on both sides of zero."""
    quantised, scales = to_int8(torch.tensor([[127.0, 0.5, 1.5, -0.5, -1.5, -127.0], [0.0] * 6]))
    assert quantised.tolist() == [[127, 0, 2, 0, -2, -127], [0] * 6]
    assert scales.tolist() == [1.0, 0.0]


@pytest.mark.parametrize("source", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_any_float_can_be_stored(source: torch.dtype) -> None:
    tokens = make_tokens((3, 2), width=16, cls=True)
    assert tokens.cls_features is not None
    cast = replace(tokens, features=tokens.features.to(source), cls_features=tokens.cls_features.to(source))
    plain = replace(cast, features=cast.features.float(), cls_features=tokens.cls_features.to(source).float())
    assert_same(decode_tokens(encode_tokens(cast, dtype=Storage.INT8)), plain, Storage.INT8)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf"), 65520.0, -1e30])
@pytest.mark.parametrize("where", ["features", "cls_features"])
def test_what_is_not_finite_as_restored_is_refused(bad: float, where: str) -> None:
    tokens = make_tokens((3, 3), cls=True)
    spoilt = getattr(tokens, where).clone()
    spoilt[1, 2] = bad
    with pytest.raises(TokenFormatError, match=r"1 of \d+ numbers in .*features are not finite as torch\.float16"):
        encode_tokens(replace(tokens, **{where: spoilt}), dtype=Storage.INT8)


def test_layout_and_size() -> None:
    """Read by json and numpy alone; half the bytes of float16, and a scale for each row."""
    tokens = make_tokens((12, 12), width=1024, cls=True)
    assert tokens.cls_features is not None
    blob = encode_tokens(tokens, dtype=Storage.INT8)
    header, payload = take_apart(blob)
    assert header["dtype"] == "int8"
    scales_at = 26 * 1024 + 128 + 64  # 24 rows and 2 of [CLS]; 96 bytes of scores, 48 of indices, each padded to 64
    assert len(payload) == scales_at + 128
    scales = np.frombuffer(payload[scales_at : scales_at + 26 * 4], np.float32)
    stored = torch.cat([tokens.features, tokens.cls_features]).numpy()
    np.testing.assert_array_equal(scales, np.abs(stored).max(axis=1) / np.float32(127))
    found = np.frombuffer(payload[: 26 * 1024], np.int8).reshape(26, 1024)
    np.testing.assert_array_equal(found, np.rint(stored / scales[:, None]))
    assert len(blob) < 0.52 * len(encode_tokens(tokens))
    assert read_header(blob).dtype is Storage.INT8


def test_cutting_and_storing_may_change_places() -> None:
    large, small = make_tokens((9, 9), cls=True), make_tokens((4, 4), cls=True)
    cut = decode_tokens(encode_tokens(large, dtype=Storage.INT8)).select(4)
    assert_same(cut, small, Storage.INT8)


@pytest.mark.parametrize("scale", [float("nan"), float("inf"), -float("inf"), 1e6])
def test_scales_that_make_no_finite_features_are_refused(scale: float) -> None:
    blob = encode_tokens(make_tokens((3, 3)), dtype=Storage.INT8)
    _, payload = take_apart(blob)
    spoilt = payload[:-64] + np.float32(scale).tobytes() + payload[-60:]
    with pytest.raises(TokenFormatError, match="not finite"):
        decode_tokens(forge(blob, lambda header: None, spoilt))


def test_the_largest_scale_of_a_sound_entry_is_no_reason_to_refuse_it() -> None:
    """127 times it is finite as float16; a -128, which a sound writer does not write, would not be."""
    tokens = make_tokens((3, 3), width=64)
    large = replace(tokens, features=tokens.features.clone().fill_(LARGEST))
    blob = encode_tokens(large, dtype=Storage.INT8)
    assert_same(decode_tokens(blob), large, Storage.INT8)
    _, payload = take_apart(blob)
    with pytest.raises(TokenFormatError, match="1 of 384 numbers in features are not finite"):
        decode_tokens(forge(blob, lambda header: None, b"\x80" + payload[1:]))


def test_a_header_that_names_another_storage_does_not_fit_its_arrays() -> None:
    for written, claimed in (("float16", "int8"), ("int8", "float16"), ("int8", "bfloat16")):
        blob = encode_tokens(make_tokens((3, 3), width=64), dtype=Storage(written))
        edit: Any = lambda header, claimed=claimed: header.update(dtype=claimed)  # noqa: E731
        with pytest.raises(TokenFormatError, match="described"):
            decode_tokens(forge(blob, edit))


def test_names() -> None:
    assert [Storage.parse(name) for name in ("float16", "bfloat16", "float32", "int8")] == list(Storage)
    for name in ("float64", "torch.int8", "", "INT8"):
        with pytest.raises(InvalidRequestError, match=f"one of float16, bfloat16, float32, int8, not as {name}"):
            Storage.parse(name)
