"""From a seed to the mini model's weights."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from transformers import CLIPVisionConfig, CLIPVisionModel, VideoLlavaForConditionalGeneration

from fastervlm_video.errors import InvalidRequestError
from fastervlm_video.mini.checkpoint import MiniSize, image_processor, mini_config, write_checkpoint
from fastervlm_video.mini.scenes import CLOSE_UP, SceneStyle
from fastervlm_video.mini.scenes import STANDARD as STANDARD_SCENES
from fastervlm_video.mini.training.clips import Corpus, make_corpus
from fastervlm_video.mini.training.features import FeatureSet, extract_features
from fastervlm_video.mini.training.loop import Report, Schedule
from fastervlm_video.mini.training.train_language import (
    Course,
    Lesson,
    accuracy_by_kind,
    start_language,
    train_language,
)
from fastervlm_video.mini.training.train_tower import objects_found, train_tower
from fastervlm_video.vision import Preprocessing, VisionTower
from fastervlm_video.vision.tower import tower_depth

__all__ = ["SMOKE", "STANDARD", "Recipe", "train_mini"]

_SEEDS_PER_RUN = 1_000  # videos of one run have nothing in common with those of another
_TRAINING, _VALIDATION, _CLOSE_UPS = 1, 2, 3
_REPORTED_BUDGETS = (0.1, 0.05)


@dataclass(frozen=True, slots=True)
class Recipe:
    """Every number that the weights follow from, besides the seed.

    Attributes:
        size: dimensions of the model.
        videos: in the training set.
        tower_videos: how many of them the tower is trained on; they are held in memory.
        close_up_videos: with objects of all sizes, for courses that show them, beside twice as many of the others.
        validation_videos: to report on.
        tower: schedule of phase 1.
        tower_batch: frames per step of phase 1.
        courses: phases 2 and 3, on the language half.
        question_tokens: per video and step of these.
    """

    size: MiniSize
    videos: int
    tower_videos: int
    close_up_videos: int
    validation_videos: int
    tower: Schedule
    tower_batch: int
    courses: tuple[Course, ...]
    question_tokens: int = 144


STANDARD = Recipe(
    size=MiniSize(),
    videos=14_000,
    tower_videos=7_000,
    close_up_videos=3_500,
    validation_videos=320,
    tower=Schedule(steps=1_800, learning_rate=1.5e-3),
    tower_batch=64,
    courses=(
        Course(
            "language",
            phase=2,
            schedule=Schedule(steps=3_000, learning_rate=2.5e-3, warmup=100, hold=0.5, weight_decay=0.02),
            lessons=(
                Lesson(until=0.25, frames=((1, 1.0),)),
                Lesson(until=0.75, frames=((1, 0.1), (2, 0.9))),
                Lesson(until=1.0, frames=((1, 0.1), (2, 0.1), (4, 0.8))),
            ),
        ),
        Course(
            "robustness",
            phase=3,
            schedule=Schedule(steps=2_500, learning_rate=2e-3, warmup=100, hold=0.2, weight_decay=0.02),
            lessons=(Lesson(until=1.0, frames=((1, 0.05), (2, 0.05), (4, 0.15), (8, 0.75))),),
            regularised=True,
            close_ups=True,
        ),
    ),
)
"""What the shipped weights were made with."""

SMOKE = Recipe(
    size=MiniSize(text_layers=2),
    videos=128,
    tower_videos=128,
    close_up_videos=32,
    validation_videos=16,
    tower=Schedule(steps=20, learning_rate=1.5e-3, warmup=5),
    tower_batch=16,
    courses=(
        Course(
            "language",
            phase=2,
            schedule=Schedule(steps=20, learning_rate=1.5e-3, warmup=5),
            lessons=(
                Lesson(until=0.5, frames=((1, 1.0),), tokens=512),
                Lesson(until=1.0, frames=((8, 1.0),), tokens=1024),
            ),
        ),
        Course(
            "robustness",
            phase=3,
            schedule=Schedule(steps=5, learning_rate=1e-3, warmup=2),
            lessons=(Lesson(until=1.0, frames=((8, 1.0),), tokens=1024),),
            regularised=True,
            close_ups=True,
        ),
    ),
)
"""The same steps in a minute, to see that they work; it learns nothing."""


def train_mini(
    work: Path,
    output: Path,
    *,
    recipe: Recipe = STANDARD,
    seed: int = 0,
    workers: int = 2,
    report: Callable[[Report], None] = lambda _: None,
) -> dict[str, float]:
    """Make the mini model.

    Interrupted, it goes on from where it was when it is called again with the same arguments.

    Args:
        work: folder for training data and state; several gigabytes.
        output: the checkpoint's folder.
        recipe: every number.
        seed: of everything.
        workers: processes that render videos, and threads that torch uses in this process from then on.
        report: called with the progress of each phase.

    Returns:
        What was measured on the validation videos, by name; also in ``log.jsonl`` in ``work``, with the curves.

    Raises:
        InvalidRequestError: ``work`` holds a training with another recipe or seed.
    """
    work.mkdir(parents=True, exist_ok=True)
    _claim(work, recipe, seed)
    log = _logging(work / "log.jsonl", report)
    torch.set_num_threads(workers)
    size, config = recipe.size, mini_config(recipe.size)
    vision = config.vision_config
    assert isinstance(vision, CLIPVisionConfig)  # what mini_config makes
    preprocessing = Preprocessing.from_config(json.loads(image_processor(size).to_json_string()))
    make = partial(_corpus, side=size.image_size, workers=workers, log=log)
    training = make(work / "train", recipe.videos, seed=seed * _SEEDS_PER_RUN + _TRAINING)
    validation = make(work / "validation", recipe.validation_videos, seed=seed * _SEEDS_PER_RUN + _VALIDATION)
    close = make(work / "close-ups", recipe.close_up_videos, seed=seed * _SEEDS_PER_RUN + _CLOSE_UPS, style=CLOSE_UP)
    first = slice(0, recipe.tower_videos)
    clip = train_tower(
        Corpus(training.scenes[first], np.array(training.frames_u8[first])),
        vision,
        size.feature_layer,
        preprocessing,
        recipe.tower,
        batch=recipe.tower_batch,
        seed=seed,
        state=work / "tower.pt",
        report=log,
    )
    tower, measured = _finished_tower(clip, size, work), {}
    for ratio in _REPORTED_BUDGETS:
        keep = max(1, round(ratio * tower.grid[0] * tower.grid[1]))
        measured[f"objects found by {keep}"] = objects_found(tower, preprocessing, validation, keep)
    data = _features(training, tower, preprocessing, work / "train.npy", log)
    held_out = _features(validation, tower, preprocessing, work / "validation.npy", log)
    close_data = _features(close, tower, preprocessing, work / "close-ups.npy", log)
    model = _assemble(clip, recipe, seed, data)
    for course in recipe.courses:
        train_language(
            model,
            data.first(2 * recipe.close_up_videos) + close_data if course.close_ups else data,
            course,
            question_tokens=recipe.question_tokens,
            seed=seed,
            state=work / f"{course.name}.pt",
            report=log,
        )
    measured |= accuracy_by_kind(model, held_out)
    log(Report("done", 1, 1, measured))
    write_checkpoint(model.half(), output, size)
    return measured


def _claim(work: Path, recipe: Recipe, seed: int) -> None:
    """A folder's state belongs to one recipe and one seed."""
    claim, path = json.dumps({"seed": seed, "recipe": asdict(recipe)}, indent=1), work / "recipe.json"
    if not path.is_file():
        scratch = path.with_suffix(".part")
        scratch.write_text(claim)
        scratch.rename(path)
    elif path.read_text() != claim:
        raise InvalidRequestError(f"{work} holds a training with another recipe or seed: remove it or choose another")


