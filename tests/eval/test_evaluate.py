"""The whole harness on a random model: what it writes is what the pipeline answers, once, whatever interrupts it."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from fastervlm_video import VideoQA
from fastervlm_video.config import FrameSampling, MediaLimits, Medium, PruneSpec, SamplingParams
from fastervlm_video.errors import InvalidInputError, InvalidRequestError
from fastervlm_video.eval import (
    BLIND,
    FULL,
    Arm,
    Dataset,
    FastV,
    Prediction,
    evaluate,
    read_predictions,
    select_by_coverage,
)
from fastervlm_video.language import GenerationRequest, generate
from fastervlm_video.media import FrameBatch
from fastervlm_video.prune import method_names
from fastervlm_video.vision import TowerOutput, VisionEncoder
from tests.checkpoints import save_random_llava, save_random_llava_next
from tests.eval.conftest import QUESTIONS, coverage, write_folder

FRAMES = FrameSampling(3)
SHORT = SamplingParams(max_tokens=6)
KEEPS = (1.0, 0.5, 0.25)
PATIENCE_SECONDS = 120.0


def run(
    qa: VideoQA, dataset: Dataset, out: Path, *methods: str, keeps: tuple[float, ...] = KEEPS, **options: bool
) -> list[Prediction]:
    evaluate(qa, dataset, out, methods=methods, keeps=keeps, sampling=FRAMES, max_tokens=6, bootstrap=50, **options)  # type: ignore[arg-type]
    return read_predictions(out)


def answers(predictions: list[Prediction]) -> dict[tuple[Arm, str], str]:
    found = {(p.arm, p.id): p.pred for p in predictions}
    assert len(found) == len(predictions)
    return found


def test_predictions_are_what_the_pipeline_answers(qa: VideoQA, mini_like: Dataset, tmp_path: Path) -> None:
    predictions = run(qa, mini_like, tmp_path, "cls_attention", "random", "uniform_grid")
    found = answers(predictions)
    arms = {arm for arm, _ in found} - {Arm(BLIND, 0.0)}
    assert arms == {
        Arm(FULL, 1.0),
        *(Arm(m, k) for m in ("cls_attention", "random", "uniform_grid") for k in (0.5, 0.25)),
    }
    texts = set()
    for arm in arms:
        for sample in mini_like.samples:
            video = qa.encode_video(sample.video, prune=arm.spec, sampling=FRAMES)
            text = qa.ask(video, sample.question, SHORT).text
            assert found[arm, sample.question_id] == text
            texts.add(text)
    assert len(texts) > 10  # so that equality means something
    for p in predictions:
        sample = next(sample for sample in mini_like.samples if sample.question_id == p.id)
        assert (p.question, p.answer, p.type) == (sample.question, sample.answer, sample.kind)
        assert p.video == mini_like.video_name(sample)
        assert p.error is None
        assert p.tokens == p.mean_tokens == 3 * round(p.keep * qa.facts.patches_per_frame)
        assert (p.encode_seconds > p.prune_seconds) == (p.method != BLIND)
        assert p.generate_seconds > 0


def test_blind_answers_do_not_know_the_video(qa: VideoQA, mini_like: Dataset, tmp_path: Path) -> None:
    blind = [p for p in run(qa, mini_like, tmp_path, keeps=(1.0,)) if p.method == BLIND]
    for question in QUESTIONS.values():
        prompt = qa.facts.prompts[Medium.VIDEO].build(question, 0)
        request = GenerationRequest("x", prompt, torch.zeros(0, qa.encoder.width), SHORT)
        assert {p.pred for p in blind if p.question == question} == {generate(qa.engine, request).text}


def test_oracle_and_fastv_arms(qa: VideoQA, mini_like: Dataset, tmp_path: Path) -> None:
    found = answers(run(qa, mini_like, tmp_path, "oracle", "fastv:0", "fastv:1", keeps=(0.25,)))
    sample = mini_like.samples[3]
    full = qa.encode_video(sample.video, prune=PruneSpec(keep_ratio=1.0), sampling=FRAMES)
    per_frame = qa.facts.patches_per_frame // 4
    covered = coverage(mini_like.video_name(sample), full.tokens.pts_seconds, full.tokens.grid)
    chosen = replace(full, tokens=select_by_coverage(full.tokens, covered, per_frame))
    assert found[Arm("oracle", 0.25), sample.question_id] == qa.ask(chosen, sample.question, SHORT).text
    for layer in (0, 1):
        prompt = qa.facts.prompts[Medium.VIDEO].build(sample.question, full.tokens.tokens_kept)
        ids = FastV(qa.language, layer).answer(prompt, full.tokens.sequence(), 3 * per_frame, 6).token_ids
        text = qa.facts.checkpoint.tokenizer.decode(list(ids), skip_special_tokens=True)
        assert found[Arm(f"fastv:{layer}", 0.25), sample.question_id] == text
    rows = evaluate(
        qa, mini_like, tmp_path, methods=["fastv:1"], keeps=(0.25,), sampling=FRAMES, max_tokens=6, bootstrap=50
    ).rows
    (row,) = (row for row in rows if row.method == "fastv:1")
    assert (row.tokens, row.mean_tokens) == (3 * per_frame, 3 * per_frame * (4 + 1) / 2)


@pytest.mark.parametrize(("save", "also"), [(save_random_llava, {"oracle"}), (save_random_llava_next, set())])
def test_all_methods_are_those_that_the_architecture_can_have(
    save: Callable[[Path], Path], also: set[str], mini_like: Dataset, tmp_path: Path
) -> None:
    few, out = mini_like.limited(1), tmp_path / "run"
    with VideoQA.from_pretrained(save(tmp_path / "model"), device="cpu") as other:
        for name in {"fastv:1", "oracle"} - also:
            with pytest.raises(InvalidRequestError, match=f"'{name}' cannot be measured here: this model"):
                run(other, few, out, name)
        assert not out.exists()
        assert {p.method for p in run(other, few, out, "all", keeps=(0.25,))} == {FULL, BLIND, *method_names(), *also}


def test_each_video_is_decoded_and_goes_through_the_tower_once(
    qa: VideoQA, mini_like: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    original = VisionEncoder.run_tower

    def counted(encoder: VisionEncoder, frames: FrameBatch) -> TowerOutput:
        calls.append("tower")
        return original(encoder, frames)

    monkeypatch.setattr(VisionEncoder, "run_tower", counted)
    run(qa, mini_like, tmp_path, "all")
    assert len(calls) == len(mini_like.videos)
    run(qa, mini_like, tmp_path, "all")
    assert len(calls) == len(mini_like.videos)  # and not at all if nothing is missing


def test_only_what_is_missing_is_computed(qa: VideoQA, dataset: Dataset, tmp_path: Path) -> None:
    before = run(qa, dataset, tmp_path, "cls_attention")
    path = tmp_path / "predictions.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    marked = [line.replace('"pred": "', '"pred": "kept ') for line in lines[:-5]]
    path.write_text("".join(marked) + lines[-5][:40])
    after = run(qa, dataset, tmp_path, "cls_attention", "random")
    kept = [p for p in after if p.pred.startswith("kept ")]
    assert len(kept) == len(lines) - 5
    assert {key: text.removeprefix("kept ") for key, text in answers(after).items() if key[0].method != "random"} == (
        answers(before)
    )
    assert {p.method for p in after} == {FULL, BLIND, "cls_attention", "random"}


def test_starting_over_and_other_settings(qa: VideoQA, dataset: Dataset, tmp_path: Path) -> None:
    run(qa, dataset, tmp_path, "cls_attention")
    with pytest.raises(InvalidInputError, match=r"dataset_digest was .*videos was 4, is 2.*--no-resume"):
        run(qa, dataset.limited(2), tmp_path, "cls_attention")
    assert len({p.video for p in run(qa, dataset.limited(2), tmp_path, "random", resume=False)}) == 2


def test_another_model_is_another_run(qa: VideoQA, dataset: Dataset, tmp_path: Path) -> None:
    """Even if its tower is the same."""
    import shutil

    from safetensors.torch import load_file, save_file

    run(qa, dataset, tmp_path / "run", keeps=(1.0,))
    folder = shutil.copytree(qa.facts.checkpoint.folder, tmp_path / qa.facts.checkpoint.folder.name)
    tensors = load_file(folder / "model.safetensors")
    name = next(name for name in tensors if "lm_head" in name)
    save_file(tensors | {name: tensors[name] * 2}, folder / "model.safetensors", metadata={"format": "pt"})
    with VideoQA.from_pretrained(folder, device="cpu") as other:
        assert other.facts.fingerprint() == qa.facts.fingerprint()
        with pytest.raises(InvalidInputError, match="model_digest"):
            run(other, dataset, tmp_path / "run", keeps=(1.0,))


def test_videos_that_cannot_be_decoded_are_left_out_and_told(qa: VideoQA, tmp_path: Path) -> None:
    from fastervlm_video.eval.datasets import read_jsonl

    questions = write_folder(tmp_path / "data", 3)
    (questions.parent / "videos/0001.mp4").write_bytes(b"no video")
    dataset = read_jsonl(questions)
    told: list[tuple[int, int]] = []
    results = evaluate(
        qa, dataset, tmp_path / "run", methods=["random"], keeps=(0.5,), sampling=FRAMES, bootstrap=50,
        progress=lambda done, total: told.append((done, total)),
    )  # fmt: skip
    assert list(results.failures) == ["videos/0001.mp4"]
    assert results.videos == 2
    assert {row.questions for row in results.rows} == {6}
    assert told[-1] == (27, 27)
    assert told == sorted(told)
    for index in (0, 2):
        (questions.parent / f"videos/000{index}.mp4").write_bytes(b"no video either")
    with pytest.raises(InvalidInputError, match="none of the 3 videos can be decoded"):
        evaluate(qa, read_jsonl(questions), tmp_path / "other", methods=["random"], keeps=(0.5,), sampling=FRAMES)


def test_draws_are_counted_before_the_work(qa: VideoQA, dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="bootstrap must be at least 1, got 0"):
        evaluate(qa, dataset, tmp_path / "run", methods=["random"], bootstrap=0)
    assert not (tmp_path / "run").exists()


def test_the_models_limits_hold_for_data_sets_too(qa: VideoQA, dataset: Dataset, tmp_path: Path) -> None:
    told = r"none of the 4 videos can be decoded.*more than the 10 allowed"
    strict = VideoQA(qa.facts, device="cpu", limits=MediaLimits(max_bytes=10))
    with strict, pytest.raises(InvalidInputError, match=told):
        run(strict, dataset, tmp_path, "random")


def test_questions_that_cannot_be_asked_count_as_wrong(qa: VideoQA, dataset: Dataset, tmp_path: Path) -> None:
    first, *rest = dataset.samples
    bad = [replace(first, question="what is <video> ?"), *rest]
    bad[1] = replace(bad[1], question="what " * 600)
    results = evaluate(
        qa, Dataset("x", dataset.folder, tuple(bad)), tmp_path, methods=["fastv:0"], keeps=(0.5,), sampling=FRAMES,
        bootstrap=50,
    )  # fmt: skip
    assert [row.errors for row in results.rows] == [2, 2, 2]
    assert {row.questions for row in results.rows} == {len(dataset.samples)}
    errors = {p.id: p.error for p in read_predictions(tmp_path) if p.error}
    assert "<video>" in errors[first.question_id]
    assert "context is 512" in errors[bad[1].question_id]


SLOW_RUN = """
import sys, time
from pathlib import Path
import torch
from fastervlm_video import VideoQA
from fastervlm_video.config import FrameSampling
from fastervlm_video.eval import evaluate
from fastervlm_video.eval.datasets import read_jsonl

