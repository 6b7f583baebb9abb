import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastervlm_video.config import FrameResize, FrameSampling
from fastervlm_video.errors import InvalidRequestError
from fastervlm_video.media import FrameBatch, decode_video, instants
from fastervlm_video.mini import benchmark
from fastervlm_video.mini.benchmark import QUESTIONS_FILE, Split, ensure_benchmark, video_coverage
from fastervlm_video.mini.questions import QUESTION_TYPES, ask_about
from fastervlm_video.mini.render import object_coverage
from fastervlm_video.mini.scenes import COLORS, OUT_OF_DISTRIBUTION, STANDARD, Scenes
from tests.mini.kit import draw, nearest_color, read, seen_objects

SIDE = 112
FINE = 28  # patches per side, of four pixels each
VIVID = 60  # least difference between the channels of an object; backgrounds are nearly grey
STORED = tuple(draw(0).arrays)

Line = dict[str, str]
Make = Callable[[Split, int], Path]


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    cache = tmp_path_factory.mktemp("benchmarks")
    return lambda split, num_videos: ensure_benchmark(cache, split, num_videos)


def lines_of(folder: Path) -> list[Line]:
    return [json.loads(line) for line in (folder / QUESTIONS_FILE).read_text().splitlines()]


def videos_of(folder: Path) -> list[str]:
    return sorted(f"videos/{path.name}" for path in (folder / "videos").iterdir())


def decoded(folder: Path, video: str, num_frames: int = 8) -> FrameBatch:
    resize = FrameResize(shortest_edge=SIDE, crop=(SIDE, SIDE))
    return decode_video(folder / video, FrameSampling(num_frames), resize=resize)


@pytest.mark.parametrize(("split", "num_videos"), [("heldout", 3), ("ood", 5)])
def test_a_benchmark_is_videos_and_questions_about_them(make: Make, split: Split, num_videos: int) -> None:
    folder = make(split, num_videos)
    lines, videos = lines_of(folder), videos_of(folder)
    assert {path.name for path in folder.iterdir()} == {QUESTIONS_FILE, "videos", "scenes.npz"}
    assert len(videos) == num_videos
    assert {line["video"] for line in lines} == set(videos)
    assert len({line["id"] for line in lines}) == len(lines)
    for line in lines:
        assert set(line) == {"id", "video", "question", "answer", "type"}
        assert line["id"].startswith(f"{split}-{Path(line['video']).stem}-")
        assert line["type"] in QUESTION_TYPES
        assert line["question"].endswith("?")
    assert make(split, num_videos) == folder
    assert folder.name == {"heldout": "mini-heldout-v2-3", "ood": "mini-ood-v3-5"}[split]


@pytest.mark.parametrize(("split", "fewer", "more"), [("heldout", 2, 3), ("ood", 1, 5)])
def test_a_small_benchmark_is_the_beginning_of_a_larger_one(make: Make, split: Split, fewer: int, more: int) -> None:
    small, large = make(split, fewer), make(split, more)
    assert small != large
    assert videos_of(small) == videos_of(large)[:fewer]
    assert lines_of(small) == [line for line in lines_of(large) if line["video"] in videos_of(small)]
    for video in videos_of(small):
        assert (small / video).read_bytes() == (large / video).read_bytes(), video


def test_held_out_videos_are_alike_and_the_others_are_of_all_kinds(make: Make) -> None:
    held_out = [decoded(make("heldout", 3), video).info for video in videos_of(make("heldout", 3))]
    assert {(info.width, info.height, info.codec) for info in held_out} == {(224, 224, "h264")}
    others = [decoded(make("ood", 5), video).info for video in videos_of(make("ood", 5))]
    assert {info.codec for info in others} == {"h264", "vp9", "mpeg4"}
    assert len({info.container for info in others}) >= 3
    assert len({(info.width, info.height) for info in others}) == 5
    assert all(info.duration_seconds > 1 for info in [*held_out, *others])


