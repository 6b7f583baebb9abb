"""A random model, a few tiny videos, and questions about them."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from fastervlm_video import VideoQA
from fastervlm_video.eval.datasets import Dataset, read_jsonl
from fastervlm_video.media import write_video
from tests.checkpoints import random_frames, save_random_checkpoint

NUM_VIDEOS = 4
QUESTIONS = {
    "color": "what color is the square ?",
    "count": "how many shapes are there ?",
    "motion": "does the circle move left ?",
}


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def write_folder(folder: Path, num_videos: int = NUM_VIDEOS) -> Path:
    """Videos and ``questions.jsonl``."""
    (folder / "videos").mkdir(parents=True)
    with (folder / "questions.jsonl").open("w") as file:
        for index in range(num_videos):
            name = f"videos/{index:04}.mp4"
            write_video(folder / name, random_frames(8, 32, 40, seed=index), fps=4)
            for number, (kind, question) in enumerate(QUESTIONS.items()):
                answer = ("red", "two", "yes")[(index + number) % 3]
                record = {
                    "video": name,
                    "id": f"{index}-{number}",
                    "question": question,
                    "answer": answer,
                    "type": kind,
                }
                file.write(json.dumps(record) + "\n")
    return folder / "questions.jsonl"


def coverage(video: str, pts_seconds: Sequence[float], grid: tuple[int, int]) -> npt.NDArray[np.float32]:
    """Objects on a few patches that differ from video to video and from frame to frame."""
    generator = np.random.default_rng(len(video) + int(video[-5]))
    shape = (len(pts_seconds), grid[0] * grid[1])
    covered: npt.NDArray[np.float32] = (generator.random(shape) * (generator.random(shape) < 0.2)).astype(np.float32)
    return covered


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_random_checkpoint(tmp_path_factory.mktemp("eval") / "model")


@pytest.fixture(scope="session")
def qa(checkpoint: Path) -> Iterator[VideoQA]:
    with VideoQA.from_pretrained(checkpoint, device="cpu") as qa:
        yield qa


@pytest.fixture(scope="session")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("eval") / "data")


@pytest.fixture
def dataset(questions: Path) -> Dataset:
    return read_jsonl(questions)


@pytest.fixture
def mini_like(dataset: Dataset) -> Dataset:
    """One that knows where its objects are."""
    return Dataset(dataset.name, dataset.folder, dataset.samples, coverage=coverage)
