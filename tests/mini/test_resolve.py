from pathlib import Path

import pytest

from fastervlm_video.mini import MINI_ALIAS, MINI_NAME, ResolvedModel, resolve_model


@pytest.mark.parametrize("name", [MINI_ALIAS, MINI_NAME])
def test_mini_is_made_and_said_to_be_untrained(name: str, tmp_path: Path) -> None:
    found = resolve_model(name, tmp_path)
    assert (found.name, found.trained) == (MINI_NAME, False)
    assert Path(found.location).parent == tmp_path
    assert (Path(found.location) / "config.json").is_file()


def test_mini_is_kept_in_the_users_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Path(resolve_model("mini").location).parent == tmp_path / ".cache" / "fastervlm-video"


@pytest.mark.parametrize("model", ["/models/mini", "./mini", "LanguageBind/Video-LLaVA-7B-hf", Path("a/folder")])
def test_anything_else_is_left_to_the_loader(model: str | Path) -> None:
    assert resolve_model(model) == ResolvedModel(model, str(model), trained=True)
