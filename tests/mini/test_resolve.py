from pathlib import Path

import pytest

from fastervlm_video.errors import CheckpointError
from fastervlm_video.mini import MINI_ALIAS, MINI_NAME, ResolvedModel, resolve, resolve_model


@pytest.mark.parametrize("name", [MINI_ALIAS, MINI_NAME])
def test_mini_comes_with_the_package(name: str) -> None:
    found = resolve_model(name)
    assert found.name == MINI_NAME
    assert (Path(found.location) / "config.json").is_file()


def test_an_installation_without_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolve, "_WEIGHTS", tmp_path)
    with pytest.raises(CheckpointError, match="train-mini"):
        resolve_model(MINI_ALIAS)


@pytest.mark.parametrize("model", ["/models/mini", "./mini", "LanguageBind/Video-LLaVA-7B-hf", Path("a/folder")])
def test_anything_else_is_left_to_the_loader(model: str | Path) -> None:
    assert resolve_model(model) == ResolvedModel(model, str(model))
