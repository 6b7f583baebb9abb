"""One module, such as the documentation has, is all there is to a new architecture: found, loaded, asked, listed."""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers import AutoConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from fastervlm_video.config import Medium, SamplingParams
from fastervlm_video.errors import CheckpointError
from fastervlm_video.media import write_video
from fastervlm_video.mini import random_scene, render_scene
from fastervlm_video.models import Checkpoint, adapters, architectures, supported_model_types
from fastervlm_video.pipeline import VideoQA
from tests.checkpoints import renamed, rewrite, save_random_llava
from tests.cli_kit import Run
from tests.models.kit import edit_json

DOCUMENTATION = Path(__file__).parents[2] / "docs" / "models.md"
(MODULE,) = [
    code for code in re.findall(r"```python\n(.*?)```", DOCUMENTATION.read_text(), re.DOTALL) if "ADAPTER" in code
]
"""The documentation's own example."""


@pytest.fixture
def magpie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The module is among the architectures, as long as the test runs."""
    modules = tmp_path / "modules"
    modules.mkdir()
    (modules / "magpie.py").write_text(MODULE)
    monkeypatch.setattr(architectures, "__path__", [*architectures.__path__, str(modules)])
    adapters.cache_clear()
    yield
    adapters.cache_clear()
    sys.modules.pop(f"{architectures.__name__}.magpie", None)
    vars(architectures).pop("magpie", None)
    CONFIG_MAPPING._extra_content.pop("magpie", None)


@pytest.fixture
def original(tmp_path: Path) -> Path:
    return save_random_llava(tmp_path / "original")


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """The same weights, as the new architecture calls them."""
    folder = rewrite(save_random_llava(tmp_path / "checkpoint"), renamed([("vision_tower", "eye")]))
    edit_json(folder / "config.json", lambda config: config.update(model_type="magpie", architectures=["Magpie"]))
    return folder


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    path = tmp_path / "clip.mp4"
    write_video(path, render_scene(random_scene(0), num_frames=20, height=48, width=64), fps=10)
    return path


def answer(folder: Path, clip: Path) -> tuple[str, VideoQA]:
    with VideoQA.from_pretrained(folder, keep_ratio=0.25, num_frames=3, device="cpu") as qa:
        return qa.ask(clip, "What color is the square?", SamplingParams(max_tokens=12)).text, qa


@pytest.mark.usefixtures("magpie")
def test_a_module_in_the_folder_is_all(original: Path, checkpoint: Path, clip: Path, run: Run) -> None:
    assert "magpie" in supported_model_types()
    text, qa = answer(checkpoint, clip)
    expected, same_weights = answer(original, clip)
    assert text == expected != ""
    # The same weights under another architecture's name are another tower: cached tokens are not mixed.
    assert qa.facts.fingerprint(Medium.VIDEO) != same_weights.facts.fingerprint(Medium.VIDEO)
    listed = json.loads(run("models", "--json").out)["architectures"]
    assert ("magpie", "Magpie") in [(one["model_type"], one["title"]) for one in listed]
    assert json.loads(run("models", "-m", checkpoint, "--json").out)["towers"] == {"image": "eye", "video": "eye"}


@pytest.mark.usefixtures("magpie")
def test_its_tensors_are_checked_as_strictly_as_others(tmp_path: Path) -> None:
    folder = save_random_llava(tmp_path / "misnamed")
    edit_json(folder / "config.json", lambda config: config.update(model_type="magpie"))
    with pytest.raises(CheckpointError, match=r"vision_tower.*, which is no part of a Magpie model"):
        Checkpoint.open(folder).load_vision("cpu")


def test_without_the_module_it_is_unknown(checkpoint: Path) -> None:
    with pytest.raises(CheckpointError, match="unsupported model_type 'magpie'"):
        Checkpoint.open(checkpoint)
    with pytest.raises(ValueError, match="magpie"):
        AutoConfig.from_pretrained(checkpoint)
