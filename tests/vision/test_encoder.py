"""Several videos through one tower, each pruned its own way."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from fastervlm_video.config import FrameResize, PruneSpec
from fastervlm_video.errors import CheckpointError, InvalidRequestError
from fastervlm_video.models import Checkpoint
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
from fastervlm_video.vision import EncodeJob, VisionEncoder, VisualTokens
from tests.checkpoints import frame_batch, random_frames, save_random_checkpoint

torch.set_num_threads(1)

SIDE, PATCHES, WIDTH = 32, 16, 24


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> VisionEncoder:
    folder = save_random_checkpoint(tmp_path_factory.mktemp("checkpoint") / "random")
    return Checkpoint.open(folder).load_vision("cpu")


def job(frames: int, spec: PruneSpec | None = None, seed: int = 0) -> EncodeJob:
    return EncodeJob(frame_batch(random_frames(frames, SIDE, SIDE, seed)), spec or PruneSpec())


def same(a: VisualTokens, b: VisualTokens, *, atol: float = 1e-5) -> None:
    assert torch.equal(a.indices, b.indices)
    assert a.counts == b.counts
    torch.testing.assert_close(a.features, b.features, rtol=0, atol=atol)
    torch.testing.assert_close(a.scores, b.scores, rtol=0, atol=1e-6)


def test_tokens_are_the_towers_features_at_their_indices(encoder: VisionEncoder) -> None:
    (tokens,) = encoder.encode([job(3, PruneSpec(keep_tokens=5, keep_cls=True))])
    frames = torch.from_numpy(random_frames(3, SIDE, SIDE))
    output = encoder.tower(encoder.preprocessing.normalise(frames, encoder.device, encoder.dtype))
    assert tokens.counts == (5, 5, 5)
    assert tokens.cls_features is not None
    torch.testing.assert_close(tokens.cls_features, output.features[:, 0], rtol=0, atol=1e-5)
    for frame in range(3):
        rows = slice(5 * frame, 5 * frame + 5)
        chosen = tokens.indices[rows].long()
        torch.testing.assert_close(tokens.features[rows], output.features[frame, 1 + chosen], rtol=0, atol=1e-5)
        assert torch.equal(tokens.scores[rows], output.cls_attention[frame, chosen])
        assert chosen.tolist() == np.argsort(-output.cls_attention[frame].numpy(), kind="stable")[:5].tolist()


def test_tokens_say_what_they_are(encoder: VisionEncoder) -> None:
    (tokens,) = encoder.encode([job(2, PruneSpec(method="uniform_grid", keep_ratio=0.25))])
    assert (tokens.grid, tokens.width, tokens.method, tokens.nested) == ((4, 4), WIDTH, "uniform_grid", False)
    assert tokens.fingerprint == encoder.fingerprint
    assert tokens.pts_seconds == (0.0, 1.0)
    assert tokens.cls_features is None
    assert tokens.features.dtype == torch.float32
    assert tokens.features.device.type == "cpu"
    assert (encoder.patches_per_frame, encoder.frame_size) == (PATCHES, (SIDE, SIDE))


MIXED = [
    (3, PruneSpec(keep_tokens=4), 1),
    (1, PruneSpec(method="random", keep_ratio=0.5, seed=9), 2),
    (5, PruneSpec(keep_ratio=1.0, keep_cls=True), 3),
    (2, PruneSpec(method="uniform_grid", keep_tokens=7), 4),
]


@pytest.mark.parametrize("limit", [1, 2, 3, 4, 7, 11, 64])
def test_a_result_does_not_depend_on_what_else_is_in_the_batch(encoder: VisionEncoder, limit: int) -> None:
    jobs = [job(*each) for each in MIXED]
    together = encoder.encode(jobs, max_frames_per_forward=limit)
    assert len(together) == len(jobs)
    for each, tokens in zip(jobs, together, strict=True):
        (alone,) = encoder.encode([each])
        same(tokens, alone)
        assert (tokens.cls_features is None) == (alone.cls_features is None)


@pytest.mark.parametrize("method", method_names())
def test_every_method_fits_the_encoder(encoder: VisionEncoder, method: str) -> None:
    """At every budget, with frames of other videos in the same pass, and cut in two by it."""
    for k in (1, 2, 5, 7, PATCHES):
        spec = PruneSpec(method=method, keep_tokens=k, keep_cls=True)
        _, tokens = encoder.encode([job(3, seed=1), job(4, spec, seed=2)], max_frames_per_forward=5)
        (alone,) = encoder.encode([job(4, spec, seed=2)])
        same(tokens, alone)
        assert (sum(tokens.counts), tokens.tokens_kept, len(tokens.sequence())) == (4 * k, 4 * k + 4, 4 * k + 4)
        assert tokens.select(k) is tokens


@pytest.mark.parametrize("method", [name for name in method_names() if not get_method(name).nested])
def test_tokens_of_other_methods_are_not_cut(encoder: VisionEncoder, method: str) -> None:
    (tokens,) = encoder.encode([job(3, PruneSpec(method=method, keep_tokens=7))])
    with pytest.raises(InvalidRequestError, match=f"{method!r} is not nested"):
        tokens.select(6)


def test_merged_features_take_the_place_of_the_towers(encoder: VisionEncoder) -> None:
    (tokens,) = encoder.encode([job(2, PruneSpec(method="visionzip", keep_tokens=8))])
    (full,) = encoder.encode([job(2, PruneSpec(keep_ratio=1.0))])
    all_features = full.features[full.raster_order()].view(2, PATCHES, WIDTH)
    for frame in range(2):
        rows = slice(8 * frame, 8 * frame + 8)
        own = all_features[frame, tokens.indices[rows].long()]
        changed = (tokens.features[rows] - own).abs().amax(dim=1) > 1e-4
        assert int(changed.sum()) == 1  # of 8 tokens one is contextual, the average of all 9 that are not dominant
        dominant = tokens.indices[rows][~changed].long()
        others = [patch for patch in range(PATCHES) if patch not in dominant.tolist()]
        torch.testing.assert_close(tokens.features[rows][changed][0], all_features[frame, others].mean(dim=0))


def test_frames_may_keep_nothing(encoder: VisionEncoder) -> None:
    """A video that stands still, as temporal pruning sees it; raster order and [CLS] hold."""
    still = frame_batch(np.repeat(random_frames(1, SIDE, SIDE), 4, axis=0))
    (tokens,) = encoder.encode([EncodeJob(still, PruneSpec(method="evs", keep_tokens=4, keep_cls=True))])
    assert tokens.counts == (PATCHES, 0, 0, 0)
    assert tokens.cls_features is not None
    assert torch.equal(
        tokens.sequence(), torch.cat([tokens.cls_features[:1], tokens.features, tokens.cls_features[1:]])
    )


@pytest.mark.parametrize(("limit", "sizes"), [(4, [4, 4, 3]), (11, [11]), (64, [11]), (5, [5, 5, 1])])
def test_forward_passes_are_full_and_bounded(encoder: VisionEncoder, limit: int, sizes: list[int]) -> None:
    seen: list[int] = []
    hook = encoder.tower.embeddings.register_forward_hook(lambda _module, _inputs, output: seen.append(len(output)))
    try:
        encoder.encode([job(*each) for each in MIXED], max_frames_per_forward=limit)
    finally:
        hook.remove()
    assert seen == sizes


@pytest.mark.parametrize("method", [name for name in method_names() if get_method(name).nested])
def test_a_slice_of_a_larger_budget_is_a_fresh_encode_at_the_smaller(encoder: VisionEncoder, method: str) -> None:
    (full,) = encoder.encode([job(3, PruneSpec(method=method, keep_ratio=1.0, seed=5))])
    for k in range(1, PATCHES + 1):
        (fresh,) = encoder.encode([job(3, PruneSpec(method=method, keep_tokens=k, seed=5))])
        same(full.select(k), fresh)
        torch.testing.assert_close(full.select(k).sequence(), fresh.sequence(), rtol=0, atol=1e-5)


def test_ties_are_kept_in_index_order(encoder: VisionEncoder) -> None:
    """With queries of zero every key gets the same attention, exactly."""
    attention = encoder.tower.encoder.get_submodule("layers").get_submodule(str(encoder.tower.depth - 1)).self_attn
    assert isinstance(attention, torch.nn.Module)
    weight, bias = attention.get_parameter("q_proj.weight"), attention.get_parameter("q_proj.bias")
    kept = weight.clone(), bias.clone()
    try:
        weight.zero_()
        bias.zero_()
        for k in (1, 3, PATCHES):
            (tokens,) = encoder.encode([job(2, PruneSpec(keep_tokens=k))])
            assert len(set(tokens.scores.tolist())) == 1
            assert tokens.indices.tolist() == [*range(k), *range(k)]
    finally:
        weight.copy_(kept[0])
        bias.copy_(kept[1])


def test_seeds_reach_the_method(encoder: VisionEncoder) -> None:
    jobs = [job(2, PruneSpec(method="random", keep_tokens=8, seed=seed)) for seed in (1, 2, 1)]
    a, b, c = encoder.encode(jobs)
    assert torch.equal(a.indices, c.indices)
    assert not torch.equal(a.indices, b.indices)


def test_tokens_hold_no_more_memory_than_they_need(encoder: VisionEncoder) -> None:
    """A view would keep the whole batch's features alive for as long as the tokens are cached."""
    (tokens,) = encoder.encode([job(2, PruneSpec(keep_tokens=1, keep_cls=True))])
    assert tokens.cls_features is not None
    for tensor in (tokens.features, tokens.cls_features, tokens.indices, tokens.scores):
        assert tensor.untyped_storage().nbytes() == tensor.nbytes
        assert not tensor.is_inference(), "whoever gets them may use them with autograd on"


