import inspect
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from fastervlm_video import __version__, cli
from fastervlm_video.cli_models import models_command
from fastervlm_video.media import write_video
from fastervlm_video.mini import MINI_NAME, random_scene, render_scene
from fastervlm_video.prune import method_names
from fastervlm_video.vision import ScoredFrames, VisionTower
from tests.checkpoints import SMALL, save_random_checkpoint
from tests.cli_kit import Run, run_program

pytestmark = pytest.mark.usefixtures("one_thread")

QUESTION = "What color is the square?"
PATCHES = (SMALL.image_size // SMALL.patch_size) ** 2


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cli") / "clip.mp4"
    write_video(path, render_scene(random_scene(0), num_frames=20, height=48, width=64), fps=10)
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_random_checkpoint(tmp_path_factory.mktemp("model") / "my-model")


def test_ask_prints_the_answer_and_nothing_else_on_standard_output(run: Run, clip: Path, model: Path) -> None:
    options = ["--model", model, "--frames", 4, "--keep", 0.25, "--max-tokens", 8]
    plain = run("ask", clip, QUESTION, *options)
    report = json.loads(run("ask", clip, QUESTION, *options, "--json").out)
    assert plain.status == 0
    assert plain.out == f"{report['answer']}\n"
    (line,) = plain.err.splitlines()
    assert line.startswith(f"{model}: {PATCHES} of {PATCHES * 4} visual tokens (4 frames, cls_attention); decode ")


def test_ask_json(run: Run, clip: Path, model: Path) -> None:
    done = run(
        *("ask", clip, QUESTION, "-m", model, "--frames", 3, "--keep-tokens", 5, "--keep-cls"),
        *("--method", "uniform_grid", "--max-tokens", 6, "--temperature", 0.7, "--seed", 1, "--json"),
    )
    assert (done.status, done.err) == (0, "")
    report = json.loads(done.out)
    assert report.keys() == {"model", "answer", "finish_reason", "usage", "video"}
    video = report["video"]
    assert (video["frames"], video["method"], video["cache"]) == (3, "uniform_grid", "miss")
    assert (video["medium"], video["views_per_picture"]) == ("video", 1)
    assert (video["tokens_kept"], video["tokens_per_frame"]) == (3 * 6, [5, 5, 5])
    assert video["tokens_full"] == 3 * (PATCHES + 1)
    assert video["seconds"].keys() == {"decode", "encode", "first_token", "generate"}
    assert report["usage"]["visual_tokens"] == 18
    assert 1 <= report["usage"]["completion_tokens"] <= 6


def test_show_draws_a_png_whatever_its_name(run: Run, clip: Path, model: Path, tmp_path: Path) -> None:
    for name in ("kept.png", "[bold]kept[red] with spaces.PNG"):
        done = run("show", clip, "--out", tmp_path / name, "--model", model, "--frames", 4, "--keep", 0.25)
        assert (done.status, done.err) == (0, "")
        kept = f"{PATCHES} of {PATCHES * 4} visual tokens kept by cls_attention"
        assert done.out == f"{tmp_path / name}: {kept}\n"
        with Image.open(tmp_path / name) as picture:
            assert picture.format == "PNG"
            assert picture.width > 4 * 200


def test_show_loads_the_vision_half_only(run: Run, clip: Path, tmp_path: Path) -> None:
    folder = save_random_checkpoint(tmp_path / "model")
    (folder / "generation_config.json").write_text("not JSON")  # read with the language half
    assert run("show", clip, "--out", tmp_path / "kept.png", "--model", folder, "--frames", 2).status == 0


BadInput = Callable[[Path, Path, Path], Sequence[object]]

BAD_INPUT: dict[str, tuple[BadInput, str]] = {
    "no such file": (lambda clip, model, tmp: ("ask", tmp / "none.mp4", "q", "-m", model), "there is no file"),
    "a folder": (lambda clip, model, tmp: ("ask", tmp, "q", "-m", model), "not a regular file"),
    "not a video": (lambda clip, model, tmp: ("ask", model / "config.json", "q", "-m", model), "video"),
    "markup in a path": (lambda clip, model, tmp: ("ask", "[bold]a[/x].mp4", "q", "-m", model), "'[bold]a[/x].mp4'"),
    "a line break in a path": (lambda clip, model, tmp: ("ask", "a\nb.mp4", "q", "-m", model), "a\\nb.mp4"),
    "a line break in a model": (lambda clip, model, tmp: ("ask", clip, "q", "-m", "/no\nmodel"), "at /no model"),
    "an empty question": (lambda clip, model, tmp: ("ask", clip, " ", "-m", model), "question"),
    "a reserved token": (lambda clip, model, tmp: ("ask", clip, "a <video>", "-m", model), "<video>"),
    "no such model": (lambda clip, model, tmp: ("ask", clip, "q", "-m", tmp / "none"), "no model folder"),
    "no model there": (lambda clip, model, tmp: ("ask", clip, "q", "-m", tmp), "config.json"),
    "ratio too large": (lambda clip, model, tmp: ("ask", clip, "q", "-m", model, "--keep", 1.5), "(0, 1], got 1.5"),
    "ratio of zero": (lambda clip, model, tmp: ("ask", clip, "q", "-m", model, "--keep", 0), "(0, 1], got 0"),
    "ratio and count": (
        lambda clip, model, tmp: ("ask", clip, "q", "-m", model, "--keep", 0.1, "--keep-tokens", 3),
        "not both",
    ),
    "count too large": (
        lambda clip, model, tmp: ("ask", clip, "q", "-m", model, "--keep-tokens", 99),
        f"keep_tokens=99 is more than the {PATCHES} patches",
    ),
    "no such method": (lambda clip, model, tmp: ("ask", clip, "q", "-m", model, "--method", "[red]"), "'[red]'"),
    "no frames": (lambda clip, model, tmp: ("ask", clip, "q", "-m", model, "--frames", 0), "got 0"),
    "too many frames": (lambda clip, model, tmp: ("ask", clip, "q", "-m", model, "--frames", 650), "context"),
    "too many bytes": (
        lambda clip, model, tmp: ("ask", clip, "q", "-m", model, "--max-bytes", 9),
        "than the 9 allowed",
    ),
    "no time": (
        lambda clip, model, tmp: ("show", clip, "-m", model, "-o", tmp / "x.png", "--decode-timeout-seconds", 1e-6),
        "longer than the 1e-06 s allowed",
    ),
    "too long": (
        lambda clip, model, tmp: ("ask", clip, "q", "-m", model, "--max-duration-seconds", 0.5),
        "than the 0.5 s allowed",
    ),
    "too large": (
        lambda clip, model, tmp: ("ask", clip, "q", "-m", model, "--max-pixels-per-frame", 100),
        "100",
    ),
    "no bytes at all": (lambda clip, model, tmp: ("ask", clip, "q", "--max-bytes", 0), "must be positive, got 0"),
    "too hot": (lambda clip, model, tmp: ("ask", clip, "q", "-m", model, "--temperature", 3), "[0, 2], got 3"),
    "no tokens": (lambda clip, model, tmp: ("ask", clip, "q", "-m", model, "--max-tokens", 0), "got 0"),
    "too many tokens": (lambda clip, model, tmp: ("ask", clip, "q", "-m", model, "--max-tokens", 9999), "512"),
    "seed below zero": (lambda clip, model, tmp: ("ask", clip, "q", "-m", model, "--seed", -1), "got -1"),
    "no such layout": (
        lambda clip, model, tmp: ("ask", clip, "q", "-m", model, "--image-layout", "mosaic"),
        "'hugging_face', 'reference'",
    ),
    "no such dtype": (lambda clip, model, tmp: ("ask", clip, "q", "-m", model, "--dtype", "float8"), "float8"),
    "no such device": (lambda clip, model, tmp: ("ask", clip, "q", "-m", model, "--device", "abacus"), "abacus"),
    "nowhere to write": (
        lambda clip, model, tmp: ("show", clip, "-m", model, "--frames", 1, "--out", tmp / "no" / "kept.png"),
        "cannot write",
    ),
    "the video itself to write to": (lambda clip, model, tmp: ("show", clip, "--out", clip), "ends in .png"),
    "a folder to write to": (
        lambda clip, model, tmp: ("show", clip, "-m", model, "--frames", 1, "--out", tmp),
        "ends in .png",
    ),
    "show without a file": (lambda clip, model, tmp: ("show", tmp / "[x]", "-o", tmp / "y", "-m", model), "[x]"),
    "not a number": (lambda clip, model, tmp: ("ask", clip, "q", "--frames", "many"), "'--frames'"),
    "no question": (lambda clip, model, tmp: ("ask", clip), "'question'"),
    "no such option": (lambda clip, model, tmp: ("ask", clip, "q", "--colour"), "--colour"),
    "no such command": (lambda clip, model, tmp: ("answer",), "'answer'"),
    "no place to draw": (lambda clip, model, tmp: ("show", clip), "'--out'"),
    "a port that is none": (lambda clip, model, tmp: ("serve", "--port", "http"), "'--port'"),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_told_in_one_line(case: str, run: Run, clip: Path, model: Path, tmp_path: Path) -> None:
    make, words = BAD_INPUT[case]
    done = run(*make(clip, model, tmp_path))
    assert words in done.error
    assert done.status == cli.EXIT_BAD_INPUT == 2


@pytest.mark.parametrize(
    ("option", "value"), [("--method", "nonsense"), ("--device", "abacus"), ("--dtype", "float8"), ("--keep", 2)]
)
@pytest.mark.parametrize("command", ["ask", "show", "eval"])
def test_what_is_mistyped_is_told_before_a_model_is_fetched(
    run: Run, clip: Path, tmp_path: Path, command: str, option: str, value: object
) -> None:
    """Nobody can fetch this model, and nobody tries."""
    arguments = {
        "ask": ("ask", clip, "q"),
        "show": ("show", clip, "-o", tmp_path / "x.png"),
        "eval": ("eval", "-d", questions_about(clip, tmp_path)),
    }[command]
    option = "--methods" if (command, option) == ("eval", "--method") else option
    done = run(*arguments, "-m", "nobody/nothing", option, value)
    assert str(value) in done.error
    assert "nobody" not in done.error
    assert done.status == 2


def questions_about(clip: Path, folder: Path) -> Path:
    record = {"video": str(clip), "id": "1", "question": QUESTION, "answer": "red", "type": "color"}
    (folder / "questions.jsonl").write_text(json.dumps(record) + "\n")
    return folder / "questions.jsonl"


def test_more_frames_than_a_service_allows(run: Run, clip: Path, model: Path) -> None:
    """How many there may be is up to who asks."""
    done = run("ask", clip, "q", "-m", model, "--frames", 70, "--keep-tokens", 1, "--max-tokens", 2, "--json")
    assert json.loads(done.out)["video"]["frames"] == 70


def test_the_weights_dtype_may_be_chosen(
    run: Run, clip: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[torch.dtype] = []
    original = VisionTower.score

    def score(tower: VisionTower, pixels: torch.Tensor) -> ScoredFrames:
        loaded.append(tower.dtype)
        return original(tower, pixels)

    monkeypatch.setattr(VisionTower, "score", score)
    for command in (("ask", clip, "q", "--max-tokens", 2), ("show", clip, "-o", tmp_path / "kept.png")):
        assert run(*command, "-m", model, "--dtype", "bfloat16", "--frames", 2).status == 0
    assert loaded == [torch.bfloat16, torch.bfloat16]


def test_a_gpu_that_is_full_is_told_in_one_line(
    run: Run, clip: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object, **options: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.\n\nSee the documentation.")

    monkeypatch.setattr(VisionTower, "score", full)
    done = run("ask", clip, "q", "-m", model)
    assert done.error.startswith("the GPU's memory is full: try --dtype")
    assert "20.00 MiB" in done.error
    assert done.status == 1


def test_version(run: Run) -> None:
    done = run("--version")
    assert (done.status, done.out) == (0, f"fastervlm-video {__version__}\n")


def test_usage_errors_say_where_help_is(run: Run) -> None:
    assert run("ask").error.endswith("(see fastervlm-video ask --help)")
    assert run("nothing").error.endswith("(see fastervlm-video --help)")


@pytest.mark.parametrize("command", ["ask", "show", "serve", "models"])
def test_help_tells_of_every_option(command: str) -> None:
    done = CliRunner(env={"COLUMNS": "200"}).invoke(cli.app, [command, "--help"])
    assert done.exit_code == 0
    function = {"models": models_command}.get(command) or getattr(cli, command)
    assert function.__doc__ is not None
    assert function.__doc__.splitlines()[0] in done.output
    for name in inspect.signature(function).parameters:
        option = {"as_json": "--json", "file": "file", "question": "question"}.get(name, f"--{name.replace('_', '-')}")
        assert option in done.output
    assert "[bold]" not in done.output
    assert "[CLS]" in done.output or command != "ask"
    if command in {"ask", "show"}:
        words = " ".join(done.output.replace("│", " ").split())
        *named, _ = words.partition("How tokens are chosen: ")[2].partition(".")[0].split(", ")  # the last is plug-ins
        assert tuple(name.split()[0] for name in named) == method_names()


def test_help_without_arguments_and_the_commands_in_it(run: Run) -> None:
    done = run()
    assert done.status == 2
    assert done.err == ""
    assert all(command in done.out for command in ("ask", "show", "serve", "models"))
    assert run("--help").status == 0


def test_serve_becomes_the_service_with_its_options_in_the_environment(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Replaced(Exception):  # noqa: N818 - it plays the end of this process
        pass

    def replace(program: str, arguments: list[str]) -> None:
        replaced.append((program, arguments))
        raise Replaced

    replaced: list[tuple[str, list[str]]] = []
    monkeypatch.setattr(os, "execv", replace)
    for name in ("MODEL", "HOST", "PORT"):
        monkeypatch.setenv(f"FASTERVLM_{name}", "before")
    with pytest.raises(Replaced):
        run("serve", "--port", 8123, "--model", "/models/x")
    assert replaced == [(sys.executable, [sys.executable, "-P", "-m", "services"])]
    found = [os.environ[f"FASTERVLM_{name}"] for name in ("MODEL", "HOST", "PORT")]
    assert found == ["/models/x", "before", "8123"]


def test_the_installed_program_answers_with_the_model_it_comes_with(clip: Path, tmp_path: Path) -> None:
    done = run_program("ask", clip, QUESTION, "--frames", 2, "--max-tokens", 4, "--json", home=tmp_path)
    assert (done.status, done.err) == (0, "")
    assert json.loads(done.out)["model"] == MINI_NAME


def test_the_installed_program_tells_errors_in_one_line(tmp_path: Path) -> None:
    done = run_program("ask", "[bold]none.mp4", "q", home=tmp_path)
    assert "[bold]none.mp4" in done.error
    assert done.status == 2


def test_a_model_that_cannot_be_fetched_is_told_in_one_line(clip: Path, tmp_path: Path) -> None:
    done = run_program("ask", clip, "q", "--model", "nobody/[bold]nothing", home=tmp_path)
    assert "nobody/[bold]nothing" in done.error
    assert done.status == 2
