from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM, VideoLlavaForConditionalGeneration

from fastervlm_video.mini.questions import ask_about
from fastervlm_video.mini.training import train_language as phase
from fastervlm_video.mini.training.loop import Report, Schedule
from fastervlm_video.mini.training.packing import QuestionTokens, ids_before_video, pack, tokenize
from fastervlm_video.mini.training.train_language import (
    Course,
    Lesson,
    accuracy_by_kind,
    start_language,
    train_language,
)
from tests.mini.training.kit import TIMES, alone, language_of, random_model, telling_features

STEPS = 200
LESSONS = (
    Lesson(until=0.5, frames=((1, 1.0),), tokens=512),
    Lesson(until=1.0, frames=((1, 0.5), (2, 0.5)), tokens=512),
)
Trained = tuple[VideoLlavaForConditionalGeneration, list[Report], dict[str, Tensor]]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def lesson_learned(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A tiny model after a few steps of training, what was reported, and its weights before."""
    torch.set_num_threads(1)
    data, reports = telling_features(0, 64), list[Report]()
    model = random_model()
    start_language(model, data.features, seed=0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    train_language(
        model,
        data,
        Course("language", 2, Schedule(steps=STEPS, learning_rate=5e-3, warmup=10), LESSONS),
        question_tokens=60,
        seed=1,
        state=tmp_path_factory.mktemp("language") / "state.pt",
        report=reports.append,
    )
    return model, reports, before


def test_the_loss_falls(lesson_learned: Trained) -> None:
    model, reports, _ = lesson_learned
    losses = [report.values["loss"] for report in reports]
    assert len(losses) == STEPS / 50
    assert losses[-1] < 0.7 * losses[0]
    assert not model.training


def test_a_regularised_course_learns_too_and_differs(tmp_path: Path) -> None:
    data, losses = telling_features(0, 64), []
    for regularised in (False, True):
        reports, model = list[Report](), random_model()
        start_language(model, data.features, seed=0)
        course = Course(
            "c", 3, Schedule(steps=100, learning_rate=5e-3, warmup=10), (replace(LESSONS[0], until=1.0),), regularised
        )
        state = tmp_path / f"{regularised}.pt"
        train_language(model, data, course, question_tokens=60, seed=1, state=state, report=reports.append)
        losses.append([report.values["loss"] for report in reports])
    (_, plain), (first, last) = losses
    assert last < 0.95 * first
    assert last != plain


def test_the_towers_stay_as_they_are_and_all_else_learns(lesson_learned: Trained) -> None:
    model, _, before = lesson_learned
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    towers = {name for name in before if "_tower." in name}
    assert towers
    assert changed == set(before) - towers


def test_lessons_show_as_many_frames_as_they_say(lesson_learned: Trained) -> None:
    _, reports, _ = lesson_learned
    shown = [{name.split()[0] for name in report.values if " " in name} for report in reports]
    assert shown == [{"1f"}, {"1f"}, {"1f", "2f"}, {"1f", "2f"}]


@torch.no_grad()
def greedy(model: VideoLlavaForConditionalGeneration, features: Tensor, question: QuestionTokens) -> tuple[int, ...]:
    """Hugging Face's own answer, to the end of sequence."""
    language, projected = language_of(model), model.model.multi_modal_projector(features).flatten(0, 1)
    ids = [torch.tensor(part) for part in (ids_before_video(), question.prompt)]
    embedded = torch.cat([language.embed_tokens(ids[0]), projected, language.embed_tokens(ids[1])])[None]
    whole = LlamaForCausalLM(language.config).eval()
    whole.model, whole.lm_head = language, model.lm_head
    limit = len(question.answer)
    out = whole.generate(
        inputs_embeds=embedded,
        attention_mask=torch.ones(embedded.shape[:2], dtype=torch.int64),
        max_new_tokens=limit,
        do_sample=False,
        eos_token_id=2,
        pad_token_id=0,
    )
    assert isinstance(out, Tensor)
    return tuple(out[0].tolist())


def test_an_answer_counts_as_right_if_greedy_decoding_gives_it_whole(lesson_learned: Trained) -> None:
    model, _, _ = lesson_learned
    data, rng = telling_features(5, 6), np.random.default_rng(4)
    right: dict[str, list[bool]] = {}
    for video in range(6):
        features = torch.from_numpy(data.features[video]).float()
        for question in ask_about(data.scenes, video, TIMES, rng):
            tokens = tokenize(question)
            right.setdefault(tokens.kind, []).append(greedy(model, features, tokens) == tokens.answer)
    measured = accuracy_by_kind(model, data, seed=4, batch=4)
    assert measured == {kind: pytest.approx(np.mean(outcomes)) for kind, outcomes in right.items()}
    assert 0 < sum(map(sum, right.values())) < sum(map(len, right.values()))


@torch.no_grad()
def test_unsqueezed_positions_are_contiguous_ones() -> None:
    """Behind the text, the features through the projector, then the question: as the model is served."""
    model, data = random_model(), telling_features(2, 1)
    features, language = torch.from_numpy(data.features[:1, :2]).float(), language_of(model)
    questions = [tokenize(question) for question in ask_about(data.scenes, 0, TIMES[:2], np.random.default_rng(0))]
    module = nn.ModuleDict(
        {"projector": model.model.multi_modal_projector, "language": language, "head": model.lm_head}
    )
    packed = pack([questions], 100)
    logits, squeezed = (phase._answer(module, features, packed, squeeze) for squeeze in (1.0, 0.1))
    front = language.embed_tokens(torch.tensor(ids_before_video()))
    video = torch.cat([front, model.model.multi_modal_projector(features).flatten(0, 2)])
    for number in range(len(packed.kinds[0])):
        where = packed.segment[0] == number
        expected = model.lm_head(alone(language, video, packed.ids[0][where]))
        assert torch.allclose(logits[0][where], expected, atol=2e-3)
        assert not torch.allclose(squeezed[0][where], expected, atol=2e-2)


def test_features_enter_the_language_model_with_unit_variance() -> None:
    data, model = telling_features(3, 20), random_model()
    shifted = replace(data, features=(5 * data.features + 3).astype(np.float16))
    start_language(model, shifted.features, seed=0)
    projector = model.model.multi_modal_projector
    with torch.no_grad():
        entered = projector.linear_1(torch.from_numpy(shifted.features).float()).flatten(0, 2)
    assert entered.mean().abs() < 0.02
    assert entered.std(0).mean() == pytest.approx(1, abs=0.2)
    before = projector.linear_1.weight.clone()
    start_language(model, shifted.features, seed=0)
    assert torch.equal(projector.linear_1.weight, before)
    start_language(model, shifted.features, seed=1)
    assert not torch.equal(projector.linear_1.weight, before)


def test_a_step_without_any_question_changes_nothing() -> None:
    """Where no object has appeared in the frame of any video."""
    empty = pack([[], []], 10)
    logits = torch.randn(2, 10, 50, requires_grad=True)
    loss, told = phase._loss(logits, empty)
    loss.backward()
    assert told == {}
    assert loss.item() == 0
    assert logits.grad is not None
    assert (logits.grad == 0).all()


def test_the_loss_is_over_answers_and_their_ends_count_little() -> None:
    red, end = QuestionTokens("color", (7, 8), (9, 2)), 2
    packed = pack([[red, red]], 7)
    logits = torch.randn(1, 7, 12)
    loss, told = phase._loss(logits, packed, "8f ")
    chances = logits.log_softmax(-1)[0]
    expected = -(chances[1, 9] + 0.1 * chances[2, end] + chances[4, 9] + 0.1 * chances[5, end]) / 2.2
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)
    logits[0, 1, 9] = logits[0, 2, end] = logits[0, 4, 9] = 99.0  # the first is right; the second does not end
    logits[0, 5, 11] = 99.0
    assert phase._loss(logits, packed, "8f ")[1] == {"8f color": 0.5}
    assert set(told) == {"8f color"}
