"""Every method from a video file to an answer, through the cache, in one process."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from fastervlm_video import VideoQA
from fastervlm_video.cache import decode_tokens, encode_tokens
from fastervlm_video.config import FrameSampling, ImageLayout, ModelOptions, PruneSpec, SamplingParams
from fastervlm_video.media import write_video
from fastervlm_video.picture import draw_kept_patches
from fastervlm_video.prune import get_method, method_names
from tests.checkpoints import SMALL, random_frames, save_random_checkpoint, save_random_llava_next

FRAMES = 4
PATCHES = (SMALL.image_size // SMALL.patch_size) ** 2
BUDGETS = (2, 5, 7)


@pytest.fixture(scope="module")
def qa(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VideoQA]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with VideoQA.from_pretrained(
        save_random_checkpoint(tmp_path_factory.mktemp("model") / "c"), num_frames=FRAMES
    ) as opened:
        yield opened
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("videos") / "noise.mp4"
    write_video(path, random_frames(12, 48, 64), fps=6)
    return path


@pytest.mark.parametrize("method", method_names())
@pytest.mark.parametrize("keep_cls", [False, True])
def test_from_file_to_answer(qa: VideoQA, clip: Path, method: str, keep_cls: bool) -> None:
    nested = get_method(method).nested
    for budget in sorted(BUDGETS, reverse=True):
        spec = PruneSpec(method=method, keep_tokens=budget, keep_cls=keep_cls)
        first, again = (qa.encode_video(clip, prune=spec, with_frames=True) for _ in range(2))
        assert first.cache == ("hit" if nested and budget != max(BUDGETS) else "miss"), "its budget is in its key"
        assert again.cache == "hit"
        for name in ("features", "indices", "scores"):
            assert torch.equal(getattr(first.tokens, name), getattr(again.tokens, name))
        assert first.tokens.counts == again.tokens.counts
        assert first.tokens.method == method
        assert (first.tokens.tokens_kept,) == qa.facts.visual_runs(FrameSampling(FRAMES), spec)
        answer = qa.ask(again, "what moves ?", SamplingParams(max_tokens=2))
        assert answer.usage.visual_tokens == first.tokens.tokens_kept
        assert first.frames is not None
        assert draw_kept_patches(first.frames, first.tokens).width > 0


def test_a_frame_without_tokens_survives_storage_and_drawing(qa: VideoQA, tmp_path: Path) -> None:
    still = tmp_path / "still.mp4"
    write_video(still, random_frames(1, 48, 64).repeat(12, axis=0), fps=6)
    spec = PruneSpec(method="evs", keep_tokens=PATCHES // FRAMES)
    video = qa.encode_video(still, prune=spec, with_frames=True)
    assert video.tokens.counts == (PATCHES, 0, 0, 0)
    restored = decode_tokens(encode_tokens(video.tokens))
    assert restored.counts == video.tokens.counts
    assert torch.equal(restored.sequence(), video.tokens.sequence())
    assert qa.ask(video, "what moves ?", SamplingParams(max_tokens=2)).usage.visual_tokens == PATCHES
    assert video.frames is not None
    assert draw_kept_patches(video.frames, video.tokens).height > 0


@pytest.mark.parametrize("layout", ImageLayout)
def test_each_view_is_compared_with_itself_in_the_frame_before(layout: ImageLayout, tmp_path: Path) -> None:
    """Of a still video in tiles nothing is new behind the first frame, in no tile."""
    still, budget = tmp_path / "still.mkv", PATCHES // 2 + 1
    write_video(still, random_frames(1, 60, 64).repeat(2, axis=0), fps=1, codec="ffv1", pix_fmt="bgr0")
    model = save_random_llava_next(tmp_path / "model")
    with VideoQA.from_pretrained(model, num_frames=2, options=ModelOptions(layout)) as tiled:
        video = tiled.encode_video(still, prune=PruneSpec(method="evs", keep_tokens=budget)).tokens
    views, rooms = video.views_per_picture, video.capacities or (PATCHES,) * video.num_frames
    assert views == 5
    for view, room in enumerate(rooms[:views]):
        in_all = 2 * min(budget, room)
        assert video.counts[view::views] == (min(in_all, room), in_all - min(in_all, room))
    scores = video.scores.split(list(video.counts))
    assert all(bool((of_view > 2).all()) for of_view in scores[:views]), "new"
    assert all(bool((of_view < 1e-5).all()) for of_view in scores[views:]), "as before"
