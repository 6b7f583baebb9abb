import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import VideoLlavaForConditionalGeneration

from fastervlm_video.mini import MiniSize, save_mini_checkpoint
from tests.checkpoints import SMALL, WEIGHTS


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def test_equal_seeds_make_equal_files_and_others_other_weights(tmp_path: Path) -> None:
    first, again, other = (
        digests(save_mini_checkpoint(tmp_path / name, size=SMALL, seed=seed))
        for name, seed in (("first", 3), ("again", 3), ("other", 4))
    )
    assert first == again
    assert {name for name in first if first[name] != other[name]} == {WEIGHTS}


def test_torchs_own_random_numbers_are_left_alone(tmp_path: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    save_mini_checkpoint(tmp_path / "model", size=SMALL)
    assert torch.equal(torch.rand(3), expected)


def test_hugging_face_loads_it_with_no_key_left_over(tmp_path: Path) -> None:
    folder = save_mini_checkpoint(tmp_path / "model", size=SMALL)
    loading: Any = VideoLlavaForConditionalGeneration.from_pretrained
    model, report = loading(folder, output_loading_info=True)
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        assert not report[kind], kind
    stored = load_file(folder / WEIGHTS)
    loaded = dict(model.named_parameters())
    name = next(name for name in loaded if name.endswith("multi_modal_projector.linear_1.weight"))
    assert torch.equal(loaded[name], stored[next(key for key in stored if key.endswith("projector.linear_1.weight"))])


def test_every_dimension_may_be_changed(tmp_path: Path) -> None:
    size = MiniSize(
        image_size=42,
        patch_size=14,
        vision_width=36,
        vision_layers=5,
        vision_heads=2,
        text_width=40,
        text_layers=1,
        text_heads=4,
        context_length=99,
        feature_layer=-3,
    )
    config = json.loads((save_mini_checkpoint(tmp_path / "model", size=size) / "config.json").read_text())
    vision, text = config["vision_config"], config["text_config"]
    assert (vision["image_size"], vision["patch_size"], vision["hidden_size"]) == (42, 14, 36)
    assert (vision["num_hidden_layers"], vision["num_attention_heads"]) == (5, 2)
    assert (text["hidden_size"], text["num_hidden_layers"], text["num_attention_heads"]) == (40, 1, 4)
    assert (text["max_position_embeddings"], config["vision_feature_layer"]) == (99, -3)
    assert config["video_seq_length"] == 9


@pytest.mark.parametrize("name", ["preprocessor_config.json", "video_preprocessor_config.json"])
def test_frames_are_made_as_large_as_the_tower_takes_them(tmp_path: Path, name: str) -> None:
    folder = save_mini_checkpoint(tmp_path / "model", size=SMALL)
    content = json.loads((folder / name).read_text())
    assert content["size"] == {"shortest_edge": SMALL.image_size}
    assert content["crop_size"] == {"height": SMALL.image_size, "width": SMALL.image_size}
