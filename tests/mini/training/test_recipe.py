import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoTokenizer, VideoLlavaForConditionalGeneration

from fastervlm_video import VideoQA
from fastervlm_video.config import PruneSpec, SamplingParams
from fastervlm_video.errors import InvalidRequestError
from fastervlm_video.media import write_video
from fastervlm_video.mini import MiniSize, random_scene, render_scene
from fastervlm_video.mini.checkpoint import mini_config
from fastervlm_video.mini.questions import QUESTION_TYPES, Question
from fastervlm_video.mini.training import train_language as phase
from fastervlm_video.mini.training.loop import Report, Schedule
from fastervlm_video.mini.training.packing import QuestionTokens, pack, tokenize
from fastervlm_video.mini.training.recipe import SMOKE, STANDARD, Recipe, train_mini
from fastervlm_video.mini.vocabulary import WORDS
from tests.checkpoints import WEIGHTS

MOST_BYTES = 30e6
# Fewer and smaller steps on the same videos.
QUICK = replace(
    SMOKE,
    size=MiniSize(
        vision_width=32, vision_layers=3, vision_heads=2, text_width=32, text_layers=1, text_heads=2, context_length=600
    ),
    tower=Schedule(steps=4, learning_rate=1.5e-3, warmup=2),
    tower_batch=8,
    courses=tuple(replace(c, schedule=Schedule(steps=4, learning_rate=1.5e-3, warmup=2)) for c in SMOKE.courses),
)


@dataclass(frozen=True)
class Made:
    """A training that has been run to its end."""

    work: Path
    folder: Path
    measured: dict[str, float]
    reports: list[Report]


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)  # the training sets it to the number of its workers


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Made:
    base, reports = tmp_path_factory.mktemp("smoke"), list[Report]()
    measured = train_mini(base / "work", base / "mini", recipe=SMOKE, seed=1, workers=1, report=reports.append)
    return Made(base / "work", base / "mini", measured, reports)


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("video") / "scene.mp4"
    write_video(path, render_scene(random_scene(3), num_frames=16, height=112, width=112), fps=8)
    return path


def test_the_phases_follow_each_other_and_are_logged(smoke: Made) -> None:
    order = [name for name, _ in groupby(report.phase for report in smoke.reports)]
    assert order == [
        "train videos",
        "validation videos",
        "close-ups videos",
        "tower",
        "train features",
        "validation features",
        "close-ups features",
        "language",
        "robustness",
        "done",
    ]
    lines = [json.loads(line) for line in (smoke.work / "log.jsonl").read_text().splitlines()]
    assert [line["phase"] for line in lines] == ["tower", "language", "robustness", "done"]
    assert lines[-1]["values"] == smoke.measured
    assert set(smoke.measured) == {"objects found by 6", "objects found by 3", *QUESTION_TYPES}
    assert all(0 <= share <= 1 for share in smoke.measured.values())


def test_hugging_face_loads_the_result_with_no_key_left_over(smoke: Made) -> None:
    loading: Any = VideoLlavaForConditionalGeneration.from_pretrained
    model, report = loading(smoke.folder, output_loading_info=True)
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        assert not report[kind], kind
    assert model.config.text_config.num_hidden_layers == SMOKE.size.text_layers
    assert AutoTokenizer.from_pretrained(smoke.folder)("red circle")["input_ids"]


def test_the_weights_are_float16_and_small_and_both_towers_are_the_trained_one(smoke: Made) -> None:
    tensors = load_file(smoke.folder / WEIGHTS)
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}
    assert sum(path.stat().st_size for path in smoke.folder.iterdir()) < MOST_BYTES
    videos = {name: tensor for name, tensor in tensors.items() if "video_tower." in name}
    trained = torch.load(smoke.work / "tower.pt", weights_only=True)["module"]
    assert len(videos) > 20
    for name, tensor in videos.items():
        assert torch.equal(tensor, tensors[name.replace("video_tower.", "image_tower.")])
        assert torch.equal(tensor, trained["tower." + name.split("video_tower.")[1]].half())


@pytest.mark.parametrize("recipe", [STANDARD, SMOKE], ids=["standard", "smoke"])
def test_a_recipe_makes_sense(recipe: Recipe) -> None:
    model = VideoLlavaForConditionalGeneration(mini_config(recipe.size))
    assert 2 * sum(parameter.numel() for parameter in model.parameters()) < 0.95 * MOST_BYTES
    for course in recipe.courses:
        ends = [lesson.until for lesson in course.lessons]
        assert all(first < then for first, then in pairwise(ends))
        assert ends[-1] == 1
        for lesson in course.lessons:
            assert sum(share for _, share in lesson.frames) == pytest.approx(1)
            assert {count for count, _ in lesson.frames} <= set(range(1, 9))
    assert recipe.courses[-1].lessons[-1].frames[-1][0] == 8
    assert len({course.name for course in recipe.courses}) == len({course.phase for course in recipe.courses}) == 2
    assert [course.regularised for course in recipe.courses] == [False, True]
    assert [course.close_ups for course in recipe.courses] == [False, True]
    assert 2 * recipe.close_up_videos <= recipe.videos
    assert recipe.tower_videos <= recipe.videos


