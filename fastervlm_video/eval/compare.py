"""Two arms, of one run or of two, question by question."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fastervlm_video.errors import InvalidInputError, InvalidRequestError
from fastervlm_video.eval.predictions import Prediction, read_predictions
from fastervlm_video.eval.results import Scored, tally
from fastervlm_video.eval.scoring import Score, score_prediction
from fastervlm_video.eval.stats import Draws, Estimate, sign_flip_p_value

__all__ = ["Comparison", "compare_arms", "compare_runs"]


@dataclass(frozen=True, slots=True)
class Comparison:
    """How arm a does against arm b on the questions that both have answered.

    Attributes:
        arm_a: such as ``cls_attention@0.1``.
        arm_b: the other.
        questions: that both have.
        videos: that those are about.
        accuracy_a: on them.
        accuracy_b: on them.
        difference: a minus b.
        p_value: two-sided, of "neither is better"; the names are swapped video by video.
    """

    arm_a: str
    arm_b: str
    questions: int
    videos: int
    accuracy_a: Estimate
    accuracy_b: Estimate
    difference: Estimate
    p_value: float


def compare_runs(
    run_a: Path,
    run_b: Path,
    *,
    arm_a: str | None = None,
    arm_b: str | None = None,
    bootstrap: int = 2000,
    permutations: int = 10_000,
    seed: int = 0,
    score: Callable[[Prediction], Score] = score_prediction,
) -> list[Comparison]:
    """Compare two runs on the same data set, or two arms.

    Args:
        run_a: a run's folder.
        run_b: another's, or the same with different arms.
        arm_a: an arm of the first, such as ``cls_attention@0.1``; None compares all arms that both runs have.
        arm_b: an arm of the second; None is the same as ``arm_a``.
        bootstrap: draws behind the intervals.
        permutations: swaps behind the p-values.
        seed: of both.
        score: what an answer is worth.

    Raises:
        InvalidInputError: a folder holds no run, or there is no such arm, or they share no question.
    """
    arms_a, arms_b = _arms(run_a, score), _arms(run_b, score)
    if arm_a is None and arm_b is not None:
        raise InvalidRequestError(f"the arm {arm_b!r} of {run_b} has nothing to be compared with: name one of {run_a}")
    if arm_a is not None:
        pairs = [(arm_a, arm_b or arm_a)]
    else:
        pairs = [(name, name) for name in arms_a if name in arms_b]
        if not pairs:
            raise InvalidInputError(f"{run_a} has {sorted(arms_a)} and {run_b} has {sorted(arms_b)}: nothing in common")
    return [
        compare_arms(
            _pick(arms_a, a, run_a), _pick(arms_b, b, run_b), bootstrap=bootstrap, permutations=permutations, seed=seed
        )
        for a, b in pairs
    ]


def compare_arms(
    arm_a: Sequence[Scored],
    arm_b: Sequence[Scored],
    *,
    bootstrap: int = 2000,
    permutations: int = 10_000,
    seed: int = 0,
) -> Comparison:
    """Compare two arms on the questions they share.

    Args:
        arm_a: its scored predictions, of one or several seeds; at least one.
        arm_b: the other's.
        bootstrap: draws behind the intervals.
        permutations: swaps behind the p-value.
        seed: of both.

    Raises:
        InvalidInputError: they share no question.
    """
    common = _questions(arm_a) & _questions(arm_b)
    if not common:
        raise InvalidInputError(f"{_name(arm_a)} and {_name(arm_b)} have no question in common: other data sets?")
    videos = {name: index for index, name in enumerate(sorted({video for video, *_ in common}))}
    draws = Draws(len(videos), bootstrap, seed)
    sums_a, counts = tally(arm_a, videos, lambda p: _question(p) in common)
    sums_b, _ = tally(arm_b, videos, lambda p: _question(p) in common)
    a, b = draws.accuracy(sums_a, counts), draws.accuracy(sums_b, counts)
    return Comparison(
        arm_a=_name(arm_a),
        arm_b=_name(arm_b),
        questions=len(common),
        videos=len(videos),
        accuracy_a=a.estimate,
        accuracy_b=b.estimate,
        difference=a.minus(b).estimate,
        p_value=sign_flip_p_value(sums_a - sums_b, num_permutations=permutations, seed=seed),
    )


def _arms(run: Path, score: Callable[[Prediction], Score]) -> dict[str, list[Scored]]:
    arms: dict[str, list[Scored]] = {}
    for prediction in read_predictions(run):
        arms.setdefault(prediction.arm.name, []).append((prediction, score(prediction)))
    return arms


def _pick(arms: dict[str, list[Scored]], name: str, run: Path) -> list[Scored]:
    if name not in arms:
        raise InvalidInputError(f"{run} has no predictions of {name!r}; it has {', '.join(arms) or 'none'}")
    return arms[name]


def _name(arm: Sequence[Scored]) -> str:
    return arm[0][0].arm.name


def _question(prediction: Prediction) -> tuple[str, str, str, str]:
    """The same id in another data set is another question."""
    return prediction.video, prediction.id, prediction.question, prediction.answer


def _questions(arm: Sequence[Scored]) -> set[tuple[str, str, str, str]]:
    return {_question(prediction) for prediction, score in arm if score.value is not None}