@pytest.mark.parametrize(("split", "num_videos"), [("heldout", 3), ("ood", 5)])
def test_coverage_is_where_the_decoded_frames_show_the_objects(make: Make, split: Split, num_videos: int) -> None:
    folder = make(split, num_videos)
    videos = videos_of(folder)
    with np.load(folder / "scenes.npz") as arrays:
        colors, counts = arrays["color"], arrays["count"]
    for row, video in enumerate(videos):
        batch = decoded(folder, video)
        covered = video_coverage(folder, video, batch.pts_seconds, (FINE, FINE))
        assert covered.shape == (8, FINE * FINE)
        assert covered.dtype == np.float32
        patches = batch.frames_thwc_u8.reshape(8, FINE, 4, FINE, 4, 3).mean(axis=(2, 4)).reshape(8, FINE * FINE, 3)
        names = {list(COLORS)[color] for color in colors[row, : counts[row]]}
        shifted = np.roll(covered.reshape(8, FINE, FINE), (FINE // 2, FINE // 2), axis=(1, 2)).reshape(covered.shape)
        inside, elsewhere = (
            [np.ptp(patch) > VIVID and nearest_color(patch) in names for patch in patches[where > 0.99]]
            for where in (covered, shifted)
        )
        assert len(inside) > 20
        assert np.mean(inside) > 0.7  # a post may stand in front, and objects jitter
        assert np.mean(elsewhere) < np.mean(inside) - 0.3


def test_coverage_follows_the_times_of_the_frames(make: Make) -> None:
    folder = make("heldout", 3)
    video = videos_of(folder)[0]
    times = decoded(folder, video).pts_seconds
    covered = video_coverage(folder, video, times, (8, 8))
    assert np.array_equal(video_coverage(folder, video, times[2:3], (8, 8)), covered[2:3])
    assert (covered[-1] != covered[0]).any()


def test_coverage_follows_the_camera(make: Make) -> None:
    """Videos on disk, too: what the camera does is read back with the scenes."""
    folder = make("ood", 5)
    with np.load(folder / "scenes.npz") as arrays:
        stored = {name: arrays[name] for name in STORED}
        durations = arrays["duration_seconds"]
    scenes = Scenes(**stored, style=OUT_OF_DISTRIBUTION)
    for row, video in enumerate(videos_of(folder)):
        pts = decoded(folder, video).pts_seconds
        times = np.asarray(pts, np.float32)[None] / np.float32(durations[row])
        covered = video_coverage(folder, video, pts, (FINE, FINE))
        assert np.array_equal(covered, object_coverage(scenes[row : row + 1], times, (FINE, FINE))[0].max(axis=0))
        at_rest = object_coverage(replace(scenes[row : row + 1], style=STANDARD), times, (FINE, FINE))[0].max(axis=0)
        assert not np.array_equal(covered, at_rest)


def shown_times(num_frames: int) -> list[float]:
    """Of the eight frames that decoding takes out of a video of so many, as shares of its duration."""
    return [int(moment) / (num_frames - 1) for moment in instants(0, num_frames - 1, 8)]


def test_answers_hold_for_the_frames_that_are_decoded() -> None:
    """They were worked out for eight moments; the frames on screen at these began a little earlier."""
    scenes, times = draw(0, 400, STANDARD), shown_times(benchmark._STANDARD_FORMAT.num_frames)
    for index in range(len(scenes)):
        seen = seen_objects(scenes, index, times)
        for question in ask_about(scenes, index, benchmark._ASKED_AT, np.random.default_rng(index)):
            kind, answer = read_unclear(question.text, seen)
            assert (kind, answer) == (question.kind, question.answer)


def test_nearly_all_answers_hold_for_videos_of_other_frame_rates() -> None:
    scenes, wrong, total = draw(1, 300, OUT_OF_DISTRIBUTION), 0, 0
    for index in range(len(scenes)):
        form = benchmark._OTHER_FORMATS[index % len(benchmark._OTHER_FORMATS)]
        seen = seen_objects(scenes, index, shown_times(form.num_frames))
        for question in ask_about(scenes, index, benchmark._ASKED_AT, np.random.default_rng(index)):
            wrong += read_unclear(question.text, seen) != (question.kind, question.answer)
            total += 1
    assert total > 3000
    assert wrong / total < 0.003


def read_unclear(text: str, seen: Any) -> tuple[str, str]:
    """As :func:`~tests.mini.kit.read`, with places taken for clear wherever they are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tests.mini.kit.CLEAR_OF_THE_MIDDLE", 0.0)
        return read(text, seen, 8)


@pytest.mark.parametrize(
    ("split", "num_videos", "message"),
    [
        ("train", 5, r"one of heldout, ood, with one video or more; got 'train', 5"),
        ("heldout", 0, "got 'heldout', 0"),
    ],
)
def test_what_is_no_benchmark_is_refused(tmp_path: Path, split: Any, num_videos: int, message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        ensure_benchmark(tmp_path, split, num_videos)
    assert list(tmp_path.iterdir()) == []


def test_a_video_that_is_not_in_the_benchmark_is_refused(make: Make) -> None:
    with pytest.raises(InvalidRequestError, match=r"has no video 'videos/00003.mp4'"):
        video_coverage(make("heldout", 3), "videos/00003.mp4", [0.0], (8, 8))


def test_a_benchmark_that_another_process_finished_first_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both find nothing and make one; the slower finds the place taken."""
    original = benchmark._make
    target = tmp_path / "mini-heldout-v2-1"

    def slow(folder: Path, split: Split, num_videos: int) -> None:
        original(folder, split, num_videos)
        original(target, split, num_videos)
        (target / "first").touch()

    monkeypatch.setattr(benchmark, "_make", slow)
    assert ensure_benchmark(tmp_path, "heldout", 1) == target
    assert (target / "first").exists()
    assert list(tmp_path.iterdir()) == [target]


def test_a_failure_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(folder: Path, split: Split, num_videos: int) -> None:
        folder.mkdir()
        (folder / QUESTIONS_FILE).write_text("")
        raise OSError("disk full")

    monkeypatch.setattr(benchmark, "_make", fail)
    with pytest.raises(OSError, match="disk full"):
        ensure_benchmark(tmp_path, "heldout", 1)
    assert list(tmp_path.iterdir()) == []


def test_processes_may_ask_for_it_at_once(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from fastervlm_video.mini.benchmark import ensure_benchmark;"
        "sys.stdin.read(1); print(ensure_benchmark(Path(sys.argv[1]), 'heldout', 2))"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "cache")]
    children = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for child in children:  # both have been started; now they may begin
        assert child.stdin is not None
        child.stdin.write("x")
        child.stdin.flush()
    results = [(*child.communicate(timeout=300), child.returncode) for child in children]
    assert all(status == 0 for _, _, status in results), results
    assert len({out for out, _, _ in results}) == 1
    (folder,) = (tmp_path / "cache").iterdir()
    assert len(videos_of(folder)) == 2
    assert lines_of(folder)
