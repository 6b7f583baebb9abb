"""The command ``models``: its numbers are those of requests, and no weights are needed for them."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches
from transformers.models.llava_next.processing_llava_next import LlavaNextProcessor

from fastervlm_video.cli_models import KEEP_RATIOS, PICTURE_SIZES
from fastervlm_video.config import FrameSampling, ImageLayout, Medium, ModelOptions, PruneSpec
from fastervlm_video.models import adapters
from fastervlm_video.plan import ModelFacts
from tests.checkpoints import PINPOINTS, WEIGHTS, save_random_checkpoint, save_random_llava, save_random_llava_next
from tests.cli_kit import Run, run_program

PUBLISHED = {"llava": (336, 576), "llava_next": (336, 576), "video_llava": (224, 256)}
"""Pixels and patches of a view, by the papers: ViT-L/14 at 336 px, and at 224 px."""


@pytest.fixture(scope="module")
def tiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_random_llava_next(tmp_path_factory.mktemp("tiled") / "my-[tiled]")


def test_all_architectures_are_listed_at_their_published_geometry(run: Run) -> None:
    listed = json.loads(run("models", "--json").out)["architectures"]
    assert [one["model_type"] for one in listed] == list(adapters())
    for one in listed:
        tokens, (side, patches) = one["tokens"], PUBLISHED[one["model_type"]]
        assert (tokens["image_size"], tokens["patches_per_view"]) == (side, patches)
        kept = [round(ratio * patches) for ratio in KEEP_RATIOS]
        assert tokens["kept_per_view"] == kept
        assert ("pictures" in tokens) == (one["model_type"] == "llava_next")
        assert tokens.get("kept_per_video", [8 * count for count in kept]) == [8 * count for count in kept]
    shown = run("models").out
    for adapter in adapters().values():
        assert all(text in shown for text in (adapter.title, adapter.model_type, adapter.example))


def test_unpruned_pictures_are_as_long_as_hugging_face_has_them(run: Run) -> None:
    (next_,) = (a for a in json.loads(run("models", "--json").out)["architectures"] if a["model_type"] == "llava_next")
    processor = object.__new__(LlavaNextProcessor)  # its arithmetic needs no tokenizer
    processor.patch_size, processor.num_additional_image_tokens = 14, 1
    processor.vision_feature_select_strategy = "default"
    pinpoints = adapters()["llava_next"].config_class().image_grid_pinpoints
    processor.image_processor = type("Processor", (), {"image_grid_pinpoints": pinpoints})()
    assert [(p["height"], p["width"]) for p in next_["tokens"]["pictures"]] == list(PICTURE_SIZES)
    for picture in next_["tokens"]["pictures"]:
        size = picture["height"], picture["width"]
        expected = processor._get_number_of_features(*size, 336, 336) - 1  # [CLS], which the processor takes off, too
        views = image_size_to_num_patches(size, pinpoints, 336)
        assert picture["tokens"]["hugging_face"][0] == expected
        assert picture["views"] == views
        assert picture["tokens"]["reference"] == [views * round(ratio * 576) for ratio in KEEP_RATIOS]


def test_a_checkpoints_counts_are_those_of_its_requests(run: Run, tiled: Path) -> None:
    told = json.loads(run("models", "--model", tiled, "--json").out)
    assert (told["model"], told["model_type"], told["context_length"]) == (str(tiled), "llava_next", 512)
    for layout in ImageLayout:
        facts = ModelFacts.open(tiled, options=ModelOptions(image_layout=layout))
        for picture in told["tokens"]["pictures"]:
            size = picture["height"], picture["width"]
            for ratio, count in zip(told["tokens"]["keep_ratios"], picture["tokens"][layout], strict=True):
                prune = PruneSpec(keep_ratio=ratio)
                assert facts.visual_runs(FrameSampling(8), prune, Medium.IMAGE, size=size) == (count,)
    assert facts.checkpoint.config.image_grid_pinpoints == PINPOINTS


@pytest.mark.parametrize("make", [save_random_checkpoint, save_random_llava])
def test_counts_of_models_with_one_view(run: Run, tmp_path: Path, make: Any) -> None:
    folder = make(tmp_path / "model")
    told, facts = json.loads(run("models", "-m", folder, "--json").out), ModelFacts.open(folder)
    for ratio, count in zip(told["tokens"]["keep_ratios"], told["tokens"]["kept_per_video"], strict=True):
        runs = facts.visual_runs(FrameSampling(told["num_frames"]), PruneSpec(keep_ratio=ratio))
        assert sum(runs) == count


def test_no_weights_are_read(run: Run, tmp_path: Path) -> None:
    folder = save_random_llava(tmp_path / "model")
    (folder / WEIGHTS).unlink()
    (folder / "tokenizer.json").unlink()
    assert run("models", "-m", folder).status == 0


def test_what_is_shown_of_a_checkpoint(run: Run, tiled: Path, tmp_path: Path) -> None:
    shown = run("models", "-m", tiled).out
    assert str(tiled) in shown  # and no markup
    assert "LLaVA-NeXT (llava_next)" in shown
    assert "vision_tower for images and videos" in shown
    shown = run("models", "-m", save_random_checkpoint(tmp_path / "model")).out
    assert "image_tower for images, video_tower for videos" in shown
    assert "512 positions" in shown
    assert "too long" not in shown


def test_what_does_not_fit_the_context_is_marked(run: Run, tmp_path: Path) -> None:
    folder = save_random_llava(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["max_position_embeddings"] = 100
    (folder / "config.json").write_text(json.dumps(config))
    rows = [line.split("│") for line in run("models", "-m", folder).out.splitlines() if "│" in line]
    assert {cells[1].strip(): cells[3].strip() for cells in rows} == {
        **{"1": "128 (too long)", "0.75": "96", "0.5": "64", "0.25": "32", "0.1": "16", "0.05": "8"}
    }


def test_errors_are_told_in_one_line(run: Run, tmp_path: Path) -> None:
    assert "no model folder" in run("models", "-m", tmp_path / "none").error
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    done = run("models", "-m", tmp_path)
    assert "unsupported model_type 'gpt2'" in done.error
    assert done.status == 2


def test_the_installed_program_lists_models(tmp_path: Path) -> None:
    done = run_program("models", "--model", "mini", "--json", home=tmp_path)
    assert (done.status, done.err) == (0, "")
    assert json.loads(done.out)["tokens"]["kept_per_video"][0] == 512
