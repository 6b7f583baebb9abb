"""Each half holds and reads its own tensors only, and comes ready to use."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.modules.module import register_module_parameter_registration_hook
from transformers import PreTrainedModel, VideoLlavaForConditionalGeneration

from fastervlm_video.errors import CheckpointError, InvalidRequestError
from fastervlm_video.models import Checkpoint
from tests.checkpoints import (
    SMALL,
    WEIGHTS,
    copy_checkpoint,
    rewrite,
)
from tests.models.kit import DEPTH, LAYER, edit_json, loads_language, loads_vision, shard_by_tensor, without


def test_the_vision_half_holds_the_used_layers_and_nothing_else(folder: Path) -> None:
    held = dict(loads_vision(Checkpoint.open(folder)).tower.named_parameters())
    used = {
        name.removeprefix("video_tower."): tensor
        for name, tensor in load_file(folder / WEIGHTS).items()
        if name.startswith("video_tower.") and not name.startswith((f"{LAYER}.{DEPTH}.", "video_tower.post_layernorm."))
    }
    assert held.keys() == used.keys()
    assert all(torch.equal(held[name], used[name]) for name in used)


def test_the_language_half_holds_no_tower(folder: Path) -> None:
    half = loads_language(Checkpoint.open(folder))
    stored = load_file(folder / WEIGHTS)
    language = sum(t.numel() for name, t in stored.items() if name.startswith("language_model."))
    projector = sum(t.numel() for name, t in stored.items() if name.startswith("multi_modal_projector."))
    assert sum(p.numel() for p in half.language_model.parameters()) == language
    assert sum(p.numel() for p in half.projector.parameters()) == projector


def test_each_half_reads_its_own_files_only(folder: Path, tmp_path: Path) -> None:
    files = shard_by_tensor(folder)
    vision_only = copy_checkpoint(folder, tmp_path / "vision")
    language_only = copy_checkpoint(folder, tmp_path / "language")
    for name, path in files.items():
        tower = name.startswith("video_tower.") and not name.startswith(
            (f"{LAYER}.{DEPTH}.", "video_tower.post_layernorm.")
        )
        (language_only if tower else vision_only).joinpath(path.name).unlink()

    assert loads_vision(Checkpoint.open(vision_only)).fingerprint == Checkpoint.open(folder).tower_fingerprint()
    with pytest.raises(CheckpointError, match="missing or damaged"):
        loads_language(Checkpoint.open(vision_only))

    adapter = Checkpoint.open(language_only).adapter
    adapter.load_language(Checkpoint.open(language_only).weights, torch.device("cpu"), torch.float32)
    with pytest.raises(CheckpointError, match="missing or damaged"):
        loads_vision(Checkpoint.open(language_only))


def test_computed_buffers_are_right_after_loading(folder: Path) -> None:
    """They are in no file, and building without initialising must not leave them unset."""
    reference = VideoLlavaForConditionalGeneration.from_pretrained(folder)
    checkpoint = Checkpoint.open(folder)
    pairs = [
        (loads_vision(checkpoint).tower, reference.model.video_tower),
        (loads_language(checkpoint).language_model.get_submodule("model"), reference.model.language_model),
    ]
    for ours, theirs in pairs:
        expected = dict(theirs.named_buffers())
        assert dict(ours.named_buffers()).keys() == expected.keys() != set()
        for name, buffer in ours.named_buffers():
            assert torch.equal(buffer, expected[name])


def test_loading_leaves_global_state_as_it_was(folder: Path) -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    loads_vision(Checkpoint.open(folder))
    loads_language(Checkpoint.open(folder))
    assert torch.equal(torch.rand(2), expected)
    assert torch.get_default_dtype() == torch.float32
    weight = torch.nn.Linear(64, 64).weight
    assert 0 < weight.abs().max() < 1, "initialisation is on again"


def test_the_shared_config_is_not_touched(folder: Path) -> None:
    checkpoint = Checkpoint.open(folder)
    before = checkpoint.config.to_dict()
    loads_vision(checkpoint)
    loads_language(checkpoint)
    assert checkpoint.config.to_dict() == before


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", torch.bfloat16])
def test_halves_come_in_the_wanted_dtype(folder: Path, dtype: str | torch.dtype) -> None:
    expected = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    checkpoint = Checkpoint.open(folder)
    half = checkpoint.load_language("cpu", dtype)
    for module in (checkpoint.load_vision("cpu", dtype).tower, half.language_model, half.projector):
        assert {parameter.dtype for parameter in module.parameters()} == {expected}
    rotary = half.language_model.get_submodule("model.rotary_emb")
    assert rotary.get_buffer("inv_freq").dtype == torch.float32


def test_auto_is_float32_on_a_cpu(folder: Path) -> None:
    rewrite(folder, lambda tensors: {name: tensor.half() for name, tensor in tensors.items()})
    assert Checkpoint.open(folder).load_vision("cpu").dtype == torch.float32


@pytest.mark.parametrize(("device", "dtype"), [("cpu", "int8"), ("cpu", torch.int64), ("abacus", "auto")])
def test_unknown_places_and_types(folder: Path, device: str, dtype: str | torch.dtype) -> None:
    with pytest.raises(InvalidRequestError, match=r"unknown (device|dtype)"):
        Checkpoint.open(folder).load_vision(device, dtype)


def tie(folder: Path) -> None:
    edit_json(folder / "config.json", lambda config: config.update(tie_word_embeddings=True))


@pytest.mark.parametrize("dropped", ["language_model.lm_head.weight", "language_model.model.embed_tokens.weight"])
def test_tied_embeddings_load_from_either_name(folder: Path, dropped: str) -> None:
    tie(folder)
    (kept,) = {"language_model.lm_head.weight", "language_model.model.embed_tokens.weight"} - {dropped}
    expected = load_file(folder / WEIGHTS)[kept]
    rewrite(folder, without(dropped))
    model = loads_language(Checkpoint.open(folder)).language_model
    head, embedding = model.get_parameter("lm_head.weight"), model.get_parameter("model.embed_tokens.weight")
    assert head is embedding
    assert torch.equal(head, expected)


def test_tied_embeddings_may_be_stored_twice_if_they_agree(folder: Path) -> None:
    tie(folder)
    with pytest.raises(CheckpointError, match=r"ties model\.embed_tokens\.weight and lm_head\.weight.*different"):
        loads_language(Checkpoint.open(folder))
    rewrite(
        folder,
        lambda tensors: (
            tensors | {"language_model.lm_head.weight": tensors["language_model.model.embed_tokens.weight"].clone()}
        ),
    )
    loads_language(Checkpoint.open(folder))


def test_layers_that_are_not_used_are_not_even_built(folder: Path) -> None:
    built: list[int] = []

    def count(_module: torch.nn.Module, _name: str, parameter: torch.nn.Parameter | None) -> None:
        if parameter is not None and not parameter.is_meta:
            built.append(parameter.numel())

    hook = register_module_parameter_registration_hook(count)
    try:
        tower = loads_vision(Checkpoint.open(folder)).tower
    finally:
        hook.remove()
    post_layernorm = 2 * SMALL.vision_width  # belongs to the class, is dropped at once
    assert sum(built) == sum(parameter.numel() for parameter in tower.parameters()) + post_layernorm


def test_weights_that_are_about_to_be_loaded_are_not_drawn_first(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would take a minute for a model of 7 billion parameters."""

    def forbidden(_model: PreTrainedModel) -> None:
        raise AssertionError("weights were initialised")

    monkeypatch.setattr(PreTrainedModel, "initialize_weights", forbidden)
    loads_vision(Checkpoint.open(folder))
    loads_language(Checkpoint.open(folder))
