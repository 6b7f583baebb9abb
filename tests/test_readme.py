"""What the README says of the project is what the project says of itself."""

import re
from pathlib import Path

from services.settings import settings_table

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_all_settings_are_listed() -> None:
    assert settings_table() in README


def test_its_links_and_pictures_are_there() -> None:
    local = re.findall(r"\]\((?!https?:)([^)#]+)\)", README)
    assert local
    assert [target for target in local if not (ROOT / target).exists()] == []


def test_its_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    named = set(re.findall(r"[$`] ?make ([\w-]+)", README))
    assert {"demo", "test", "serve"} <= named
    assert [target for target in named if not re.search(rf"^{target}:", makefile, re.MULTILINE)] == []
