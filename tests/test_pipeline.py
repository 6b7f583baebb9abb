import hashlib
import io
import logging
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import pytest
import torch
from PIL import Image

from fastervlm_video import Answer, VideoQA
from fastervlm_video.cache import MemoryStore, NullStore, Storage, TokenCache
from fastervlm_video.config import FrameSampling, MediaLimits, PruneSpec, SamplingParams
from fastervlm_video.errors import (
    CheckpointError,
    ContextLengthError,
    FingerprintMismatchError,
    InvalidRequestError,
    MediaLimitError,
    UnavailableError,
    UnsupportedMediaError,
    VideoNotFoundError,
)
from fastervlm_video.language import PagedEngine
from fastervlm_video.media import write_video
from fastervlm_video.mini import MINI_NAME, random_scene, render_scene
from fastervlm_video.models import Checkpoint
from fastervlm_video.pipeline import Source
from fastervlm_video.vision import EncodeJob
from tests.cache.samples import assert_same
from tests.checkpoints import SMALL, save_random_checkpoint

QUESTION = "what color is the square ?"
FRAMES = 4
PATCHES = (SMALL.image_size // SMALL.patch_size) ** 2
SHORT = SamplingParams(max_tokens=12)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_random_checkpoint(tmp_path_factory.mktemp("model") / "checkpoint")


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("videos")
    for seed in range(3):
        frames = render_scene(random_scene(seed), num_frames=20, height=48, width=64)
        write_video(folder / f"{seed}.mp4", frames, fps=10)
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def shared(checkpoint: Path) -> Iterator[VideoQA]:
    """For tests that look at answers only, whatever is cached."""
    with VideoQA.from_pretrained(checkpoint, keep_ratio=0.25, num_frames=FRAMES) as qa:
        yield qa


@pytest.fixture
def qa(shared: VideoQA) -> Iterator[VideoQA]:
    """With an empty cache of its own."""
    with VideoQA(shared.facts, prune=PruneSpec(keep_ratio=0.25), sampling=FrameSampling(FRAMES)) as fresh:
        yield fresh


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The halves that are loaded, as they are."""
    halves: list[str] = []
    for name in ("load_vision", "load_language"):
        monkeypatch.setattr(Checkpoint, name, recording(name, getattr(Checkpoint, name), halves))
    return halves


def recording(name: str, original: Callable[..., object], calls: list[str]) -> Callable[..., object]:
    def call(*args: object, **options: object) -> object:
        calls.append(name)
        return original(*args, **options)

    return call


def test_encoding_once_answers_many_questions(qa: VideoQA, clips: list[Path]) -> None:
    video = qa.encode_video(clips[0])
    assert (video.cache, set(video.seconds)) == ("miss", {"decode", "encode"})
    assert (video.tokens.num_frames, video.tokens.tokens_full) == (FRAMES, FRAMES * PATCHES)
    assert video.tokens.counts == (PATCHES // 4,) * FRAMES
    questions = [QUESTION, "how many shapes are there ?", "does it move ?"]
    answers = [qa.ask(video, question, SHORT) for question in questions]
    assert len({answer.text for answer in answers}) > 1
    assert [qa.ask(video, question, SHORT).text for question in questions] == [answer.text for answer in answers]
    for answer in answers:
        assert answer.usage.visual_tokens == video.tokens.tokens_kept
        assert 0 < answer.usage.completion_tokens <= 12
        assert answer.finish_reason in {"stop", "length"}
        assert 0 < answer.seconds["first_token"] <= answer.seconds["generate"]


def test_the_answer_depends_on_the_video(shared: VideoQA, clips: list[Path]) -> None:
    assert len({shared.ask(clip, QUESTION, SHORT).text for clip in clips}) > 1


def test_path_bytes_and_file_are_the_same_video(qa: VideoQA, clips: list[Path]) -> None:
    content = clips[0].read_bytes()
    with clips[0].open("rb") as file:
        file.seek(100)  # wherever it stands, a file is read from its start
        sources: list[Source] = [clips[0], str(clips[0]), content, file, io.BytesIO(content)]
        videos = [qa.encode_video(source) for source in sources]
        answers = {qa.ask(source, QUESTION, SHORT).text for source in sources}
    assert {video.digest for video in videos} == {hashlib.sha256(content).hexdigest()}
    assert [video.cache for video in videos] == ["miss", *["hit"] * 4]
    assert len(answers) == 1


def test_each_kind_of_source_is_decoded_alike(shared: VideoQA, clips: list[Path]) -> None:
    content = clips[1].read_bytes()
    sources: list[Source] = [clips[1], content, io.BytesIO(content)]
    frames = [shared.encode_video(source, with_frames=True).frames for source in sources]
    assert frames[0] is not None
    for other in frames[1:]:
        assert other is not None
        assert other.pts_seconds == frames[0].pts_seconds
        assert (other.frames_thwc_u8 == frames[0].frames_thwc_u8).all()


def test_a_smaller_budget_is_cut_from_what_is_cached(qa: VideoQA, clips: list[Path]) -> None:
    large = qa.encode_video(clips[0], prune=PruneSpec(keep_tokens=8))
    small = qa.encode_video(clips[0], prune=PruneSpec(keep_tokens=3))
    assert (large.cache, small.cache, small.seconds) == ("miss", "hit", {})
    assert small.tokens.counts == (3,) * FRAMES
    cut = large.tokens.select(3)
    assert torch.equal(small.tokens.indices, cut.indices)
    assert torch.equal(small.tokens.features, cut.features)
    larger = qa.encode_video(clips[0], prune=PruneSpec(keep_tokens=9))
    assert (larger.cache, larger.tokens.counts) == ("miss", (9,) * FRAMES)


def test_what_changes_the_tokens_changes_the_key(qa: VideoQA, clips: list[Path]) -> None:
    qa.encode_video(clips[0])
    assert qa.encode_video(clips[1]).cache == "miss"
    assert qa.encode_video(clips[0], sampling=FrameSampling(FRAMES + 1)).cache == "miss"
    assert qa.encode_video(clips[0], prune=PruneSpec(method="random", keep_ratio=0.25)).cache == "miss"
    assert qa.encode_video(clips[0], prune=PruneSpec(keep_cls=True, keep_ratio=0.25)).cache == "miss"
    assert qa.encode_video(clips[0]).cache == "hit"


@pytest.mark.parametrize("dtype", [Storage.FLOAT16, Storage.INT8])
def test_the_answer_does_not_depend_on_the_state_of_the_cache(
    shared: VideoQA, clips: list[Path], dtype: Storage
) -> None:
    caches = [TokenCache(NullStore(), dtype=dtype), TokenCache(MemoryStore(2**24), dtype=dtype)]
    for prune in (PruneSpec(keep_tokens=5), PruneSpec(keep_ratio=1.0, keep_cls=True)):
        answers = []
        for cache in caches:
            encoding = VideoQA(shared.facts, prune=prune, sampling=FrameSampling(FRAMES), cache=cache)
            for _ in range(2):
                video = encoding.encode_video(clips[2])
                answers.append((shared.ask(video, QUESTION, SHORT).text, video.tokens.features.sum().item()))
        assert len(set(answers)) == 1
    assert caches[0].stats().hits == 0
    assert caches[1].stats().hits == 2


def test_tokens_are_as_stored_on_a_miss_too(qa: VideoQA, clips: list[Path]) -> None:
    video = qa.encode_video(clips[0], with_frames=True)
    assert video.tokens.features.dtype == torch.float16
    assert video.frames is not None
    direct = qa.encoder.encode([EncodeJob(video.frames, PruneSpec(keep_ratio=0.25))])[0]
    assert torch.equal(video.tokens.features, direct.features.to(torch.float16))


def test_int8_is_a_choice_of_half_the_bytes(shared: VideoQA, clips: list[Path]) -> None:
    """The language model sees what the cache stores, and one setting's entries are not another's."""
    cache = TokenCache(MemoryStore(2**24), dtype=Storage.INT8)
    with VideoQA(shared.facts, sampling=FrameSampling(FRAMES), cache=cache, cache_dtype="int8") as qa:
        video = qa.encode_video(clips[0], with_frames=True)
        assert video.frames is not None
        direct = qa.encoder.encode([EncodeJob(video.frames, PruneSpec())])[0]
        assert_same(video.tokens, direct, Storage.INT8)
        assert_same(qa.encode_video(clips[0]).tokens, direct, Storage.INT8)
    assert (cache.stats().hits, cache.stats().misses) == (1, 1)
    with VideoQA(shared.facts, sampling=FrameSampling(FRAMES), cache_dtype="int8") as qa:
        assert qa.cache_dtype is Storage.INT8
        assert qa.encode_video(clips[0]).identity == video.identity
    assert shared.encode_video(clips[0], prune=PruneSpec()).identity != video.identity
    with pytest.raises(InvalidRequestError, match="not as int4"):
        VideoQA(shared.facts, cache_dtype="int4")
    with pytest.raises(InvalidRequestError, match="the cache stores int8"):
        VideoQA(shared.facts, cache=cache, cache_dtype="float16")


def test_frames_come_with_a_hit_if_asked_for(qa: VideoQA, clips: list[Path]) -> None:
    first = qa.encode_video(clips[0])
    without, with_frames = qa.encode_video(clips[0]), qa.encode_video(clips[0], with_frames=True)
    assert (without.cache, without.frames) == ("hit", None)
    assert (with_frames.cache, set(with_frames.seconds)) == ("hit", {"decode"})
    assert with_frames.frames is not None
    assert with_frames.frames.pts_seconds == first.tokens.pts_seconds
    assert with_frames.frames.frames_thwc_u8.shape == (FRAMES, SMALL.image_size, SMALL.image_size, 3)


def test_progress_is_told(qa: VideoQA, clips: list[Path]) -> None:
    told: list[tuple[int, int]] = []
    qa.encode_video(clips[0], progress=lambda done, of: told.append((done, of)))
    assert told[-1] == (FRAMES, FRAMES)
    assert [done for done, _ in told] == sorted(done for done, _ in told)


def test_streaming_gives_the_same_text_in_pieces(shared: VideoQA, clips: list[Path]) -> None:
    params = SamplingParams(max_tokens=30)
    whole = shared.ask(clips[0], QUESTION, params).text
    pieces = list(shared.stream(clips[0], QUESTION, params))
    assert "".join(pieces) == whole
    assert len(pieces) > 1


def test_a_stream_that_is_left_stops_and_the_next_question_is_answered(shared: VideoQA, clips: list[Path]) -> None:
    video = shared.encode_video(clips[0])
    expected = shared.ask(video, QUESTION, SHORT).text
    stream = shared.stream(video, QUESTION, SamplingParams(max_tokens=400))
    next(stream)
    stream.close()
    assert shared.ask(video, QUESTION, SHORT).text == expected


def test_a_seed_repeats_a_sampled_answer(shared: VideoQA, clips: list[Path]) -> None:
    video = shared.encode_video(clips[0])

    def sampled(seed: int) -> str:
        return shared.ask(video, QUESTION, SamplingParams(max_tokens=12, temperature=1.0, seed=seed)).text

    assert sampled(1) == sampled(1)
    assert len({sampled(seed) for seed in range(4)}) > 1


def test_threads_may_ask_at_once(shared: VideoQA, clips: list[Path]) -> None:
    videos = [shared.encode_video(clip) for clip in clips]
    tasks = [(video, f"{QUESTION} {word}") for video in videos for word in ("red", "green", "blue")]
    expected = [shared.ask(video, question, SHORT).text for video, question in tasks]
    together = threading.Barrier(len(tasks), timeout=30)

    def ask(task: int) -> Answer:
        together.wait()
        return shared.ask(*tasks[task], SHORT)

    with ThreadPoolExecutor(len(tasks)) as pool:
        answers = list(pool.map(ask, range(len(tasks))))
    assert [answer.text for answer in answers] == expected


def test_tokens_of_another_checkpoint_are_refused(qa: VideoQA, clips: list[Path], tmp_path: Path) -> None:
    other = save_random_checkpoint(tmp_path / "other", seed=1)
    with VideoQA.from_pretrained(other, num_frames=FRAMES) as stranger:
        video = stranger.encode_video(clips[0])
    with pytest.raises(FingerprintMismatchError, match=video.tokens.fingerprint[:12]):
        qa.ask(video, QUESTION)


def test_checkpoints_may_share_a_cache(checkpoint: Path, clips: list[Path], tmp_path: Path) -> None:
    cache = TokenCache(MemoryStore(2**24))
    for folder in (checkpoint, save_random_checkpoint(tmp_path / "other", seed=1)):
        qa = VideoQA.from_pretrained(folder, keep_ratio=0.25, num_frames=FRAMES, cache=cache)
        assert [qa.encode_video(clips[0]).cache for _ in range(2)] == ["miss", "hit"]


@pytest.mark.parametrize("source", ["/no/such/clip.mp4", Path("/no/such/clip.mp4"), ""])
def test_a_path_that_names_no_file(qa: VideoQA, source: str | Path) -> None:
    with pytest.raises(VideoNotFoundError, match=f"there is no file '{source}'"):
        qa.encode_video(source)


def test_a_folder_is_no_file(qa: VideoQA, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedMediaError, match="not a regular file"):
        qa.encode_video(tmp_path)


@pytest.mark.parametrize("url", ["https://example.com/clip.mp4", "data:video/mp4;base64," + "A" * 9999, "s3://x/y"])
def test_a_url_is_not_fetched(qa: VideoQA, url: str) -> None:
    for use in (qa.encode_video, lambda source: qa.ask(source, QUESTION)):
        with pytest.raises(VideoNotFoundError, match=r"is a URL.*give a path, bytes or a binary file object") as told:
            use(url)
        assert len(str(told.value)) < 400


@pytest.mark.parametrize("source", [None, np.zeros((2, 4, 4, 3)), Image.new("RGB", (4, 4)), io.StringIO("text"), 7])
def test_what_is_no_source_is_named(qa: VideoQA, source: Any) -> None:
    for use in (qa.encode_video, lambda source: qa.ask(source, QUESTION)):
        words = "binary mode" if isinstance(source, io.StringIO) else f"binary file object, got {type(source).__name__}"
        with pytest.raises(InvalidRequestError, match=words):
            use(source)


def test_a_pipe_is_read_once(shared: VideoQA, clips: list[Path]) -> None:
    expected = shared.ask(clips[0], QUESTION, SHORT).text
    with subprocess.Popen(["cat", clips[0]], stdout=subprocess.PIPE) as cat:
        assert shared.ask(cast("BinaryIO", cat.stdout), QUESTION, SHORT).text == expected


def test_a_file_that_is_too_large_is_not_read(checkpoint: Path, tmp_path: Path) -> None:
    """A hole of a tebibyte, which nobody could read in a test's time."""
    with (tmp_path / "huge.mp4").open("wb") as file:
        file.truncate(2**40)
    with VideoQA.from_pretrained(checkpoint, limits=MediaLimits(max_bytes=1000)) as qa:
        assert qa.limits.max_bytes == 1000
        for use in (qa.encode_video, lambda source: qa.ask(source, QUESTION)):
            with pytest.raises(MediaLimitError, match=f"{2**40} bytes, more than the 1000 allowed"):
                use(tmp_path / "huge.mp4")


def test_what_is_no_video_is_refused(qa: VideoQA, checkpoint: Path) -> None:
    for source in (b"", b"not a video", checkpoint / "config.json", io.BytesIO(b"x" * 1000)):
        with pytest.raises(UnsupportedMediaError):
            qa.encode_video(source)


def test_bad_parameters_are_refused_before_anything_is_decoded(qa: VideoQA) -> None:
    """The bytes are no video, which nobody notices."""
    with pytest.raises(InvalidRequestError, match="nonsense"):
        qa.encode_video(b"x", prune=PruneSpec(method="nonsense"))
    with pytest.raises(InvalidRequestError, match=f"more than the {PATCHES} patches"):
        qa.encode_video(b"x", prune=PruneSpec(keep_tokens=PATCHES + 1))


def test_bad_questions_are_refused(shared: VideoQA, clips: list[Path]) -> None:
    video = shared.encode_video(clips[0])
    for question in ("", "  \n", "look <video> here"):
        with pytest.raises(InvalidRequestError):
            shared.ask(video, question)
    with pytest.raises(ContextLengthError, match=str(SMALL.context_length)):
        shared.ask(video, QUESTION, SamplingParams(max_tokens=SMALL.context_length))


def test_limits_hold(checkpoint: Path, clips: list[Path]) -> None:
    with VideoQA.from_pretrained(checkpoint, limits=MediaLimits(max_num_frames=3), num_frames=4) as qa:
        with pytest.raises(MediaLimitError, match="4"):
            qa.encode_video(clips[0])
        assert qa.encode_video(clips[0], sampling=FrameSampling(3)).tokens.num_frames == 3


def test_each_half_is_loaded_when_it_is_needed(checkpoint: Path, clips: list[Path], loaded: list[str]) -> None:
    with VideoQA.from_pretrained(checkpoint, num_frames=FRAMES) as qa:
        assert loaded == []
        video = qa.encode_video(clips[0])
        assert loaded == ["load_vision"]
        qa.ask(video, QUESTION, SHORT)
        qa.ask(clips[1], QUESTION, SHORT)
        assert loaded == ["load_vision", "load_language"]


def test_threads_that_come_first_share_one_model(qa: VideoQA, clips: list[Path], loaded: list[str]) -> None:
    together = threading.Barrier(4, timeout=30)

    def ask(clip: Path) -> str:
        together.wait()
        return qa.ask(clip, QUESTION, SHORT).text

    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(ask, [clips[0]] * 4))) == 1
    assert sorted(loaded) == ["load_language", "load_vision"]


