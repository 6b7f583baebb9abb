"""The tower's fingerprint: equal for equal towers, and only for those."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from fastervlm_video.models import Checkpoint
from tests.checkpoints import (
    LAYOUTS,
    copy_checkpoint,
    perturb,
    renamed,
    rewrite,
)
from tests.models.kit import DEPTH, LAYER, Change, Edit, changed, edit_json, set_vision, shard_by_tensor


def test_the_fingerprint_does_not_depend_on_names_or_files(folder: Path, tmp_path: Path) -> None:
    expected = Checkpoint.open(folder).tower_fingerprint()
    assert len(expected) == 64
    for number, layout in enumerate(LAYOUTS.values()):
        other = rewrite(copy_checkpoint(folder, tmp_path / str(number)), renamed(layout))
        assert Checkpoint.open(other).tower_fingerprint() == expected
    shard_by_tensor(folder)
    assert Checkpoint.open(folder).tower_fingerprint() == expected


def noise(prefix: str) -> Change:
    generator = torch.Generator().manual_seed(1)
    return lambda tensors: {
        name: perturb(name, tensor, generator) if name.startswith(prefix) else tensor
        for name, tensor in tensors.items()
    }


@pytest.mark.parametrize(
    "unused",
    [f"{LAYER}.{DEPTH}.", "video_tower.post_layernorm.", "image_tower.", "language_model.", "multi_modal_projector."],
)
def test_the_fingerprint_ignores_what_features_do_not_depend_on(folder: Path, unused: str) -> None:
    before = Checkpoint.open(folder).tower_fingerprint()
    rewrite(folder, noise(unused))
    assert Checkpoint.open(folder).tower_fingerprint() == before


@pytest.mark.parametrize(
    "edit",
    [
        set_vision(layer_norm_eps=1e-6),
        set_vision(hidden_act="quick_gelu"),
        set_vision(num_attention_heads=2),
        lambda config: config.update(vision_feature_layer=-1),
    ],
)
def test_the_fingerprint_covers_settings(folder: Path, edit: Edit) -> None:
    before = Checkpoint.open(folder).tower_fingerprint()
    edit_json(folder / "config.json", edit)
    assert Checkpoint.open(folder).tower_fingerprint() != before


def test_the_fingerprint_is_one_for_both_ways_to_count_layers(folder: Path) -> None:
    before = Checkpoint.open(folder).tower_fingerprint()
    edit_json(folder / "config.json", lambda config: config.update(vision_feature_layer=3))
    assert Checkpoint.open(folder).tower_fingerprint() == before


@pytest.mark.parametrize(
    "name", ["embeddings.class_embedding", "encoder.layers.0.mlp.fc2.bias", "encoder.layers.2.self_attn.out_proj.bias"]
)
def test_the_fingerprint_covers_every_used_tensor(folder: Path, name: str) -> None:
    before = Checkpoint.open(folder).tower_fingerprint()

    def one_bit_up(tensor: Tensor) -> Tensor:
        tensor.view(torch.int32)[0] += 1
        return tensor

    rewrite(folder, changed(f"video_tower.{name}", one_bit_up))
    assert Checkpoint.open(folder).tower_fingerprint() != before


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_fingerprint_tells_dtypes_apart(folder: Path, dtype: torch.dtype) -> None:
    before = Checkpoint.open(folder).tower_fingerprint()
    rewrite(folder, lambda tensors: {name: tensor.to(dtype) for name, tensor in tensors.items()})
    assert Checkpoint.open(folder).tower_fingerprint() != before


def test_the_fingerprint_tells_dtypes_of_equal_bytes_apart(folder: Path) -> None:
    rewrite(folder, lambda tensors: {name: tensor.half() for name, tensor in tensors.items()})
    before = Checkpoint.open(folder).tower_fingerprint()
    rewrite(folder, lambda tensors: {name: tensor.view(torch.bfloat16) for name, tensor in tensors.items()})
    assert Checkpoint.open(folder).tower_fingerprint() != before
