"""Pruning inside the needed layer: the same tokens as pruning what Hugging Face's own tower computes in full."""

from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModel
from transformers.models.clip.modeling_clip import CLIPEncoderLayer

from fastervlm_video.config import FrameResize, PruneSpec
from fastervlm_video.prune import (
    Need,
    PruneInputs,
    PruneMethod,
    Selection,
    get_method,
    method_names,
    registry,
    top_k_stable,
)
from fastervlm_video.vision import EncodeJob, Preprocessing, TowerOutput, VisionEncoder, VisionTower, VisualTokens
from fastervlm_video.vision.passes import frames_per_pass
from fastervlm_video.vision.pruning import VideoPruning
from tests.checkpoints import frame_batch, random_frames, randomise

torch.set_num_threads(1)

SIDE, GRID, PATCHES, HEADS, DEPTH, FRAMES = 32, (4, 4), 16, 3, 3, 5
CONFIG: dict[str, Any] = {
    "image_size": SIDE,
    "patch_size": 8,
    "hidden_size": 24,
    "intermediate_size": 56,
    "num_attention_heads": HEADS,
    "num_hidden_layers": 4,
}
PREPROCESSING = Preprocessing(FrameResize(size=(SIDE, SIDE)), 1 / 255, (0.4, 0.5, 0.6), (0.2, 0.3, 0.25))
ROW_LAYER = f"encoder.layers.{DEPTH - 1}.mlp"


@cache
def reference() -> CLIPVisionModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # the same tower whatever ran before
        model = CLIPVisionModel._from_config(CLIPVisionConfig(**CONFIG), attn_implementation="eager")
    randomise(model, 0)
    assert isinstance(model, CLIPVisionModel)
    model.eval()
    return model


@pytest.fixture(scope="module")
def encoder() -> VisionEncoder:
    model = CLIPVisionModel._from_config(CLIPVisionConfig(**CONFIG), attn_implementation="sdpa")
    model.load_state_dict(reference().state_dict())
    return VisionEncoder(VisionTower(model, DEPTH), PREPROCESSING, "f" * 64)


@dataclass(frozen=True)
class Oracle:
    """Hidden states [T, 1+N, C], attention [T, heads, 1+N, 1+N] and keys of all tokens, made by Hugging Face's code."""

    features: Tensor
    attention: Tensor
    keys: Tensor

    @classmethod
    @torch.no_grad()
    def run(cls, job: EncodeJob) -> "Oracle":
        model, cpu = reference(), torch.device("cpu")
        pixels = PREPROCESSING.normalise(torch.from_numpy(job.frames.frames_thwc_u8), cpu, torch.float32)
        output = model(pixels, output_attentions=True, output_hidden_states=True)
        layer = model.encoder.layers[DEPTH - 1]
        assert isinstance(layer, CLIPEncoderLayer)
        keys = layer.self_attn.k_proj(layer.layer_norm1(output.hidden_states[DEPTH - 1]))
        heads = keys.unflatten(-1, (HEADS, -1)).transpose(1, 2)
        return cls(output.hidden_states[DEPTH], output.attentions[DEPTH - 1], heads)

    def select(self, job: EncodeJob) -> Selection:
        """The whole video's, from all tensors at once."""
        method = get_method(job.spec.method)
        return method.select(
            PruneInputs(
                job.spec.tokens_per_frame(PATCHES),
                GRID,
                job.frames.pts_seconds,
                seed=job.spec.seed,
                cls_attention=self.attention.mean(1)[:, 0, 1:],
                features=self.features[:, 1:],
                keys=self.keys[:, :, 1:],
            )
        )


def make_job(spec: PruneSpec, frames: int = FRAMES, seed: int = 0) -> EncodeJob:
    return EncodeJob(frame_batch(random_frames(frames, SIDE, SIDE, seed)), spec)


