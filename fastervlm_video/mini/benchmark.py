"""The mini benchmark: real video files of synthetic scenes, questions about them, and where the objects are.

A benchmark is a folder that any reader of JSON lines understands::

    mini-heldout-v2-200/    the split, its version, how many videos
        questions.jsonl     {"id", "video", "question", "answer", "type"}, one object per line
        videos/00000.mp4 …
        scenes.npz          what was drawn, for the oracle that knows the objects
"""

import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from fastervlm_video.errors import InvalidRequestError
from fastervlm_video.media import write_video
from fastervlm_video.mini.questions import ask_about
from fastervlm_video.mini.render import frame_times, object_coverage, render_scenes
from fastervlm_video.mini.scenes import OUT_OF_DISTRIBUTION, STANDARD, Scenes, SceneStyle, sample_scenes

__all__ = ["QUESTIONS_FILE", "Split", "ensure_benchmark", "video_coverage"]

Split = Literal["heldout", "ood"]

QUESTIONS_FILE = "questions.jsonl"
_SCENES_FILE = "scenes.npz"
_ASKED_AT = frame_times(8)  # what eight evenly spread frames can show is asked for


@dataclass(frozen=True, slots=True)
class _Format:
    """How a video is stored."""

    suffix: str
    codec: str
    height: int
    width: int
    fps: int
    num_frames: int
    options: tuple[tuple[str, str], ...] = ()


# Macroblock-tree rate control depends on how threads interleave; without it the same scenes give the same bytes.
_X264 = (("preset", "veryfast"), ("x264-params", "mbtree=0"))
_STANDARD_FORMAT = _Format(".mp4", "libx264", 224, 224, 8, 32, (("crf", "23"), *_X264))
_OTHER_FORMATS = (
    _Format(".mp4", "libx264", 180, 320, 12, 40, (("crf", "33"), *_X264)),
    _Format(
        ".webm",
        "libvpx-vp9",
        240,
        320,
        10,
        36,
        (("crf", "34"), ("b", "0"), ("deadline", "realtime"), ("cpu-used", "8")),
    ),
    _Format(".avi", "mpeg4", 256, 192, 15, 60, (("qscale", "6"),)),
    _Format(".mkv", "libx264", 336, 336, 24, 49, (("crf", "28"), *_X264)),
    _Format(".mp4", "libx264", 144, 176, 8, 25, (("crf", "26"), *_X264)),
)


@dataclass(frozen=True, slots=True)
class _Plan:
    """How a split is made. Its version changes with anything that changes what is in the folder."""

    version: int
    seed: int
    style: SceneStyle
    formats: tuple[_Format, ...]


_PLANS: dict[Split, _Plan] = {
    "heldout": _Plan(2, 7_000_001, STANDARD, (_STANDARD_FORMAT,)),
    "ood": _Plan(3, 7_000_002, OUT_OF_DISTRIBUTION, _OTHER_FORMATS),
}


def ensure_benchmark(cache_dir: Path, split: Split, num_videos: int) -> Path:
    """The benchmark's folder, made on first use (a few videos a second).

    Args:
        cache_dir: where benchmarks are kept.
        split: ``heldout``: scenes like those of the training, from other seeds; ``ood``: more objects, other
            backgrounds, a camera that shakes, more noise, and other codecs and sizes.
        num_videos: how many; a smaller benchmark is the beginning of a larger one.

    Raises:
        InvalidRequestError: unknown split, or no videos asked for.
    """
    if split not in get_args(Split) or num_videos < 1:
        raise InvalidRequestError(
            f"a benchmark is one of {', '.join(get_args(Split))}, with one video or more; got {split!r}, {num_videos}"
        )
    folder = cache_dir / f"mini-{split}-v{_PLANS[split].version}-{num_videos}"
    if (folder / QUESTIONS_FILE).is_file():
        return folder
    cache_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache_dir, prefix=".making-") as scratch:
        made = Path(scratch) / "benchmark"
        _make(made, split, num_videos)
        try:
            os.rename(made, folder)
        except OSError:
            if not (folder / QUESTIONS_FILE).is_file():  # otherwise another process was faster
                raise
    return folder


def _make(folder: Path, split: Split, num_videos: int) -> None:
    (folder / "videos").mkdir(parents=True)
    plan = _PLANS[split]
    lines, scenes, durations, names = [], [], [], []
    for index in range(num_videos):
        rng = np.random.default_rng((plan.seed, index))
        form = plan.formats[index % len(plan.formats)]
        name = f"videos/{index:05d}{form.suffix}"
        scene = _write(folder / name, rng, plan.style, form)
        for number, question in enumerate(ask_about(scene, 0, _ASKED_AT, rng)):
            lines.append(
                {
                    "id": f"{split}-{index:05d}-{number:02d}",
                    "video": name,
                    "question": question.text,
                    "answer": question.answer,
                    "type": question.kind,
                }
            )
        scenes.append(scene)
        names.append(name)
        durations.append((form.num_frames - 1) / form.fps)
    arrays = Scenes.join(scenes).arrays
    if plan.style.camera_shake:
        arrays["camera_shake"] = np.array(plan.style.camera_shake)  # all of the style that coverage depends on
    np.savez(folder / _SCENES_FILE, video=np.array(names), duration_seconds=np.array(durations), **arrays)
    (folder / QUESTIONS_FILE).write_text("".join(json.dumps(line) + "\n" for line in lines))


def _write(path: Path, rng: np.random.Generator, style: SceneStyle, form: _Format) -> Scenes:
    scene = sample_scenes(rng, 1, style)
    frames = render_scenes(scene, frame_times(form.num_frames)[None], height=form.height, width=form.width)[0]
    write_video(
        path,
        frames,
        fps=form.fps,
        codec=form.codec,
        codec_options=dict(form.options),
        container_options={"fflags": "+bitexact"},  # otherwise Matroska's muxer writes random numbers
    )
    return scene


@lru_cache(maxsize=8)
def _scenes(folder: Path) -> tuple[dict[str, int], npt.NDArray[np.float64], Scenes]:
    with np.load(folder / _SCENES_FILE) as stored:
        arrays = dict(stored)
    rows = {str(name): row for row, name in enumerate(arrays.pop("video"))}
    durations = arrays.pop("duration_seconds")
    style = replace(STANDARD, camera_shake=float(arrays.pop("camera_shake", 0.0)))
    return rows, durations, Scenes(**arrays, style=style)


def video_coverage(
    folder: Path, video: str, pts_seconds: Sequence[float], grid: tuple[int, int]
) -> npt.NDArray[np.float32]:
    """Where the objects of one of a benchmark's videos are in its pictures, however the camera shakes.

    Args:
        folder: what :func:`ensure_benchmark` returned.
        video: the video's name in ``questions.jsonl``.
        pts_seconds: presentation times of T frames.
        grid: (rows, columns) of the model's patches.

    Returns:
        float32 [T, rows * columns]: the share of each patch that the object covering most of it covers.

    Raises:
        InvalidRequestError: there is no such video.
    """
    rows, durations, scenes = _scenes(folder)
    if video not in rows:
        raise InvalidRequestError(f"{folder} has no video {video!r}")
    row = rows[video]
    times = np.asarray(pts_seconds, np.float32)[None] / np.float32(durations[row])
    most: npt.NDArray[np.float32] = object_coverage(scenes[row : row + 1], times, grid)[0].max(axis=0)
    return most