def test_it_answers_in_words_it_knows(smoke: Made, video: Path) -> None:
    with VideoQA.from_pretrained(smoke.folder, keep_ratio=0.1) as qa:
        encoded = qa.encode_video(video)
        assert encoded.tokens.tokens_kept == 8 * 6
        for question in ("What color is the circle?", "Which object appears first?", "Describe the video."):
            answer = qa.ask(encoded, question, SamplingParams(max_tokens=8))
            assert answer.usage.completion_tokens > 0
            assert set(answer.text.split()) <= set(WORDS)


@torch.no_grad()
def test_the_service_decodes_what_training_sees(smoke: Made, video: Path) -> None:
    """The served answer, token by token, is what the training's own forward pass finds likeliest."""
    loading: Any = VideoLlavaForConditionalGeneration.from_pretrained
    model = loading(smoke.folder, dtype=torch.float32).eval()
    module = nn.ModuleDict(
        {"projector": model.model.multi_modal_projector, "language": model.model.language_model, "head": model.lm_head}
    )
    questions = ("What color is the circle?", "How many objects are there?", "Which way does the square move?")
    with VideoQA.from_pretrained(smoke.folder) as qa:
        encoded = qa.encode_video(video, prune=PruneSpec(keep_ratio=1.0))
        answers = [qa.ask(encoded, question, SamplingParams(max_tokens=5)) for question in questions]
    rows = [
        _as_tokens(tokenize(Question("served", q, a.text)), a.finish_reason)
        for q, a in zip(questions, answers, strict=True)
    ]
    packed = pack([rows], sum(map(len, rows)))
    features = encoded.tokens.sequence().float().view(1, 8, 64, -1)
    logits = phase._answer(module, features, packed, 1.0)[0]
    targets = packed.target[0]
    asked = (targets >= 0).nonzero()[:, 0]
    assert len(asked) >= 3
    chosen = logits[asked].gather(1, targets[asked][:, None])[:, 0]
    assert (chosen > logits[asked].amax(dim=1) - 1e-3).all()
    assert (logits[asked].std(dim=1) > 0.1).all()  # or any answer would do


def _as_tokens(question: QuestionTokens, finish_reason: str) -> QuestionTokens:
    return question if finish_reason == "stop" else replace(question, answer=question.answer[:-1])


def test_a_finished_training_is_not_run_again(smoke: Made, tmp_path: Path) -> None:
    reports: list[Report] = []
    measured = train_mini(smoke.work, tmp_path / "again", recipe=SMOKE, seed=1, workers=1, report=reports.append)
    assert [report.phase for report in reports] == ["done"]
    assert measured == smoke.measured
    assert (tmp_path / "again" / WEIGHTS).read_bytes() == (smoke.folder / WEIGHTS).read_bytes()


@pytest.mark.parametrize(("recipe", "seed"), [(SMOKE, 2), (QUICK, 1)], ids=["seed", "recipe"])
def test_a_folder_belongs_to_one_seed_and_one_recipe(smoke: Made, tmp_path: Path, recipe: Recipe, seed: int) -> None:
    before = (smoke.work / "log.jsonl").read_bytes()
    with pytest.raises(InvalidRequestError, match="holds a training with another recipe or seed: remove it"):
        train_mini(smoke.work, tmp_path / "other", workers=1, recipe=recipe, seed=seed)
    assert (smoke.work / "log.jsonl").read_bytes() == before
    assert not (tmp_path / "other").exists()


class Stopped(Exception):  # noqa: N818 - not an error
    """Somebody has pressed Ctrl-C."""


def test_the_weights_follow_from_the_seed_also_when_interrupted(smoke: Made, tmp_path: Path) -> None:
    """To the last bit, in one thread."""

    def stop(report: Report) -> None:
        if report.phase == "train features":
            raise Stopped

    phases: list[str] = []
    for name in ("whole", "interrupted", "other"):
        for part in ("train", "validation"):
            shutil.copytree(smoke.work / part, tmp_path / name / part)
    train_mini(tmp_path / "whole", tmp_path / "first", recipe=QUICK, seed=7, workers=1)
    again: dict[str, Any] = {"recipe": QUICK, "seed": 7, "workers": 1}
    with pytest.raises(Stopped):
        train_mini(tmp_path / "interrupted", tmp_path / "second", report=stop, **again)
    assert not (tmp_path / "second").exists()
    train_mini(
        tmp_path / "interrupted", tmp_path / "second", report=lambda report: phases.append(report.phase), **again
    )
    assert "tower" not in phases  # it was finished
    assert "language" in phases
    first, second = ((tmp_path / name / WEIGHTS).read_bytes() for name in ("first", "second"))
    assert first == second
    train_mini(tmp_path / "other", tmp_path / "third", recipe=QUICK, seed=8, workers=1)
    assert (tmp_path / "third" / WEIGHTS).read_bytes() != first