torch.set_num_threads(1)
model, questions, out = sys.argv[1:]
with VideoQA.from_pretrained(model, device="cpu") as qa:
    evaluate(
        qa, read_jsonl(Path(questions)), Path(out), methods=["cls_attention", "random"], keeps=(1.0, 0.5, 0.25),
        sampling=FrameSampling(3), max_tokens=6, bootstrap=50, progress=lambda done, total: time.sleep(0.05),
    )
"""


def test_a_run_survives_kill_9(
    qa: VideoQA, checkpoint: Path, questions: Path, dataset: Dataset, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    command = [sys.executable, "-c", SLOW_RUN, str(checkpoint), str(questions), str(out)]
    process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, cwd=Path(__file__).parents[2])
    path, deadline = out / "predictions.jsonl", time.monotonic() + PATIENCE_SECONDS
    while not (path.is_file() and path.read_bytes().count(b"\n") >= 20):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait(PATIENCE_SECONDS) == -signal.SIGKILL
    survived = read_predictions(out)
    assert 20 <= len(survived) < 6 * len(dataset.samples)
    resumed = run(qa, dataset, out, "cls_attention", "random")
    assert resumed[: len(survived)] == survived
    undisturbed = run(qa, dataset, tmp_path / "other", "cls_attention", "random")
    assert answers(resumed) == answers(undisturbed)


def test_predictions_are_lines_that_other_tools_read(qa: VideoQA, dataset: Dataset, tmp_path: Path) -> None:
    predictions = run(qa, dataset, tmp_path, keeps=(1.0,))
    lines = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    assert {"id", "video", "question", "answer", "pred", "type", "method", "keep", "seed", "tokens"} <= lines[0].keys()
    assert lines == [asdict(p) for p in predictions]
