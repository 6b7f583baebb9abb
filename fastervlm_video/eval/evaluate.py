"""From a model and a data set to a table: the harness in one call."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path

from fastervlm_video.config import FrameSampling, PruneSpec
from fastervlm_video.errors import InvalidRequestError
from fastervlm_video.eval.arms import ALL_METHODS, DEFAULT_KEEPS, FASTV, ORACLE, make_arms
from fastervlm_video.eval.datasets import Dataset
from fastervlm_video.eval.judge import Judge, judge_predictions
from fastervlm_video.eval.predictions import Prediction, PredictionStore
from fastervlm_video.eval.results import Results, Scored, summarise
from fastervlm_video.eval.runner import ProgressCallback, Runner
from fastervlm_video.eval.scoring import score_prediction
from fastervlm_video.models import Checkpoint
from fastervlm_video.pipeline import VideoQA
from fastervlm_video.plan import ModelFacts
from fastervlm_video.vision import PlainLayout

__all__ = ["DEFAULT_MAX_TOKENS", "evaluate"]

DEFAULT_MAX_TOKENS = 16
_RUN_FORMAT = 1


def evaluate(
    qa: VideoQA,
    dataset: Dataset,
    out: Path,
    *,
    methods: Iterable[str] = (ALL_METHODS,),
    keeps: Sequence[float] = DEFAULT_KEEPS,
    seed: int = 0,
    random_seeds: int = 1,
    sampling: FrameSampling | None = None,
    max_tokens: int = DEFAULT_MAX_TOKENS,
    resume: bool = True,
    judge: Judge | None = None,
    bootstrap: int = 2000,
    progress: ProgressCallback | None = None,
) -> Results:
    """Measure what pruning costs.

    Predictions are written into ``out`` as they are made; called again with the same settings, only what is missing
    is computed, so a run may be interrupted, and arms may be added to it. What is not among the settings is the code
    of the methods: after changing that, start over.

    Args:
        qa: the model; its default budget does not matter, and nobody else may use its engine meanwhile.
        dataset: the questions.
        out: the run's folder.
        methods: see :mod:`fastervlm_video.eval.arms`.
        keeps: shares of the visual tokens, in (0, 1].
        seed: of methods that draw lots, and of the bootstrap.
        random_seeds: how many seeds methods that draw lots are averaged over.
        sampling: which frames are looked at.
        max_tokens: longest answer; decoding is greedy.
        resume: continue what is in ``out``; otherwise start over.
        judge: scores open answers instead of exact match.
        bootstrap: draws behind the intervals.
        progress: called with (questions done, questions in all).

    Returns:
        The numbers; :func:`~fastervlm_video.eval.report.write_report` writes them down.

    Raises:
        InvalidInputError: ``out`` holds a run of other settings, a parameter is out of range, or no video can be
            decoded.
        FasterVLMError: the model, or the judge, failed.
    """
    if bootstrap < 1:
        raise InvalidRequestError(f"bootstrap must be at least 1, got {bootstrap}")
    sampling = sampling or FrameSampling()
    arms = make_arms(
        methods,
        keeps,
        seed=seed,
        random_seeds=random_seeds,
        text_layers=qa.facts.checkpoint.config.text_config.num_hidden_layers,
        knows_objects=dataset.coverage is not None,
        refused=_refused(qa.facts, sampling),
    )
    if judge is not None:
        judge.check()
    manifest = _manifest(qa, dataset, sampling, max_tokens)
    with PredictionStore(out, manifest, resume=resume) as store:
        runner = Runner(qa, dataset, arms, store, sampling=sampling, max_tokens=max_tokens, progress=progress)
        failures = runner.run()
        wanted = set(arms)
        predictions = [prediction for prediction in store.predictions if prediction.arm in wanted]
        scored = _score(predictions, judge, out)
    settings = manifest | {"scored_by": f"judge {judge.model}" if judge is not None else "exact match"}
    return summarise(scored, settings=settings, failures=failures, bootstrap=bootstrap, seed=seed)


def _refused(facts: ModelFacts, sampling: FrameSampling) -> dict[str, str]:
    """Which of the ways that only an experiment can this model has not, and why."""
    if not isinstance(facts.layout(), PlainLayout):
        return dict.fromkeys((FASTV, ORACLE), "this model sees a frame in several views")
    language = facts.checkpoint.config.text_config.model_type
    if language != "llama":
        return {FASTV: f"it is implemented for Llama language models, not for {language!r}"}
    runs = len(facts.visual_runs(sampling, PruneSpec()))
    return {FASTV: f"this model's prompt has text between its {runs} frames"} if runs > 1 else {}


def _manifest(qa: VideoQA, dataset: Dataset, sampling: FrameSampling, max_tokens: int) -> dict[str, object]:
    """Whatever a prediction depends on besides its arm and its question."""
    return {
        "format": _RUN_FORMAT,
        "version": version("fastervlm-video"),
        "model": qa.facts.name,
        "model_digest": _digest(qa.facts.checkpoint),
        "dataset": dataset.name,
        "dataset_digest": dataset.digest,
        "videos": len(dataset.videos),
        "questions": len(dataset.samples),
        "num_frames": sampling.num_frames,
        "max_tokens": max_tokens,
        "image_layout": qa.facts.options.image_layout.value,
        "frame_label": qa.facts.options.frame_label,
        "device": qa.encoder.device.type,
        "dtype": str(qa.encoder.dtype),
        "storage_dtype": qa.cache_dtype.value,
    }


def _digest(checkpoint: Checkpoint) -> str:
    """SHA-256, hex, over the weights and every small file beside them; the tower's fingerprint is not enough."""
    files = {path.name: path for path in checkpoint.weights.files.values()}
    files |= {
        path.name: path for pattern in ("*.json", "*.jinja", "*.model") for path in checkpoint.folder.glob(pattern)
    }
    digests = {}
    for name, path in sorted(files.items()):
        with path.open("rb") as file:
            digests[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return hashlib.sha256(json.dumps(digests).encode()).hexdigest()


def _score(predictions: Sequence[Prediction], judge: Judge | None, folder: Path) -> list[Scored]:
    if judge is None:
        return [(prediction, score_prediction(prediction)) for prediction in predictions]
    opinions = judge_predictions(judge, predictions, folder)
    return [
        (p, opinions[p.question, p.answer, p.pred] if p.choices is None and p.error is None else score_prediction(p))
        for p in predictions
    ]