def agrees_with_hugging_face(tokens: VisualTokens, job: EncodeJob) -> None:
    oracle = Oracle.run(job)
    expected = oracle.select(job)
    assert tokens.counts == expected.counts
    assert tokens.indices.tolist() == expected.indices.tolist()
    torch.testing.assert_close(tokens.scores, expected.scores, rtol=0, atol=1e-5)
    features = expected.features
    if features is None:
        runs = expected.indices.split(list(expected.counts))
        features = torch.cat([oracle.features[frame, 1 + run] for frame, run in enumerate(runs)])
    torch.testing.assert_close(tokens.features, features, rtol=0, atol=1e-5)
    assert (tokens.cls_features is not None) == job.spec.keep_cls
    if tokens.cls_features is not None:
        torch.testing.assert_close(tokens.cls_features, oracle.features[:, 0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("method", method_names())
@pytest.mark.parametrize("keep_cls", [False, True])
@pytest.mark.parametrize("limit", [1, 2, 3, 5, 64])
def test_every_method_budget_and_division_into_passes(
    encoder: VisionEncoder, method: str, keep_cls: bool, limit: int
) -> None:
    for k in (1, 2, 6, PATCHES - 1, PATCHES):
        job = make_job(PruneSpec(method=method, keep_tokens=k, keep_cls=keep_cls, seed=3))
        (tokens,) = encoder.encode([job], max_frames_per_forward=limit)
        agrees_with_hugging_face(tokens, job)


@pytest.mark.parametrize("limit", [1, 2, 3, 4, 7, 9, 64])
def test_unlike_videos_in_one_pass(encoder: VisionEncoder, limit: int) -> None:
    specs = [
        PruneSpec(keep_tokens=4),
        PruneSpec(method="evs", keep_tokens=3),
        PruneSpec(method="random", keep_tokens=9, keep_cls=True, seed=8),
        PruneSpec(keep_tokens=3, keep_cls=True),
        PruneSpec(method="visionzip", keep_tokens=7, keep_cls=True),
        PruneSpec(keep_ratio=1.0),
        PruneSpec(method="cls_dpp", keep_tokens=4),
        PruneSpec(keep_tokens=4, keep_cls=True),
    ]
    jobs = [make_job(spec, frames=1 + number % 3, seed=number) for number, spec in enumerate(specs)]
    for job, tokens in zip(jobs, encoder.encode(jobs, max_frames_per_forward=limit), strict=True):
        agrees_with_hugging_face(tokens, job)


def rows_finished(encoder: VisionEncoder, jobs: list[EncodeJob], limit: int = 64) -> list[tuple[int, int]]:
    """(frames, rows) of every call of the needed layer's MLP."""
    seen: list[tuple[int, int]] = []
    module = encoder.tower.get_submodule(ROW_LAYER)
    hook = module.register_forward_hook(lambda _module, _inputs, output: seen.append(tuple(output.shape[:2])))
    try:
        encoder.encode(jobs, max_frames_per_forward=limit)
    finally:
        hook.remove()
    return seen


@pytest.mark.parametrize("method", ["cls_attention", "random", "uniform_grid"])
def test_only_kept_rows_are_finished(encoder: VisionEncoder, method: str) -> None:
    for k in (1, 5, PATCHES - 1):
        for keep_cls in (False, True):
            spec = PruneSpec(method=method, keep_tokens=k, keep_cls=keep_cls)
            assert rows_finished(encoder, [make_job(spec)]) == [(FRAMES, k + keep_cls)]
            assert rows_finished(encoder, [make_job(spec)], limit=2) == [(2, k + keep_cls)] * 2 + [(1, k + keep_cls)]
    assert rows_finished(encoder, [make_job(PruneSpec(method=method, keep_ratio=1.0))]) == [(FRAMES, 1 + PATCHES)]


def test_videos_that_keep_as_much_are_finished_together(encoder: VisionEncoder) -> None:
    specs = [PruneSpec(keep_tokens=k) for k in (4, 9, 4, 9, 4)]
    assert rows_finished(encoder, [make_job(spec, frames=2) for spec in specs]) == [(6, 4), (4, 9)]
    mixed = [PruneSpec(keep_tokens=4), PruneSpec(method="divprune", keep_tokens=4), PruneSpec(keep_tokens=4)]
    assert rows_finished(encoder, [make_job(spec, frames=2) for spec in mixed]) == [(4, 4), (2, 1 + PATCHES)]


def test_a_method_that_sees_all_frames_gets_them_in_one_piece(
    encoder: VisionEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that needs nothing but [CLS] attention, but of the whole video, and spreads its budget unevenly."""
    seen: list[int] = []

    def select(inputs: PruneInputs) -> Selection:
        assert inputs.cls_attention is not None
        seen.append(inputs.num_frames)
        best = top_k_stable(inputs.cls_attention.flatten()[None], inputs.num_frames * inputs.tokens_per_frame)[0]
        kept = torch.zeros(inputs.cls_attention.numel(), dtype=torch.bool).scatter(0, best, value=True)
        runs = [frame.nonzero().flatten() for frame in kept.view_as(inputs.cls_attention)]
        counts = tuple(len(run) for run in runs)
        return Selection(torch.cat(runs), torch.ones(sum(counts)), counts)

    method = PruneMethod("probe", "test", select, frozenset({Need.CLS_ATTENTION}), False, False, True, False)
    monkeypatch.setitem(registry._METHODS, "probe", method)
    for limit in (2, FRAMES):
        job = make_job(PruneSpec(method="probe", keep_tokens=4, keep_cls=True))
        (tokens,) = encoder.encode([job], max_frames_per_forward=limit)
        agrees_with_hugging_face(tokens, job)
        assert len(set(tokens.counts)) > 1
    assert set(seen) == {FRAMES}


def held_bytes(video: VideoPruning) -> int:
    pieces = [(piece.selection.indices, piece.selection.scores, piece.features) for piece in video._kept]
    tensors = [tensor for piece in (*pieces, *(held.values() for held in video._held)) for tensor in piece]
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


@pytest.mark.parametrize("method", method_names())
def test_between_passes_no_more_is_held_than_is_needed(encoder: VisionEncoder, method: str) -> None:
    spec = PruneSpec(method=method, keep_tokens=2)
    video = VideoPruning(spec, GRID, tuple(float(frame) for frame in range(8)), encoder.device)
    output = encoder.run_tower(make_job(spec, frames=4).frames)
    features, keys = output.features.nbytes, output.keys.nbytes
    video.add_output(0, 4, video.choose(0, 4, output.cls_attention), output)
    if get_method(method).framewise or not get_method(method).needs:
        assert held_bytes(video) < features / 4
    else:
        assert features <= held_bytes(video) < features + keys


def test_a_cpu_takes_frames_in_portions_that_fit_its_cache() -> None:
    def tower(**changes: int) -> VisionTower:
        config = CLIPVisionConfig(**{**CONFIG, **changes})
        with torch.device("meta"):
            model = CLIPVisionModel._from_config(config, attn_implementation="sdpa")
        return VisionTower(model, 1).to_empty(device="cpu")

    large = tower(image_size=224, patch_size=14, hidden_size=48, intermediate_size=4096)
    assert large.activation_bytes_per_frame == 257 * 4096 * 4
    assert [frames_per_pass(large, limit) for limit in (1, 2, 64)] == [1, 2, 4]
    huge = tower(image_size=448, patch_size=14, hidden_size=48, intermediate_size=65536)
    assert frames_per_pass(huge, 64) == 1
    assert frames_per_pass(tower(), 64) == 64


def test_outputs_are_joined_and_divided() -> None:
    output = TowerOutput(torch.randn(5, 17, 24), torch.randn(5, 16), torch.randn(5, 3, 17, 8))
    joined = TowerOutput.join([output.of_frames(0, 2), output.of_frames(2, 5)])
    for name in ("features", "cls_attention", "keys"):
        assert torch.equal(getattr(joined, name), getattr(output, name))
    assert TowerOutput.join([output]) is output