def test_frames_in_shared_read_only_memory_are_taken(encoder: VisionEncoder) -> None:
    frames = random_frames(2, SIDE, SIDE)
    frames.setflags(write=False)
    (tokens,) = encoder.encode([EncodeJob(frame_batch(frames), PruneSpec())])
    (expected,) = encoder.encode([job(2)])
    same(tokens, expected)


def test_methods_get_what_they_declare_and_nothing_else(
    encoder: VisionEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, tuple[int, ...] | None]] = []

    def select(inputs: PruneInputs) -> Selection:
        """A ragged choice: frame i keeps i + 1 patches."""
        tensors: dict[str, Tensor | None] = {need.value: getattr(inputs, need.value) for need in Need}
        seen.append({name: None if tensor is None else tuple(tensor.shape) for name, tensor in tensors.items()})
        counts = tuple(range(1, inputs.num_frames + 1))
        indices = torch.cat([torch.arange(count) for count in counts])
        return Selection(indices, torch.ones(len(indices)), counts)

    method = PruneMethod("probe", "test", select, frozenset({Need.KEYS, Need.FEATURES}), False, False, False, False)
    monkeypatch.setitem(registry._METHODS, "probe", method)
    (tokens,) = encoder.encode([job(3, PruneSpec(method="probe"))])
    assert seen == [{"cls_attention": None, "features": (3, PATCHES, WIDTH), "keys": (3, 3, PATCHES, WIDTH // 3)}]
    assert tokens.counts == (1, 2, 3)
    (full,) = encoder.encode([job(3, PruneSpec(keep_ratio=1.0))])
    third = full.features[2 * PATCHES :][full.indices[2 * PATCHES :].argsort()]
    torch.testing.assert_close(tokens.features[3:], third[:3], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (EncodeJob(frame_batch(random_frames(1, SIDE, SIDE + 8)), PruneSpec()), r"resized to \(32, 32\).*\(32, 40\)"),
        (job(1, PruneSpec(method="best")), "unknown pruning method 'best'"),
        (job(1, PruneSpec(keep_tokens=17)), "keep_tokens=17 is more than the 16"),
    ],
)
def test_a_bad_job_is_found_before_anything_runs(encoder: VisionEncoder, bad: EncodeJob, message: str) -> None:
    def forbidden(*_args: object) -> None:
        raise AssertionError("the tower ran")

    hook = encoder.tower.embeddings.register_forward_hook(forbidden)
    try:
        with pytest.raises(InvalidRequestError, match=message):
            encoder.encode([job(1), bad])
        with pytest.raises(InvalidRequestError, match=message):
            encoder.check(bad)
        encoder.check(job(1))
    finally:
        hook.remove()


def test_no_jobs_no_tokens(encoder: VisionEncoder) -> None:
    assert encoder.encode([]) == []


def test_a_forward_pass_needs_room_for_a_frame(encoder: VisionEncoder) -> None:
    with pytest.raises(InvalidRequestError, match="max_frames_per_forward must be at least 1, got 0"):
        encoder.encode([job(1)], max_frames_per_forward=0)


def test_broken_weights_do_not_become_tokens(tmp_path: Path) -> None:
    encoder = Checkpoint.open(save_random_checkpoint(tmp_path / "c")).load_vision("cpu")
    encoder.tower.embeddings.class_embedding.fill_(float("nan"))
    for method in method_names():
        with pytest.raises(CheckpointError, match=r"not finite in torch\.float32"):
            encoder.encode([job(2, PruneSpec(method=method))])


def test_half_precision_towers_give_float32_tokens(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(save_random_checkpoint(tmp_path / "c"))
    half, full = checkpoint.load_vision("cpu", "bfloat16"), checkpoint.load_vision("cpu", "float32")
    assert half.dtype == torch.bfloat16
    spec = PruneSpec(keep_ratio=1.0)
    (a,), (b,) = half.encode([job(2, spec)]), full.encode([job(2, spec)])
    assert a.features.dtype == torch.float32
    order = a.raster_order(), b.raster_order()
    torch.testing.assert_close(a.features[order[0]], b.features[order[1]], rtol=0.1, atol=0.3)


def test_preprocessing_must_fit_the_tower(encoder: VisionEncoder) -> None:
    other = replace(encoder.preprocessing, resize=FrameResize(size=(16, 16)))
    with pytest.raises(CheckpointError, match=r"frames of \(16, 16\).*takes \(32, 32\)"):
        VisionEncoder(encoder.tower, other, encoder.fingerprint)


def test_top_k_of_the_encoder_is_stable_for_constant_frames(encoder: VisionEncoder) -> None:
    """A black video: whatever ties rounding leaves, tokens come by score and then by index."""
    black = np.zeros((2, SIDE, SIDE, 3), np.uint8)
    (tokens,) = encoder.encode([EncodeJob(frame_batch(black), PruneSpec(keep_ratio=1.0))])
    scores = torch.empty(2, PATCHES).scatter_(1, tokens.indices.long().view(2, -1), tokens.scores.view(2, -1))
    assert torch.equal(top_k_stable(scores, PATCHES).flatten().int(), tokens.indices)