def test_a_cache_that_was_given_is_not_closed(shared: VideoQA, clips: list[Path]) -> None:
    cache = TokenCache(MemoryStore(2**24))
    for state in ("miss", "hit"):
        with VideoQA(shared.facts, cache=cache) as qa:
            assert qa.encode_video(clips[0]).cache == state


def test_closing_ends_the_engine_and_may_be_repeated(checkpoint: Path, clips: list[Path]) -> None:
    def engine_threads() -> set[threading.Thread]:
        return set(threading.enumerate()) - before

    before = set(threading.enumerate())
    with VideoQA.from_pretrained(checkpoint, num_frames=FRAMES) as qa:
        qa.ask(clips[0], QUESTION, SHORT)
        assert engine_threads()
    assert not engine_threads()
    qa.close()


def test_a_second_question_about_a_video_reuses_what_the_first_computed(shared: VideoQA, clips: list[Path]) -> None:
    with VideoQA(shared.facts, prune=PruneSpec(keep_tokens=PATCHES), sampling=FrameSampling(8)) as qa:
        first, other = (qa.encode_video(clip) for clip in clips[:2])
        num_visual = first.tokens.tokens_kept
        assert num_visual >= 32
        answers = [qa.ask(video, QUESTION, SHORT) for video in (first, other, first, clips[0])]
        cached = [answer.usage.cached_tokens for answer in answers]
        assert cached[:2] == [0, 0]
        assert cached[2] == cached[3] >= num_visual // 16 * 16
        assert answers[2].text == answers[3].text == answers[0].text
        smaller = qa.encode_video(clips[0], prune=PruneSpec(keep_tokens=PATCHES - 1))
        assert qa.ask(smaller, QUESTION, SHORT).usage.cached_tokens == 0  # other tokens
        assert replace(first, identity=None).tokens is first.tokens
        assert qa.ask(replace(first, identity=None), QUESTION, SHORT).usage.cached_tokens == 0


