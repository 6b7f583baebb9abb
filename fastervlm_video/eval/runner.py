"""Running a model over a data set, arm by arm, through the code that the service runs.

::

    for each video:  decode ─▶ tower ─▶ for each arm:  prune ─▶ store and read back ─▶ all its questions, together

Only what is not in the run's folder yet is computed.
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fastervlm_video.config import FrameSampling, PruneSpec, SamplingParams
from fastervlm_video.errors import InvalidInputError, InvalidRequestError, MediaError, VideoNotFoundError
from fastervlm_video.eval.answering import answer_all
from fastervlm_video.eval.arms import BLIND, FULL, Arm
from fastervlm_video.eval.datasets import Dataset, Sample
from fastervlm_video.eval.fastv import FastV, mean_visual_tokens
from fastervlm_video.eval.predictions import Prediction, PredictionStore
from fastervlm_video.eval.tokens import TimedTokens, VideoTokens
from fastervlm_video.language import GenerationRequest
from fastervlm_video.media import decode_video
from fastervlm_video.pipeline import VideoQA
from fastervlm_video.vision import VisualSequence, VisualTokens

__all__ = ["ProgressCallback", "Runner"]

logger = logging.getLogger(__name__)

ProgressCallback = Callable[[int, int], None]
"""Called with (questions answered or given up, questions in all), over all arms."""


@dataclass(frozen=True, slots=True)
class _Answered:
    """Answers to one arm's questions about one video; texts, or why there is none."""

    answers: Sequence[str | InvalidInputError]
    tokens: int
    mean_tokens: float
    seconds: float


