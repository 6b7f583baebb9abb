"""Never a silent random layer: weights that do not fit are refused."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fastervlm_video.errors import CheckpointError
from fastervlm_video.mini.vocabulary import build_tokenizer
from fastervlm_video.models import Checkpoint
from tests.checkpoints import (
    renamed,
    rewrite,
)
from tests.models.kit import DEPTH, LAYER, Change, changed, loads_language, loads_vision, without

WORDS = len(build_tokenizer())

BROKEN: dict[str, tuple[Change, Callable[[Checkpoint], object], str]] = {
    "tower tensor missing": (
        without(f"{LAYER}.1.mlp.fc1.bias"),
        loads_vision,
        r"video tower lacks encoder\.layers\.1\.mlp\.fc1\.bias",
    ),
    "tower missing": (without("video_tower."), loads_vision, r"video tower lacks embeddings.* and \d+ more"),
    "tower tensor renamed": (
        renamed([(rf"{LAYER}\.0\.layer_norm1", f"{LAYER}.0.norm1")]),
        loads_vision,
        r"lacks encoder\.layers\.0\.layer_norm1\.bias.* has unknown encoder\.layers\.0\.norm1\.bias",
    ),
    "tower tensor of another shape": (
        changed(f"{LAYER}.2.mlp.fc1.weight", lambda t: t.T),
        loads_vision,
        r"encoder\.layers\.2\.mlp\.fc1\.weight is \[24, 96\] and should be \[96, 24\]",
    ),
    "tower layer too many": (
        lambda tensors: tensors | {f"{LAYER}.4.layer_norm1.bias": torch.zeros(24)},
        loads_vision,
        r"has unknown encoder\.layers\.4\.layer_norm1\.bias",
    ),
    "tower tensor twice": (
        lambda tensors: tensors | {"video_tower.vision_model.pre_layrnorm.bias": torch.zeros(24)},
        loads_vision,
        r"twice, as video_tower\..*pre_layrnorm\.bias and video_tower\..*pre_layrnorm\.bias",
    ),
    "tower tensor quantized": (
        changed(f"{LAYER}.0.mlp.fc1.weight", lambda t: t.to(torch.int8)),
        loads_vision,
        r"layers\.0\.mlp\.fc1\.weight .* is I8: quantized",
    ),
    "language tensor missing": (
        without("language_model.model.layers.1.mlp.up_proj.weight"),
        loads_language,
        r"language model lacks model\.layers\.1\.mlp\.up_proj\.weight",
    ),
    "language head missing": (without("language_model.lm_head"), loads_language, r"lacks lm_head\.weight"),
    "language layer too many": (
        lambda tensors: tensors | {"language_model.model.layers.2.input_layernorm.weight": torch.ones(32)},
        loads_language,
        r"has unknown model\.layers\.2\.input_layernorm\.weight",
    ),
    "vocabulary of another size": (
        changed("language_model.model.embed_tokens.weight", lambda t: t[:-1]),
        loads_language,
        rf"embed_tokens\.weight is \[{WORDS - 1}, 32\] and should be \[{WORDS}, 32\]",
    ),
    "projector missing": (without("multi_modal_projector."), loads_language, r"projector lacks linear_1\.bias"),
    "projector of another shape": (
        changed("multi_modal_projector.linear_1.weight", lambda t: t[:, :-1]),
        loads_language,
        r"linear_1\.weight is \[32, 23\] and should be \[32, 24\]",
    ),
    "something else": (
        lambda tensors: tensors | {"adapter.lora_A.weight": torch.zeros(2)},
        loads_vision,
        r"adapter\.lora_A\.weight, which is no part of a Video-LLaVA model",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_weights_that_do_not_fit_are_refused_by_name(name: str, folder: Path) -> None:
    change, load, message = BROKEN[name]
    rewrite(folder, change)
    with pytest.raises(CheckpointError, match=message):
        load(Checkpoint.open(folder))


@pytest.mark.parametrize(
    ("change", "load"),
    [(without("language_model."), loads_vision), (without(f"{LAYER}.{DEPTH}."), loads_vision)],
    ids=["no language model", "no unused layer"],
)
def test_what_a_half_does_not_use_may_be_missing(
    change: Change, load: Callable[[Checkpoint], object], folder: Path
) -> None:
    rewrite(folder, change)
    load(Checkpoint.open(folder))


def test_old_buffers_in_the_file_are_ignored(folder: Path) -> None:
    rewrite(
        folder,
        lambda tensors: (
            tensors
            | {
                "video_tower.embeddings.position_ids": torch.arange(17)[None],
                "language_model.model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(8),
            }
        ),
    )
    loads_vision(Checkpoint.open(folder))
    loads_language(Checkpoint.open(folder))
