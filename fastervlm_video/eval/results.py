"""From predictions and their scores to the numbers of a table."""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

import numpy as np

from fastervlm_video.eval.arms import BLIND, FULL, ORACLE, Arm
from fastervlm_video.eval.predictions import Prediction
from fastervlm_video.eval.scoring import Score, normalise
from fastervlm_video.eval.stats import Draws, Estimate, Floats, Sampled

__all__ = ["Constants", "Results", "Row", "Scored", "summarise", "tally"]

RANDOM = "random"

Scored = tuple[Prediction, Score]
Group = tuple[str, float]
"""Method and share kept: what seeds are averaged over."""


@dataclass(frozen=True, slots=True)
class Row:
    """One method at one budget, averaged over its seeds.

    Attributes:
        method: see :mod:`fastervlm_video.eval.arms`.
        keep: share of the visual tokens.
        seeds: how many were averaged over.
        questions: how many have a score.
        tokens: visual tokens kept of a video, on average over videos.
        mean_tokens: the same per layer of the language model.
        accuracy: share of right answers.
        retention: accuracy over that of ``full``.
        gap_closed: where it stands between ``random`` (0) and ``oracle`` (1) at the same share; None without those.
        by_type: accuracy per question type.
        grade: mean of a judge's grades, 0 to 5; None without a judge.
        parse_failures: multiple-choice answers that name none of the choices, over all seeds.
        unjudged: answers on which the judge said nothing sensible; they are left out of the accuracy.
        errors: questions that could not be asked, over all seeds; they count as wrong.
        encode_seconds: per video, median; the tower, the choice of tokens, and their way through storage.
        prune_seconds: per video, median; the choice of tokens alone.
        generate_seconds: per question, median.
    """

    method: str
    keep: float
    seeds: int
    questions: int
    tokens: float
    mean_tokens: float
    accuracy: Estimate
    retention: Estimate | None
    gap_closed: Estimate | None
    by_type: Mapping[str, Estimate]
    grade: Estimate | None
    parse_failures: int
    unjudged: int
    errors: int
    encode_seconds: float
    prune_seconds: float
    generate_seconds: float


@dataclass(frozen=True, slots=True)
class Constants:
    """How often the best answer that ignores the video would be right; it knows the right answers beforehand.

    Attributes:
        by_type: one answer for each question type.
        per_type: overall, with one answer for each question type.
        per_question: overall, with one answer for each wording of a question.
    """

    by_type: Mapping[str, float]
    per_type: float
    per_question: float


@dataclass(frozen=True, slots=True)
class Results:
    """Everything a report says.

    Attributes:
        settings: of the run, from its manifest.
        rows: ``full`` first, ``blind`` last, between them method by method, most tokens first.
        constants: what no video is needed for.
        types: question types, sorted.
        videos: how many have predictions.
        failures: videos that could not be decoded, with the reason.
    """

    settings: Mapping[str, object]
    rows: Sequence[Row]
    constants: Constants
    types: Sequence[str]
    videos: int
    failures: Mapping[str, str] = field(default_factory=dict)

    def row(self, method: str, keep: float) -> Row:
        """The row of a method at a share.

        Raises:
            KeyError: there is none.
        """
        for row in self.rows:
            if (row.method, row.keep) == (method, keep):
                return row
        raise KeyError(f"{method}@{keep:g}")


def tally(
    scored: Iterable[Scored], videos: Mapping[str, int], keep: Callable[[Prediction], bool] = lambda _: True
) -> tuple[Floats, Floats]:
    """Points and questions of each video; a question's points are the mean over its seeds.

    Args:
        scored: of one method at one budget.
        videos: each video's place in the arrays.
        keep: which predictions are looked at.

    Returns:
        float64 [V] each.
    """
    points: dict[tuple[str, str], list[float]] = defaultdict(list)
    for prediction, score in scored:
        if score.value is not None and keep(prediction):
            points[prediction.video, prediction.id].append(score.value)
    sums, counts = np.zeros(len(videos)), np.zeros(len(videos))
    for (video, _), values in points.items():
        sums[videos[video]] += sum(values) / len(values)
        counts[videos[video]] += 1
    return sums, counts


