"""Phases 2 and 3: train projector and language model on answers, with the tower frozen.

All visual tokens are always there: nothing is pruned in training. The positions of the visual tokens are
squeezed together half of the time, though, by a random factor: after pruning, what stays is packed and lies
closer together than it did. Phase 3 regularises: a model this small, left alone, takes to writing what it has
worked out onto background tokens, which are many and always the same, and to counting on the mean of them that the
questions read in the first layer; published ones survive without them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlamaModel, VideoLlavaForConditionalGeneration

from fastervlm_video.mini.questions import Question, ask_about
from fastervlm_video.mini.render import frame_times
from fastervlm_video.mini.training.clips import NUM_FRAMES
from fastervlm_video.mini.training.dropout import VideoDropout, draw_dropout
from fastervlm_video.mini.training.features import FeatureSet
from fastervlm_video.mini.training.forward import question_states
from fastervlm_video.mini.training.loop import Report, Schedule, log_uniform, run_steps, step_generator
from fastervlm_video.mini.training.optim import build_optimizers
from fastervlm_video.mini.training.packing import IGNORED, PackedQuestions, ids_before_video, pack, tokenize

__all__ = ["Course", "Lesson", "accuracy_by_kind", "start_language", "train_language"]

_SQUEEZED_SHARE = 0.5
_TIGHTEST = 0.03  # smallest factor: about one token in thirty kept
_END_WEIGHT = 0.1  # of the end of sequence in the loss; it is easy
# How often a kind is asked about, against the others: what is hard more often.
_WEIGHTS = {"color": 0.7, "shape": 1.0, "count": 1.5, "position": 1.0, "motion": 3.0, "order": 1.3, "describe": 3.0}


@dataclass(frozen=True, slots=True)
class Lesson:
    """A stage of the curriculum.

    Attributes:
        until: share of all steps at which it ends.
        frames: how many of the eight frames are shown, and how often each choice is made.
        tokens: of all videos of a step together, about; the batch follows from it.
    """

    until: float
    frames: tuple[tuple[int, float], ...]
    tokens: int = 4096


@dataclass(frozen=True, slots=True)
class Course:
    """A phase of training.

    Attributes:
        name: for reports and files.
        phase: its number, which its randomness follows from.
        schedule: length and learning rate.
        lessons: the curriculum, in order.
        regularised: whether the video's tokens are, see :class:`~fastervlm_video.mini.training.dropout.VideoDropout`.
        close_ups: whether objects of all sizes are shown, besides the usual small ones.
    """

    name: str
    phase: int
    schedule: Schedule
    lessons: tuple[Lesson, ...]
    regularised: bool = False
    close_ups: bool = False

    def lesson(self, step: int) -> Lesson:
        """The lesson that a step belongs to."""
        return next(lesson for lesson in self.lessons if step < lesson.until * self.schedule.steps)


def start_language(model: VideoLlavaForConditionalGeneration, features: npt.NDArray[np.float16], seed: int) -> None:
    """Initialise projector and embeddings so that features enter the language model with unit variance."""
    sample = torch.from_numpy(np.array(features[:256])).float().flatten(0, 2)
    mean, deviation = sample.mean(0), sample.std(0)
    projector, embedding = model.model.multi_modal_projector, model.model.language_model.embed_tokens
    width = embedding.embedding_dim
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        weight = torch.randn(projector.linear_1.weight.shape, generator=generator) * len(mean) ** -0.5 / deviation
        projector.linear_1.weight.copy_(weight)
        projector.linear_1.bias.copy_(-weight @ mean)
        projector.linear_2.weight.normal_(0, 0.5 * width**-0.5, generator=generator)
        projector.linear_2.bias.zero_()
        embedding.weight.normal_(0, 0.3, generator=generator)


def train_language(
    model: VideoLlavaForConditionalGeneration,
    data: FeatureSet,
    course: Course,
    *,
    question_tokens: int,
    seed: int,
    state: Path,
    report: Callable[[Report], None],
) -> None:
    """Train everything but the towers, in place.

    Args:
        model: with trained towers; see :func:`start_language`.
        data: features to learn from.
        course: what is learnt, and how.
        question_tokens: of questions per video.
        seed: of everything.
        state: file to resume from.
        report: called every few steps.
    """
    for tower in (model.model.video_tower, model.model.image_tower):
        tower.requires_grad_(False)
    module = _language_parts(model)
    patches = data.features.shape[2]
    times = frame_times(NUM_FRAMES)
    exempt = len(ids_before_video())
    draw = partial(draw_dropout, layers=len(model.model.language_model.layers), exempt=exempt)

    def step_of(step: int) -> tuple[Tensor, dict[str, float]]:
        rng = step_generator(seed, course.phase, step)
        lesson = course.lesson(step)
        counts, shares = zip(*lesson.frames, strict=True)
        count = int(rng.choice(counts, p=shares))
        videos = rng.integers(0, len(data), max(1, lesson.tokens // (count * patches + question_tokens)))
        shown = np.sort(rng.permutation(NUM_FRAMES)[:count])
        if count == 1:
            shown = rng.integers(0, NUM_FRAMES, (2, 1)).max(axis=0)
        rows = [_draw(ask_about(data.scenes, int(v), times[shown], rng, training=True), rng) for v in videos]
        questions = pack([[tokenize(question) for question in row] for row in rows], question_tokens)
        features = torch.from_numpy(data.features[videos[:, None], shown]).float()
        squeeze = float(log_uniform(rng, _TIGHTEST)) if rng.random() < _SQUEEZED_SHARE else 1.0
        dropout = draw(rng, batch=len(videos), length=exempt + count * patches) if course.regularised else None
        return _loss(_answer(module, features, questions, squeeze, dropout), questions, f"{count}f ")

    schedule = course.schedule
    optimizers = build_optimizers(
        module.named_parameters(), learning_rate=schedule.learning_rate, weight_decay=schedule.weight_decay
    )
    run_steps(course.name, module.train(), optimizers, schedule, step_of, state=state, report=report)
    model.eval()


def _draw(questions: Sequence[Question], rng: np.random.Generator) -> list[Question]:
    """All of them, in an order in which those that matter more come earlier, for the row may be too short."""
    if not questions:
        return []
    weights = np.array([_WEIGHTS[question.kind] for question in questions])
    order = np.argsort(rng.exponential(size=len(questions)) / weights)
    return [questions[int(index)] for index in order]


def _language_parts(model: VideoLlavaForConditionalGeneration) -> nn.ModuleDict:
    """Everything but the towers."""
    return nn.ModuleDict(
        {"projector": model.model.multi_modal_projector, "language": model.model.language_model, "head": model.lm_head}
    )


def _answer(
    module: nn.ModuleDict,
    features: Tensor,
    questions: PackedQuestions,
    squeeze: float,
    dropout: VideoDropout | None = None,
) -> Tensor:
    """Logits [B, Q, vocabulary], with the positions of the visual tokens ``squeeze`` apart."""
    language = module["language"]
    assert isinstance(language, LlamaModel)
    visual = module["projector"](features).flatten(1, 2)
    before = torch.tensor(ids_before_video())
    start = language.embed_tokens(before).expand(len(features), -1, -1)
    steps = torch.cat([torch.ones(len(before)), torch.full((visual.shape[1],), squeeze)])
    positions = steps.cumsum(0) - steps[0]
    states = question_states(language, torch.cat([start, visual], dim=1), positions, questions, dropout)
    logits: Tensor = module["head"](states)
    return logits


def _loss(logits: Tensor, questions: PackedQuestions, prefix: str = "") -> tuple[Tensor, dict[str, float]]:
    """Cross-entropy over answers, and the share of wholly right ones by kind."""
    row, column = (questions.target != IGNORED).nonzero(as_tuple=True)
    target, chosen = questions.target[row, column], logits[row, column]
    ends = (column + 1 == questions.ids.shape[1]) | (
        questions.segment[row, (column + 1).clamp(max=questions.ids.shape[1] - 1)] != questions.segment[row, column]
    )
    weight = torch.where(ends, _END_WEIGHT, 1.0)
    loss = (functional.cross_entropy(chosen, target, reduction="none") * weight).sum()
    loss = loss / weight.sum().clamp_min(_END_WEIGHT)  # there may be nothing to ask about a batch
    right = _right(chosen.argmax(-1) == target, row, questions.segment[row, column], questions)
    names = sorted({kind for kind, _ in right})
    return loss, {prefix + name: float(np.mean([ok for kind, ok in right if kind == name])) for name in names}


def _right(token: Tensor, row: Tensor, segment: Tensor, questions: PackedQuestions) -> list[tuple[str, bool]]:
    """(kind, whether every token of the answer is right) per question."""
    outcome: dict[tuple[int, int], bool] = {}
    for ok, r, s in zip(token.tolist(), row.tolist(), segment.tolist(), strict=True):
        outcome[r, s] = outcome.get((r, s), True) and ok
    return [(questions.kinds[r][s], ok) for (r, s), ok in outcome.items()]


@torch.inference_mode()
def accuracy_by_kind(
    model: VideoLlavaForConditionalGeneration, data: FeatureSet, *, seed: int = 0, batch: int = 16
) -> dict[str, float]:
    """Share of right answers by kind of question, over all eight frames, nothing pruned.

    An answer is right if greedy decoding would give it whole.
    """
    module = _language_parts(model)
    rng, times = np.random.default_rng(seed), frame_times(NUM_FRAMES)
    outcomes: list[tuple[str, bool]] = []
    for first in range(0, len(data), batch):
        videos = range(first, min(first + batch, len(data)))
        rows = [[tokenize(q) for q in ask_about(data.scenes, v, times, rng)] for v in videos]
        questions = pack(rows, max(sum(map(len, row)) for row in rows))
        features = torch.from_numpy(np.array(data.features[first : first + batch])).float()
        chosen = _answer(module, features, questions, 1.0).argmax(-1)
        row, column = (questions.target != IGNORED).nonzero(as_tuple=True)
        right = chosen[row, column] == questions.target[row, column]
        outcomes += _right(right, row, questions.segment[row, column], questions)
    kinds = sorted({kind for kind, _ in outcomes})
    return {kind: float(np.mean([ok for name, ok in outcomes if name == kind])) for kind in kinds}
