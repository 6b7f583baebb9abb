"""What opens, what is refused and with which words."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from transformers import CLIPVisionConfig, LlamaConfig

from fastervlm_video.config import Medium
from fastervlm_video.errors import CheckpointError
from fastervlm_video.models import Checkpoint, adapter_for
from tests.checkpoints import (
    SMALL,
    WEIGHTS,
    save_random_checkpoint,
    save_random_llava,
)
from tests.models.kit import (
    LAYER,
    Edit,
    drop,
    edit_json,
    loads_vision,
    set_vision,
    shard_by_tensor,
)


def test_facts_come_from_the_config(folder: Path) -> None:
    checkpoint = Checkpoint.open(folder)
    assert checkpoint.name == "my-checkpoint"
    assert checkpoint.grid == (4, 4)
    assert checkpoint.patches_per_frame == 16
    assert checkpoint.vision_width == SMALL.vision_width
    assert checkpoint.context_length == SMALL.context_length
    assert checkpoint.tokenizer.convert_ids_to_tokens(checkpoint.adapter.placeholder_id(Medium.VIDEO)) == "<video>"
    assert checkpoint.preprocessing().output_size == (32, 32)
    assert "my-checkpoint" in repr(checkpoint)


def test_the_language_half_is_what_the_config_says(folder: Path) -> None:
    edit_json(folder / "generation_config.json", lambda config: config.update(eos_token_id=[2, 7]))
    half = Checkpoint.open(folder).load_language("cpu")
    assert half.vision_width == SMALL.vision_width
    assert half.context_length == SMALL.context_length
    assert half.fingerprint == Checkpoint.open(folder).tower_fingerprint()
    assert half.language_model.config._attn_implementation == "sdpa"
    assert half.language_model.generation_config is not None
    assert half.language_model.generation_config.eos_token_id == [2, 7]
    assert not half.language_model.training
    assert not any(parameter.requires_grad for parameter in half.language_model.parameters())


def replace_weights_by_pickle(folder: Path) -> None:
    torch.save(load_file(folder / WEIGHTS), folder / "pytorch_model.bin")
    (folder / WEIGHTS).unlink()


def write_index(weight_map: object) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))

    return write


def config_edit(edit: Edit, file: str = "config.json") -> Callable[[Path], None]:
    return lambda folder: edit_json(folder / file, edit)


PROCESSORS = ("preprocessor_config.json", "video_preprocessor_config.json")
UNUSABLE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no config": (drop("config.json"), r"config\.json cannot be read"),
    "config not JSON": (lambda folder: (folder / "config.json").write_text("{"), "cannot be read as JSON"),
    "config no object": (lambda folder: (folder / "config.json").write_text("[]"), "JSON object, not a list"),
    "other architecture": (
        config_edit(lambda c: c.update(model_type="idefics")),
        "unsupported model_type 'idefics': supported are llava, llava_next, video_llava",
    ),
    "no architecture": (config_edit(lambda c: c.pop("model_type")), "unsupported model_type None"),
    "architecture no text": (config_edit(lambda c: c.update(model_type=["video_llava"])), "unsupported model_type"),
    "heads do not divide width": (config_edit(set_vision(num_attention_heads=5)), "not a usable config"),
    "width no number": (config_edit(set_vision(hidden_size="wide")), "not a usable config"),
    "other tower": (config_edit(set_vision(model_type="siglip_vision_model")), "vision tower 'siglip_vision_model'"),
    "several layers": (
        config_edit(lambda c: c.update(vision_feature_layer=[-2, -1])),
        r"vision_feature_layer=\[-2, -1\]",
    ),
    "no such layer": (config_edit(lambda c: c.update(vision_feature_layer=-6)), "vision_feature_layer=-6"),
    "oblong frames": (config_edit(set_vision(image_size=[32, 64])), "must be squares"),
    "quantized": (
        config_edit(lambda c: c.update(quantization_config={"quant_method": "bitsandbytes", "load_in_8bit": True})),
        "quantized",
    ),
    "pickled weights": (replace_weights_by_pickle, r"only \['pytorch_model.bin'\].*save_pretrained"),
    "no weights": (drop(WEIGHTS), "holds neither model.safetensors nor"),
    "weights cut short": (lambda folder: (folder / WEIGHTS).write_bytes(b"\1" * 100), "missing or damaged"),
    "index empty": (write_index({}), "has no weight_map"),
    "index leads elsewhere": (write_index({"a": "../other.safetensors"}), "not a safetensors file beside it"),
    "index names a pickle": (write_index({"a": "model.bin"}), "not a safetensors file beside it"),
    "no preprocessor config": (drop(*PROCESSORS), r"holds no preprocessor_config\.json"),
    "frames of another size": (
        config_edit(lambda c: c.update(crop_size={"height": 48, "width": 32}), PROCESSORS[1]),
        r"frames of \(48, 32\).*takes \(32, 32\)",
    ),
    "frames of any size": (config_edit(lambda c: c.update(do_center_crop=False), PROCESSORS[1]), "frames of None"),
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_unusable_folders_are_refused_in_words(name: str, folder: Path) -> None:
    spoil, message = UNUSABLE[name]
    spoil(folder)
    with pytest.raises(CheckpointError, match=message):
        Checkpoint.open(folder)


def test_an_index_that_promises_too_much(folder: Path) -> None:
    files = shard_by_tensor(folder)
    victim = files[f"{LAYER}.0.mlp.fc1.bias"]
    save_file({"other": torch.zeros(1)}, victim)
    with pytest.raises(CheckpointError, match=rf"{victim.name} does not hold {LAYER}\.0\.mlp\.fc1\.bias"):
        loads_vision(Checkpoint.open(folder))


def test_code_in_a_checkpoint_is_not_run(folder: Path) -> None:
    marker = folder / "ran"
    (folder / "evil.py").write_text(f"open({str(marker)!r}, 'w')\nclass Config: ...\n")
    edit_json(folder / "config.json", lambda c: c.update(auto_map={"AutoConfig": "evil.Config"}))
    edit_json(folder / "tokenizer_config.json", lambda c: c.update(auto_map={"AutoTokenizer": [None, "evil.Config"]}))
    assert Checkpoint.open(folder).tokenizer is not None
    assert not marker.exists()


def test_no_tokenizer(folder: Path) -> None:
    drop("tokenizer.json", "tokenizer_config.json")(folder)
    checkpoint = Checkpoint.open(folder)
    with pytest.raises(CheckpointError, match="holds no usable tokenizer"):
        _ = checkpoint.tokenizer


def test_the_chat_template_of_an_old_checkpoint_is_found(folder: Path) -> None:
    template = Checkpoint.open(folder).tokenizer.chat_template
    drop("chat_template.jinja")(folder)
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    assert Checkpoint.open(folder).tokenizer.chat_template == template


@pytest.mark.parametrize("place", ["nested for videos", "for images", "nested for images"])
def test_where_preprocessing_is_looked_for(folder: Path, place: str) -> None:
    """In the order in which Hugging Face's video processors look."""
    means = {
        name: {"image_mean": [value] * 3} for value, name in enumerate(("nested video", "video", "image", "nested"))
    }
    base = json.loads((folder / PROCESSORS[0]).read_text())
    (folder / PROCESSORS[0]).write_text(json.dumps(base | means["image"]))
    (folder / PROCESSORS[1]).write_text(json.dumps(base | means["video"]))
    nested = {"image_processor": base | means["nested"]}
    match place:
        case "nested for videos":
            nested["video_processor"], expected = base | means["nested video"], 0.0
        case "for images":
            (folder / PROCESSORS[1]).unlink()
            expected = 2.0
        case _:
            drop(*PROCESSORS)(folder)
            expected = 3.0
    edit_json(folder / "processor_config.json", lambda c: c.update(nested))
    assert Checkpoint.open(folder).preprocessing().mean == (expected,) * 3


