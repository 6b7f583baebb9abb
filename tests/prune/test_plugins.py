"""Methods of other packages: the documentation's own, installed as a package is, and found by the installed command."""

import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fastervlm_video.media import write_video
from fastervlm_video.models import adapters
from fastervlm_video.plugins import GROUP, plugins
from fastervlm_video.prune import get_method, method_names, registry
from tests.checkpoints import random_frames
from tests.cli_kit import run_program

DOCUMENTATION = (Path(__file__).parents[2] / "docs" / "methods.md").read_text()
(MODULE,) = re.findall(r"```python\n(.*?)```", DOCUMENTATION, re.DOTALL)
(PROJECT,) = re.findall(r"```toml\n(.*?)```", DOCUMENTATION, re.DOTALL)
NAME, TARGET = re.findall(rf'\[project\.entry-points\."{GROUP}"\]\n(\w+) = "(\w+)"', PROJECT)[0]


def install(folder: Path, **targets: str) -> None:
    """What an installer leaves behind of a distribution with these entry points."""
    information = folder / "some_plugin-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: some-plugin\nVersion: 1.0\n")
    lines = [f"{name} = {target}\n" for name, target in targets.items()]
    (information / "entry_points.txt").write_text(f"[{GROUP}]\n" + "".join(lines))


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The documentation's package, for processes that are started."""
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / f"{TARGET}.py").write_text(MODULE)
    install(folder, **{NAME: TARGET})
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")])))
    return folder


@pytest.mark.usefixtures("installed")
def test_an_installed_package_is_all(tmp_path: Path) -> None:
    listed = json.loads(run_program("models", "--json", home=tmp_path).out)["methods"]
    assert {"name": "longest", "source": "an example"} in listed
    assert "cls_attention" in [one["name"] for one in listed]
    clip = tmp_path / "clip.mp4"
    write_video(clip, random_frames(4, 48, 64), fps=4)
    done = run_program(
        "ask", clip, "q", "--method", "longest", "--frames", 2, "--max-tokens", 2, "--json", home=tmp_path
    )
    assert (done.status, done.err) == (0, "")
    video = json.loads(done.out)["video"]
    assert (video["method"], len(set(video["tokens_per_frame"]))) == ("longest", 1)


def test_without_the_package_it_is_unknown(tmp_path: Path) -> None:
    (tmp_path / "clip.mp4").write_bytes(b"x")
    done = run_program("ask", tmp_path / "clip.mp4", "q", "--method", "longest", home=tmp_path)
    assert "unknown pruning method 'longest'" in done.error


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on this process's path; afterwards nothing of its modules is known."""
    before, modules = dict(registry._METHODS), set(sys.modules)
    monkeypatch.syspath_prepend(tmp_path)
    for found in (plugins, adapters):
        found.cache_clear()
    yield tmp_path
    registry._METHODS.clear()
    registry._METHODS.update(before)
    for name in sys.modules.keys() - modules:
        if getattr(sys.modules[name], "__file__", None) and Path(str(sys.modules[name].__file__)).parent == tmp_path:
            del sys.modules[name]
    for found in (plugins, adapters):
        found.cache_clear()


def test_a_module_may_bring_a_method_and_an_architecture(here: Path) -> None:
    (here / "both.py").write_text(MODULE + "\nclass ADAPTER:\n    model_type = 'aardvark'\n")
    install(here, both="both")
    assert get_method("longest").source == "an example"
    assert "aardvark" in adapters()


def test_one_that_fails_is_left_out_and_told(here: Path, caplog: pytest.LogCaptureFixture) -> None:
    (here / "good.py").write_text(MODULE)
    (here / "thief.py").write_text(MODULE.replace('"longest"', '"random"'))
    install(here, a_broken="no_such_module", b_thief="thief", good="good")
    assert "longest" in method_names()
    assert get_method("random").source.startswith("baseline")
    told = [(record.getMessage(), str(record.exc_info and record.exc_info[1])) for record in caplog.records]
    assert told == [
        ("the plug-in a_broken cannot be imported from no_such_module", "No module named 'no_such_module'"),
        (
            "the plug-in b_thief cannot be imported from thief",
            "a pruning method named 'random' is registered already: choose another name, or replace=True",
        ),
    ]


def test_an_architecture_that_there_is_stays(here: Path, caplog: pytest.LogCaptureFixture) -> None:
    (here / "mimic.py").write_text("class ADAPTER:\n    model_type = 'llava'\n")
    install(here, mimic="mimic")
    assert adapters()["llava"].title == "LLaVA-1.5"
    assert "mimic is left out: there is an architecture 'llava' already" in caplog.text


def test_a_cell_may_be_run_again(here: Path) -> None:
    cell = {"__name__": "__main__"}
    exec(MODULE, cell)
    first = get_method("longest")
    exec(MODULE.replace("an example", "changed"), cell)
    assert first.source == "an example"
    assert get_method("longest").source == "changed"
    with pytest.raises(ValueError, match="'longest' is registered already"):
        exec(MODULE, {"__name__": "elsewhere"})
    exec(MODULE.replace("    )\n)", "    ),\n    replace=True,\n)"), {"__name__": "elsewhere"})
    assert get_method("longest").select.__module__ == "elsewhere"