class Runner:
    """Fills a run's folder.

    Args:
        qa: the model; nobody else may use its engine meanwhile.
        dataset: the questions.
        arms: what to compare.
        store: the run's folder.
        sampling: which frames are looked at.
        max_tokens: longest answer.
        progress: told after each video and arm.
    """

    def __init__(
        self,
        qa: VideoQA,
        dataset: Dataset,
        arms: Sequence[Arm],
        store: PredictionStore,
        *,
        sampling: FrameSampling,
        max_tokens: int,
        progress: ProgressCallback | None = None,
    ) -> None:
        self._qa, self._dataset, self._arms, self._store = qa, dataset, arms, store
        self._sampling = sampling
        self._params = SamplingParams(max_tokens=max_tokens)
        self._fastv: dict[int, FastV] = {}
        self._progress = progress
        self._total = len(arms) * len(dataset.samples)
        self._done = 0

    def run(self) -> dict[str, str]:
        """Compute every prediction that is not there yet.

        Returns:
            videos that cannot be decoded, by name, with the reason; their questions have no predictions.

        Raises:
            InvalidInputError: no video could be decoded.
            FasterVLMError: the model failed.
        """
        failures: dict[str, str] = {}
        for video, samples in self._dataset.by_video().items():
            name = self._dataset.video_name(samples[0])
            try:
                self._run_video(video, name, samples)
            except (MediaError, VideoNotFoundError) as error:
                logger.warning("%s is left out: %s", name, error)
                failures[name] = error.message
                self._advance(len(self._arms) * len(samples))
        if failures and len(failures) == len(self._dataset.videos):
            name, reason = next(iter(failures.items()))
            raise InvalidInputError(f"none of the {len(failures)} videos can be decoded; {name}: {reason}")
        return failures

    def _run_video(self, video: Path, name: str, samples: Sequence[Sample]) -> None:
        todo = {arm: [s for s in samples if not self._store.has(arm, s.question_id)] for arm in self._arms}
        self._advance(sum(len(samples) - len(rest) for rest in todo.values()))
        if not any(todo.values()):
            return
        preprocessing = self._qa.facts.preprocessing()
        resize, tiling = preprocessing.resize, preprocessing.tiling
        frames = decode_video(video, self._sampling, limits=self._qa.limits, resize=resize, tiling=tiling)
        source = VideoTokens(
            self._qa.encoder,
            frames,
            name,
            self._dataset.coverage,
            dtype=self._qa.cache_dtype,
            regions=self._qa.facts.encode_job(frames, PruneSpec()).regions,
        )
        for arm, rest in todo.items():
            if rest:
                timed = source.of(arm)
                answered = self._answer(arm, timed.tokens, rest)
                self._store.append(self._predictions(arm, name, rest, timed, answered))
                self._advance(len(rest))

    def _answer(self, arm: Arm, tokens: VisualTokens, samples: Sequence[Sample]) -> _Answered:
        if arm.fastv_layer is not None:
            return self._answer_fastv(arm, arm.fastv_layer, tokens, samples)
        sequence = self._qa.facts.arrange(tokens)
        if arm.method == BLIND:
            sequence = VisualSequence(sequence.features[:0], (), (0,) * len(sequence.runs))
        begin = time.perf_counter()
        requests: list[GenerationRequest | InvalidInputError] = []
        for sample in samples:
            try:
                prompt = self._qa.facts.prompt(sample.prompt, sequence.runs, self._params)
                name = f"{arm.name} {sample.question_id}"
                requests.append(
                    GenerationRequest(name, prompt, sequence.features, self._params, separators=sequence.separators)
                )
            except InvalidInputError as error:  # too long, or it contains a reserved token
                requests.append(error)
        texts = iter(answer_all(self._qa.engine, [r for r in requests if isinstance(r, GenerationRequest)]))
        answers = [next(texts) if isinstance(request, GenerationRequest) else request for request in requests]
        return _Answered(answers, len(sequence), float(len(sequence)), time.perf_counter() - begin)

    def _answer_fastv(self, arm: Arm, layer: int, tokens: VisualTokens, samples: Sequence[Sample]) -> _Answered:
        if layer not in self._fastv:
            self._fastv[layer] = FastV(self._qa.language, layer)
        fastv = self._fastv[layer]
        sequence = self._qa.facts.arrange(tokens)
        if sequence.separators:
            raise InvalidRequestError(f"{arm.name}: FastV is not made for models with separators among visual tokens")
        visual = sequence.features
        kept = tokens.num_frames * PruneSpec(keep_ratio=arm.keep).tokens_per_frame(tokens.patches_per_frame)
        begin = time.perf_counter()
        answers: list[str | InvalidInputError] = []
        for sample in samples:
            try:
                prompt = self._qa.facts.prompt(sample.prompt, sequence.runs, self._params)
            except InvalidInputError as error:
                answers.append(error)
                continue
            ids = list(fastv.answer(prompt, visual, kept, self._params.max_tokens).token_ids)
            answers.append(str(self._qa.facts.checkpoint.tokenizer.decode(ids, skip_special_tokens=True)).lstrip())
        mean = mean_visual_tokens(len(visual), kept, layer=layer, layers=fastv.num_layers)
        return _Answered(answers, kept, mean, time.perf_counter() - begin)

    def _predictions(
        self, arm: Arm, name: str, samples: Sequence[Sample], timed: TimedTokens, answered: _Answered
    ) -> list[Prediction]:
        encodes = arm.method != BLIND
        return [
            Prediction(
                id=sample.question_id,
                video=name,
                question=sample.question,
                answer=sample.answer,
                pred=answer if isinstance(answer, str) else "",
                type=sample.kind,
                choices=sample.choices,
                method=arm.method,
                keep=arm.keep,
                seed=arm.seed,
                tokens=answered.tokens,
                mean_tokens=answered.mean_tokens,
                encode_seconds=timed.encode_seconds if encodes else 0.0,
                prune_seconds=timed.prune_seconds if encodes and arm.method != FULL else 0.0,
                generate_seconds=answered.seconds / len(samples),
                error=None if isinstance(answer, str) else answer.message,
            )
            for sample, answer in zip(samples, answered.answers, strict=True)
        ]

    def _advance(self, questions: int) -> None:
        self._done += questions
        if self._progress is not None:
            self._progress(min(self._done, self._total), self._total)