@pytest.mark.parametrize(("place", "expected"), [("nested", 3.0), ("for images", 2.0), ("for videos", 1.0)])
def test_where_a_pictures_preprocessing_is_looked_for(folder: Path, place: str, expected: float) -> None:
    base = json.loads((folder / PROCESSORS[0]).read_text())
    (folder / PROCESSORS[0]).write_text(json.dumps(base | {"image_mean": [2.0] * 3}))
    (folder / PROCESSORS[1]).write_text(json.dumps(base | {"image_mean": [1.0] * 3}))
    match place:
        case "nested":
            nested = {"image_processor": base | {"image_mean": [3.0] * 3}}
            edit_json(folder / "processor_config.json", lambda c: c.update(nested))
        case "for videos":
            (folder / PROCESSORS[0]).unlink()
    assert Checkpoint.open(folder).preprocessing(Medium.IMAGE).mean == (expected,) * 3


@pytest.mark.parametrize("model", ["/no/such/folder", "./nothing", "~/nothing-here", Path("nothing"), "a/b/c"])
def test_folders_that_are_not_there(model: str | Path) -> None:
    with pytest.raises(CheckpointError, match="no model folder at"):
        Checkpoint.open(model)


def test_a_repository_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError, match=r"'someone/some-model' is no folder here.*give a folder"):
        Checkpoint.open("someone/some-model")


def test_a_name_the_hub_does_not_allow() -> None:
    with pytest.raises(CheckpointError, match="Check the name"):
        Checkpoint.open("not a name")


def test_a_repository_in_the_hubs_cache_opens_offline(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cached = tmp_path / "hub" / "models--someone--some-model"
    commit = "0" * 40
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text(commit)
    shutil.copytree(folder, cached / "snapshots" / commit)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    checkpoint = Checkpoint.open("someone/some-model")
    assert checkpoint.name == "someone/some-model"
    assert checkpoint.tower_fingerprint() == Checkpoint.open(folder).tower_fingerprint()


def test_adapters_are_chosen_by_model_type() -> None:
    for config in (LlamaConfig(), CLIPVisionConfig()):
        with pytest.raises(CheckpointError, match=f"unsupported model_type '{config.model_type}'"):
            adapter_for(config)


@pytest.mark.parametrize("size", [replace(SMALL, image_size=40, patch_size=9), replace(SMALL, text_heads=4)])
def test_other_sizes_open_too(size: Any, tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(save_random_checkpoint(tmp_path / "c", size))
    side = size.image_size // size.patch_size
    assert checkpoint.grid == (side, side)
    assert loads_vision(checkpoint).frame_size == (size.image_size, size.image_size)


def test_media_share_a_vision_half_where_all_is_equal(tmp_path: Path) -> None:
    llava = save_random_llava(tmp_path / "llava")
    shared = Checkpoint.open(llava)
    assert shared.vision_of(Medium.IMAGE) == shared.vision_of(Medium.VIDEO)
    config = json.loads((llava / PROCESSORS[0]).read_text())
    (llava / PROCESSORS[1]).write_text(json.dumps(config | {"image_mean": [0.5] * 3}))
    apart = Checkpoint.open(llava)
    assert apart.vision_of(Medium.IMAGE) != apart.vision_of(Medium.VIDEO)
    assert apart.load_vision("cpu", medium=Medium.VIDEO).preprocessing.mean == (0.5,) * 3
    two_towers = Checkpoint.open(save_random_checkpoint(tmp_path / "video-llava"))
    assert two_towers.vision_of(Medium.IMAGE) != two_towers.vision_of(Medium.VIDEO)