def test_a_broken_engine_is_replaced_by_the_next_question(
    shared: VideoQA, clips: list[Path], caplog: pytest.LogCaptureFixture
) -> None:
    def fail(module: torch.nn.Module, args: object) -> None:
        raise RuntimeError("out of memory")

    with VideoQA(shared.facts, sampling=FrameSampling(FRAMES)) as qa, caplog.at_level(logging.CRITICAL):
        video = qa.encode_video(clips[0])
        before = qa.ask(video, QUESTION, SHORT).text
        broken = qa.engine
        assert isinstance(broken, PagedEngine)
        broken._model.register_forward_pre_hook(fail)
        with pytest.raises(UnavailableError, match="out of memory"):
            qa.ask(video, QUESTION, SHORT)
        assert qa.ask(video, QUESTION, SHORT).text == before
        assert qa.engine is not broken
    with pytest.raises(UnavailableError, match="closed"):  # this end was wanted
        qa.ask(video, QUESTION, SHORT)


def test_opening_fails_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no model folder"):
        VideoQA.from_pretrained(tmp_path / "nothing")
    with pytest.raises(InvalidRequestError, match="keep_ratio or keep_tokens"):
        VideoQA.from_pretrained(tmp_path / "nothing", keep_ratio=0.1, keep_tokens=3)
    with pytest.raises(InvalidRequestError, match="num_frames"):
        VideoQA.from_pretrained("mini", num_frames=0)


def test_mini_is_a_model_like_any_other(clips: list[Path]) -> None:
    with VideoQA.from_pretrained("mini", num_frames=2) as qa:
        assert qa.facts.name == MINI_NAME
        assert qa.encode_video(clips[0]).tokens.num_frames == 2
