"""Training frames that went the way a user's video goes: H.264 encoded, decoded, and preprocessed."""

import os
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fastervlm_video.config import FrameResize, FrameSampling
from fastervlm_video.media import decode_video, write_video
from fastervlm_video.mini.render import frame_times, render_scenes
from fastervlm_video.mini.scenes import STANDARD, Scenes, SceneStyle, sample_scenes

__all__ = ["NUM_FRAMES", "Corpus", "clip_frames", "make_clips", "make_corpus"]

NUM_FRAMES = 8
_CHUNK = 64
_LARGE_SHARE = 0.25  # of the videos are rendered at twice the size, so that resizing is seen too
_FRAMES, _SCENES = "frames.npy", "scenes.npz"
_QUALITY = (18, 32)  # range of H.264's constant rate factor


@dataclass(frozen=True, slots=True, eq=False)
class Corpus:
    """Training videos on disk.

    Attributes:
        scenes: N of them.
        frames_u8: uint8 [N, 8, side, side, 3], mapped into memory.
    """

    scenes: Scenes
    frames_u8: npt.NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.scenes)

    @classmethod
    def open(cls, folder: Path) -> "Corpus":
        """What :func:`make_corpus` has made."""
        with np.load(folder / _SCENES) as arrays:
            scenes = Scenes(**arrays)
        return cls(scenes, np.load(folder / _FRAMES, mmap_mode="r"))


def make_corpus(
    folder: Path,
    *,
    seed: int,
    count: int,
    side: int,
    workers: int,
    style: SceneStyle = STANDARD,
    progress: Callable[[int], None] = lambda _: None,
) -> Corpus:
    """Make training videos, unless ``folder`` holds them already; see :func:`make_clips`."""
    if not (folder / _SCENES).is_file():
        folder.mkdir(parents=True, exist_ok=True)
        frames = np.lib.format.open_memmap(
            folder / _FRAMES, mode="w+", dtype=np.uint8, shape=(count, NUM_FRAMES, side, side, 3)
        )
        parts, done = [], 0
        for scenes, clips in make_clips(seed, count, side, workers=workers, style=style):
            frames[done : done + len(clips)] = clips
            parts.append(scenes)
            done += len(clips)
            progress(done)
        frames.flush()
        _save_scenes(folder / _SCENES, parts)  # last: it says that the frames are complete
    return Corpus.open(folder)


def _save_scenes(path: Path, parts: list[Scenes]) -> None:
    scratch = path.with_suffix(".part.npz")
    np.savez(scratch, **Scenes.join(parts).arrays)
    scratch.rename(path)


def make_clips(
    seed: int, count: int, side: int, *, workers: int, style: SceneStyle = STANDARD
) -> Iterator[tuple[Scenes, npt.NDArray[np.uint8]]]:
    """Scenes and their frames, in chunks.

    Args:
        seed: decides everything, whatever the number of workers.
        count: how many videos.
        side: of the model's frames, in pixels.
        workers: processes to use.
        style: of the scenes.

    Yields:
        B scenes, and uint8 [B, 8, side, side, 3].
    """
    starts = range(0, count, _CHUNK)
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        yield from pool.map(_chunk, *zip(*_jobs(seed, starts, count, side, style), strict=True))


def _jobs(
    seed: int, starts: range, count: int, side: int, style: SceneStyle
) -> Iterator[tuple[int, int, int, int, SceneStyle]]:
    return ((seed, start, min(_CHUNK, count - start), side, style) for start in starts)


def _chunk(seed: int, start: int, count: int, side: int, style: SceneStyle) -> tuple[Scenes, npt.NDArray[np.uint8]]:
    rng = np.random.default_rng((seed, start))
    scenes = sample_scenes(rng, count, style)
    frames = [clip_frames(scenes[index : index + 1], rng, side) for index in range(count)]
    return scenes, np.stack(frames)


def clip_frames(scene: Scenes, rng: np.random.Generator, side: int) -> npt.NDArray[np.uint8]:
    """The frames of one scene after H.264 and the preprocessor's resizing.

    Returns:
        uint8 [8, side, side, 3].
    """
    size = 2 * side if rng.random() < _LARGE_SHARE else side
    frames = render_scenes(scene, frame_times(NUM_FRAMES)[None], height=size, width=size)[0]
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "clip.mp4")
        options = {"crf": str(int(rng.integers(*_QUALITY))), "preset": "ultrafast"}
        write_video(path, frames, fps=NUM_FRAMES, codec_options=options)
        resize = FrameResize(shortest_edge=side, crop=(side, side))
        return decode_video(path, FrameSampling(NUM_FRAMES), resize=resize).frames_thwc_u8
