import dataclasses
import pickle
from typing import Any

import pytest

from fastervlm_video.config import (
    DEFAULT_KEEP_RATIO,
    FrameResize,
    FrameSampling,
    MediaLimits,
    PruneSpec,
    SamplingParams,
)
from fastervlm_video.errors import InvalidRequestError

INFINITY, NAN = float("inf"), float("nan")


@pytest.mark.parametrize(
    ("kind", "values", "words"),
    [
        *((MediaLimits, {field.name: bad}, field.name) for field in dataclasses.fields(MediaLimits) for bad in (0, -1)),
        (FrameSampling, {"num_frames": 0}, "num_frames must be at least 1, got 0"),
        (FrameResize, {"shortest_edge": 8, "size": (8, 8)}, "shortest_edge or size, not both"),
        (PruneSpec, {"keep_ratio": 0.5, "keep_tokens": 5}, "keep_ratio or keep_tokens, not both"),
        *((PruneSpec, {"keep_ratio": bad}, f"keep_ratio .* got {bad}") for bad in (0.0, -0.1, 1.001, INFINITY, NAN)),
        (PruneSpec, {"keep_tokens": 0}, "keep_tokens must be at least 1, got 0"),
        *((kind, {"seed": bad}, f"seed .* got {bad}") for kind in (PruneSpec, SamplingParams) for bad in (-1, 2**63)),
        (SamplingParams, {"max_tokens": 0}, "max_tokens must be at least 1, got 0"),
        *((SamplingParams, {"temperature": bad}, f"temperature .* got {bad}") for bad in (-0.1, 2.1, INFINITY, NAN)),
        (SamplingParams, {"stop": tuple("abcde")}, "at most 4 stop strings are possible, got 5"),
        (SamplingParams, {"stop": ("a", "")}, "1 to 256 characters, got 0"),
        (SamplingParams, {"stop": ("x" * 257,)}, "1 to 256 characters, got 257"),
        *((SamplingParams, {"top_p": bad}, f"top_p .* got {bad}") for bad in (0.0, 1.1, NAN)),
    ],
)
def test_what_is_out_of_range_is_refused_with_the_value(kind: type[Any], values: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidRequestError, match=words):
        kind(**values)


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (PruneSpec, {"keep_ratio": 1.0}),
        (PruneSpec, {"seed": 2**63 - 1}),
        (SamplingParams, {"temperature": 2.0, "top_p": 1.0, "seed": 0, "max_tokens": 1}),
        (SamplingParams, {"stop": ("a", "b", "c", "x" * 256)}),
        (FrameResize, {}),
        (FrameSampling, {"num_frames": 1}),
    ],
)
def test_bounds_themselves_are_allowed(kind: type[Any], values: dict[str, Any]) -> None:
    built = kind(**values)
    assert all(getattr(built, name) == value for name, value in values.items())


@pytest.mark.parametrize("value", [MediaLimits(), FrameSampling(), FrameResize(), PruneSpec(), SamplingParams()])
def test_settings_do_not_change_and_can_be_sent(value: Any) -> None:
    field = dataclasses.fields(value)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(value, field, 1)
    assert pickle.loads(pickle.dumps(value)) == value
    assert hash(pickle.loads(pickle.dumps(value))) == hash(value)


def test_a_ratio_is_the_default_only_without_a_count() -> None:
    assert (PruneSpec().keep_ratio, PruneSpec().keep_tokens) == (DEFAULT_KEEP_RATIO, None)
    assert PruneSpec(keep_tokens=4).keep_ratio is None


@pytest.mark.parametrize(
    ("reduction_percent", "published"), [(0, 256), (25, 192), (50, 128), (75, 64), (90, 26), (95, 13)]
)
def test_counts_are_the_papers(reduction_percent: int, published: int) -> None:
    assert PruneSpec(keep_ratio=1 - reduction_percent / 100).tokens_per_frame(256) == published


@pytest.mark.parametrize(("reduction_percent", "published"), [(25, 432), (50, 288), (75, 144), (90, 58), (95, 29)])
def test_counts_are_the_papers_for_images_too(reduction_percent: int, published: int) -> None:
    assert PruneSpec(keep_ratio=1 - reduction_percent / 100).tokens_per_frame(576) == published


def test_at_least_one_token_is_kept_and_at_most_all() -> None:
    assert PruneSpec(keep_ratio=1e-9).tokens_per_frame(256) == 1
    assert PruneSpec(keep_tokens=256).tokens_per_frame(256) == 256
    with pytest.raises(InvalidRequestError, match="keep_tokens=257 is more than the 256"):
        PruneSpec(keep_tokens=257).tokens_per_frame(256)