def summarise(
    scored: Sequence[Scored],
    *,
    settings: Mapping[str, object],
    failures: Mapping[str, str] | None = None,
    bootstrap: int = 2000,
    seed: int = 0,
) -> Results:
    """All numbers of a run.

    Args:
        scored: its predictions with their scores. Arms are compared on the videos that all of them have.
        settings: its manifest.
        failures: videos left out.
        bootstrap: draws behind the intervals.
        seed: of the draws.

    Raises:
        InvalidRequestError: no video has predictions of every arm, or there are no draws.
    """
    scored = _on_common_videos(scored)
    groups: dict[Group, list[Scored]] = defaultdict(list)
    for one in scored:
        groups[one[0].method, one[0].keep].append(one)
    videos = {name: index for index, name in enumerate(sorted({p.video for p, _ in scored}))}
    draws = Draws(len(videos), bootstrap, seed)
    accuracies = {group: draws.accuracy(*tally(members, videos)) for group, members in groups.items()}
    rows = [
        _row(group, members, accuracies, videos, draws) for group, members in sorted(groups.items(), key=_reading_order)
    ]
    types = sorted({p.type for p, _ in scored})
    constants = _constants([p for p, _ in scored])
    return Results(dict(settings), rows, constants, types, len(videos), dict(failures or {}))


def _on_common_videos(scored: Sequence[Scored]) -> list[Scored]:
    """Without videos that an arm lacks: they could be decoded when the others were run, and no more."""
    videos: dict[Arm, set[str]] = defaultdict(set)
    for prediction, _ in scored:
        videos[prediction.arm].add(prediction.video)
    common = set.intersection(*videos.values()) if videos else set()
    return [one for one in scored if one[0].video in common]


def _reading_order(item: tuple[Group, object]) -> tuple[int, str, float]:
    method, keep = item[0]
    return {FULL: 0, BLIND: 3, ORACLE: 2}.get(method, 1), method, -keep


def _row(
    group: Group,
    members: Sequence[Scored],
    accuracies: Mapping[Group, Sampled],
    videos: Mapping[str, int],
    draws: Draws,
) -> Row:
    method, keep = group
    predictions = [prediction for prediction, _ in members]
    full = accuracies.get((FULL, 1.0))
    random, oracle = accuracies.get((RANDOM, keep)), accuracies.get((ORACLE, keep))
    between = random is not None and oracle is not None and method not in {RANDOM, ORACLE}
    by_type = {}
    for kind in sorted({prediction.type for prediction in predictions}):
        by_type[kind] = draws.accuracy(*tally(members, videos, lambda p, kind=kind: p.type == kind)).estimate  # type: ignore[misc]
    graded = [(p, Score(score.grade)) for p, score in members if score.grade is not None]
    per_video = {(p.video, p.seed): p for p in predictions}.values()
    return Row(
        method=method,
        keep=keep,
        seeds=len({prediction.seed for prediction in predictions}),
        questions=len({p.id for p, score in members if score.value is not None}),
        tokens=_mean([p.tokens for p in per_video]),
        mean_tokens=_mean([p.mean_tokens for p in per_video]),
        accuracy=accuracies[group].estimate,
        retention=accuracies[group].over(full).estimate if full is not None else None,
        gap_closed=accuracies[group].gap_closed(random, oracle).estimate if between and random and oracle else None,
        by_type=by_type,
        grade=draws.accuracy(*tally(graded, videos)).estimate if graded else None,
        parse_failures=sum(p.choices is not None and not score.parsed for p, score in members),
        unjudged=sum(score.value is None for _, score in members),
        errors=sum(prediction.error is not None for prediction in predictions),
        encode_seconds=median(p.encode_seconds for p in per_video),
        prune_seconds=median(p.prune_seconds for p in per_video),
        generate_seconds=median(p.generate_seconds for p in predictions),
    )


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _constants(predictions: Iterable[Prediction]) -> Constants:
    questions = {prediction.id: prediction for prediction in predictions}.values()
    by_type: dict[str, Counter[str]] = defaultdict(Counter)
    by_wording: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for one in questions:
        answer = one.answer if one.choices is not None else normalise(one.answer)
        by_type[one.type][answer] += 1
        by_wording[one.type, normalise(one.question)][answer] += 1
    return Constants(
        by_type={kind: max(counts.values()) / counts.total() for kind, counts in sorted(by_type.items())},
        per_type=sum(max(counts.values()) for counts in by_type.values()) / len(questions),
        per_question=sum(max(counts.values()) for counts in by_wording.values()) / len(questions),
    )
