import hashlib
import json
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastervlm_video.cache import CacheKey, Storage, make_key, video_key
from fastervlm_video.config import FrameSampling, Medium, PruneSpec
from fastervlm_video.errors import InvalidRequestError

DIGEST = hashlib.sha256(b"a video").hexdigest()

BASE: dict[str, Any] = {
    "content_digest": DIGEST,
    "medium": Medium.VIDEO,
    "sampling": FrameSampling(8),
    "preprocessing": {"size": [224, 224], "mean": [0.5, 0.25], "resample": 3},
    "layout": {"unpad": True},
    "tower_fingerprint": "tower-1@-2",
    "prune": PruneSpec(keep_ratio=0.1),
    "nested": True,
    "seeded": False,
    "tokens_per_frame": 26,
    "dtype": Storage.FLOAT16,
    "salt": b"tenant",
}


def key(**changes: Any) -> CacheKey:
    return make_key(**{**BASE, **changes})


def framed(*parts: bytes) -> str:
    return hashlib.sha256(b"".join(len(part).to_bytes(8, "big") + part for part in parts)).hexdigest()


def test_golden_value() -> None:
    """Written out once more; a key that changes by accident makes every cache cold."""
    recipe = {
        "budget": None,
        "dtype": "float16",
        "format": 2,
        "layout": {"unpad": True},
        "medium": "video",
        "nested": True,
        "preprocessing": {"mean": [0.5, 0.25], "resample": 3, "size": [224, 224]},
        "prune": {"keep_cls": False, "method": "cls_attention"},
        "sampling": {"num_frames": 8},
        "tower": "tower-1@-2",
    }
    text = json.dumps(recipe, separators=(",", ":")).encode()
    assert key() == CacheKey(
        video=framed(b"fastervlm-video/video-key", b"tenant", DIGEST.encode()),
        variant=framed(b"fastervlm-video/variant-key", text),
    )
    assert key().video == "51d1931609a2f5d92b07edcff8aaba46b85f648bc1c255c8bca1f68db4b28dd6"
    assert key().variant == "8f1cb9d70bde064931f78958a2b6382c18550e260ccc1b0703cad60cd5624d6d"


@pytest.mark.parametrize(
    "change",
    [
        {"sampling": FrameSampling(9)},
        {"preprocessing": {"size": [224, 224], "mean": [0.5, 0.25], "resample": 2}},
        {"preprocessing": {"size": [224, 224], "mean": [0.25, 0.5], "resample": 3}},
        {"preprocessing": {}},
        {"tower_fingerprint": "tower-1@-1"},
        {"layout": {"unpad": False}},
        {"layout": {}},
        {"medium": Medium.IMAGE},
        {"prune": PruneSpec(method="other")},
        {"prune": PruneSpec(keep_cls=True)},
        {"nested": False},
        {"seeded": True},
        {"dtype": Storage.BFLOAT16},
        {"dtype": Storage.FLOAT32},
        {"dtype": Storage.INT8},
    ],
)
def test_every_ingredient_changes_the_variant_and_no_other_half(change: dict[str, Any]) -> None:
    assert key(**change).variant != key().variant
    assert key(**change).video == key().video


def test_video_half_depends_on_tenant_and_content_alone() -> None:
    other = hashlib.sha256(b"another").hexdigest()
    videos = {key().video, key(salt=b"").video, key(salt=b"tenan").video, key(content_digest=other).video}
    assert len(videos) == 4
    assert key(salt=b"other").variant == key().variant
    assert key().video == video_key(DIGEST, salt=b"tenant")


def test_budget_counts_only_for_methods_that_are_not_nested() -> None:
    more = {"prune": PruneSpec(keep_tokens=64), "tokens_per_frame": 64}
    assert key(**more) == key()
    assert key(nested=False, **more) != key(nested=False)
    # Two ways of asking for one count are one budget.
    assert key(nested=False, prune=PruneSpec(keep_tokens=26)) == key(nested=False)


def test_seed_counts_only_for_methods_that_draw_lots() -> None:
    assert key(prune=PruneSpec(seed=7)) == key(prune=PruneSpec(seed=8))
    assert key(prune=PruneSpec(seed=7), seeded=True) != key(prune=PruneSpec(seed=8), seeded=True)


def test_order_and_sequence_type_do_not_count() -> None:
    assert key(preprocessing={"resample": 3, "mean": (0.5, 0.25), "size": (224, 224)}) == key()


@given(st.binary(max_size=8), st.binary(max_size=8))
def test_salts_never_collide(one: bytes, two: bytes) -> None:
    assert (video_key(DIGEST, salt=one) == video_key(DIGEST, salt=two)) == (one == two)


@pytest.mark.parametrize(
    "preprocessing",
    [{1: "a"}, {"a": {2: 3}}, {"a": float("nan")}, {"a": {1, 2}}, {"a": torch.float16}, {"a": b"bytes"}],
)
def test_what_json_would_bend_is_refused(preprocessing: dict[str, object]) -> None:
    with pytest.raises(InvalidRequestError, match=r"recipe\.preprocessing"):
        key(preprocessing=preprocessing)


@pytest.mark.parametrize("digest", ["", "abc", DIGEST.upper(), DIGEST + "0", DIGEST + "\n", "/a/path.mp4"])
def test_digests_must_be_digests(digest: str) -> None:
    with pytest.raises(InvalidRequestError, match="64 lower-case hex digits"):
        key(content_digest=digest)
    with pytest.raises(InvalidRequestError):
        CacheKey(video=digest, variant="0" * 64)
    with pytest.raises(InvalidRequestError):
        CacheKey(video="0" * 64, variant=digest)
