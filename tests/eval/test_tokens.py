"""The tower once, pruned in every way: the same tokens as one by one, as the service stores them, but for rounding."""

from pathlib import Path

import pytest
import torch

from fastervlm_video import VideoQA
from fastervlm_video.cache import Storage
from fastervlm_video.config import FrameSampling, PruneSpec
from fastervlm_video.errors import InvalidRequestError
from fastervlm_video.eval import FULL, ORACLE, Arm, Dataset
from fastervlm_video.eval.tokens import VideoTokens
from fastervlm_video.media import decode_video
from fastervlm_video.models import Checkpoint, LanguageHalf
from fastervlm_video.prune import method_names
from fastervlm_video.vision import EncodeJob
from tests.cache.samples import assert_same
from tests.checkpoints import frame_batch, random_frames
from tests.eval.conftest import coverage

FRAMES = FrameSampling(3)


@pytest.mark.parametrize("method", [*method_names(), FULL])
@pytest.mark.parametrize("keep", [0.5, 0.1])
def test_tokens_are_those_of_the_pipeline(qa: VideoQA, dataset: Dataset, method: str, keep: float) -> None:
    arm = Arm(method, keep, seed=3)
    video = dataset.samples[0].video
    frames = decode_video(video, FRAMES, resize=qa.facts.preprocessing().resize)
    timed = VideoTokens(qa.encoder, frames, "x", None).of(arm)
    expected = qa.encode_video(video, prune=arm.spec, sampling=FRAMES).tokens
    assert timed.tokens.features.dtype == expected.features.dtype == torch.float16
    assert torch.equal(timed.tokens.indices, expected.indices)
    # The pipeline computes the last layer for kept tokens only, which rounds differently: by float16's last bit.
    for name in ("features", "scores"):
        torch.testing.assert_close(getattr(timed.tokens, name), getattr(expected, name), rtol=2**-10, atol=1e-5)
    assert timed.tokens.counts == expected.counts
    assert 0 < timed.prune_seconds < timed.encode_seconds


def test_tokens_are_as_the_cache_would_store_them(qa: VideoQA) -> None:
    frames = frame_batch(random_frames(2, *qa.encoder.frame_size))
    arm = Arm("cls_attention", 0.5)
    tokens = {dtype: VideoTokens(qa.encoder, frames, "x", None, dtype=dtype).of(arm).tokens for dtype in Storage}
    direct = qa.encoder.prune(EncodeJob(frames, arm.spec), qa.encoder.run_tower(frames))
    for dtype, stored in tokens.items():
        assert_same(stored, direct, dtype)


def test_long_videos_go_through_the_tower_in_pieces(qa: VideoQA) -> None:
    frames = frame_batch(random_frames(7, *qa.encoder.frame_size))
    job = EncodeJob(frames, PruneSpec(keep_ratio=0.5))
    for limit in (1, 3, 7, 99):
        pruned = qa.encoder.prune(job, qa.encoder.run_tower(frames, max_frames_per_forward=limit))
        (expected,) = qa.encoder.encode([job], max_frames_per_forward=limit)
        assert torch.equal(pruned.indices, expected.indices)
        torch.testing.assert_close(pruned.features, expected.features, rtol=0, atol=1e-5)
        assert pruned.pts_seconds == expected.pts_seconds
    with pytest.raises(InvalidRequestError, match="at least 1, got 0"):
        qa.encoder.run_tower(frames, max_frames_per_forward=0)
    with pytest.raises(InvalidRequestError, match="must be resized"):
        qa.encoder.run_tower(frame_batch(random_frames(2, 8, 8)))
    with pytest.raises(InvalidRequestError, match="unknown pruning method"):
        qa.encoder.prune(EncodeJob(frames, PruneSpec("nonsense")), qa.encoder.run_tower(frames))


def test_the_oracle_needs_to_know_the_objects(qa: VideoQA) -> None:
    frames = frame_batch(random_frames(2, *qa.encoder.frame_size))
    with pytest.raises(InvalidRequestError, match="where the objects of x are is not known"):
        VideoTokens(qa.encoder, frames, "x", None).of(Arm(ORACLE, 0.5))
    timed = VideoTokens(qa.encoder, frames, "videos/0001.mp4", coverage).of(Arm(ORACLE, 0.5))
    assert timed.tokens.counts == (qa.facts.patches_per_frame // 2,) * 2
    assert timed.tokens.features.dtype == torch.float16


def test_the_language_half_is_loaded_once_for_engine_and_harness(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    original = Checkpoint.load_language

    def counted(self: Checkpoint, device: str, dtype: str) -> LanguageHalf:
        calls.append(device)
        return original(self, device, dtype)

    monkeypatch.setattr(Checkpoint, "load_language", counted)
    with VideoQA.from_pretrained(checkpoint, device="cpu") as fresh:
        assert fresh.engine is not None
        assert fresh.language is fresh.language
    assert calls == ["cpu"]