def _logging(path: Path, report: Callable[[Report], None]) -> Callable[[Report], None]:
    def log(progress: Report) -> None:
        if progress.values:
            with path.open("a") as lines:
                lines.write(json.dumps(asdict(progress)) + "\n")
        report(progress)

    return log


def _corpus(
    folder: Path,
    count: int,
    *,
    seed: int,
    side: int,
    workers: int,
    log: Callable[[Report], None],
    style: SceneStyle = STANDARD_SCENES,
) -> Corpus:
    def progress(done: int) -> None:
        log(Report(f"{folder.name} videos", done, count, {}))

    return make_corpus(folder, seed=seed, count=count, side=side, workers=workers, style=style, progress=progress)


def _features(
    corpus: Corpus, tower: VisionTower, preprocessing: Preprocessing, path: Path, log: Callable[[Report], None]
) -> FeatureSet:
    def progress(done: int) -> None:
        log(Report(f"{path.stem} features", done, len(corpus), {}))

    found = extract_features(corpus, tower, preprocessing, path, progress=progress)
    return FeatureSet(found.scenes, np.array(found.features))  # in memory: training reads it at random


def _finished_tower(clip: CLIPVisionModel, size: MiniSize, work: Path) -> VisionTower:
    """The tower as the service will run it."""
    clip.save_pretrained(work / "tower")
    depth = tower_depth(size.feature_layer, size.vision_layers)
    return VisionTower(CLIPVisionModel.from_pretrained(work / "tower", attn_implementation="sdpa"), depth)


def _assemble(clip: CLIPVisionModel, recipe: Recipe, seed: int, data: FeatureSet) -> VideoLlavaForConditionalGeneration:
    """The whole model, with the trained tower for videos and for images, and a language half to be trained."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = VideoLlavaForConditionalGeneration(mini_config(recipe.size))
    for tower in (model.model.video_tower, model.model.image_tower):
        tower.load_state_dict(clip.state_dict())
    start_language(model, data.features, seed)
    return model
