import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fastervlm_video import cli
from fastervlm_video.cli_eval import _judge
from fastervlm_video.eval import Judge, read_manifest, read_predictions
from tests.eval.test_judge import NO, Server, replies

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """The command's entry point, in this process and an empty folder."""

    def run(*args: object) -> tuple[int, str, str]:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["fastervlm-video", *map(str, args)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return (int(ended.value.code or 0), *capsys.readouterr())

    return run


@pytest.fixture
def options(checkpoint: Path, questions: Path) -> list[object]:
    return [
        *("eval", "-m", checkpoint, "--device", "cpu", "-d", questions, "--frames", 2, "--max-tokens", 4),
        *("--bootstrap", 50, "--limit", 3),
    ]


def test_a_run_and_its_comparison(run: Run, options: list[object], tmp_path: Path) -> None:
    choice = ("--methods", "cls_attention, random", "--keep", "0.5,0.25", "--random-seeds", 2, "--out", "mine")
    status, out, err = run(*options, *choice)
    assert (status, err) == (0, "")
    assert out.count("random") == 2
    assert "mine/results.json, mine/results.md, mine/quality.png" in out
    results = json.loads((tmp_path / "mine" / "results.json").read_text())
    assert len(results["rows"]) == 6
    assert results["videos"] == 3
    predictions = read_predictions(tmp_path / "mine")
    assert len(predictions) == 3 * 3 * (2 + 2 + 4)
    assert run(*options, *choice)[0] == 0
    assert read_predictions(tmp_path / "mine") == predictions
    status, out, err = run("eval-compare", "mine", "mine", "--a", "full@1", "--b", "random@0.25", "--bootstrap", 50)
    assert (status, err) == (0, "")
    assert "full@1" in out
    assert len(run("eval-compare", "mine", "mine", "--bootstrap", 50, "--permutations", 20)[1].splitlines()) >= 6


def test_tokens_may_be_stored_otherwise(run: Run, options: list[object], tmp_path: Path) -> None:
    """Which is another run: its predictions are not mixed with those of the first."""
    choice = ("--methods", "cls_attention", "--keep", "0.5", "--out", "mine")
    assert run(*options, *choice)[0] == 0
    assert read_manifest(tmp_path / "mine")["storage_dtype"] == "float16"
    status, _, err = run(*options, *choice, "--cache-dtype", "int8")
    assert (status, "storage_dtype" in err) == (2, True)
    assert run(*options, *choice, "--cache-dtype", "int8", "--no-resume")[0] == 0
    assert read_manifest(tmp_path / "mine")["storage_dtype"] == "int8"
    status, _, err = run(*options, *choice, "--cache-dtype", "int4")
    assert (status, "not as int4" in err) == (2, True)


def test_options_of_the_architecture_make_another_run(run: Run, options: list[object], tmp_path: Path) -> None:
    choice = ("--methods", "full", "--keep", "1", "--out", "mine")
    assert run(*options, *choice)[0] == 0
    manifest = read_manifest(tmp_path / "mine")
    assert (manifest["image_layout"], manifest["frame_label"]) == ("hugging_face", "")
    for option, value in (("--image-layout", "reference"), ("--frame-label", "{n}: ")):
        status, _, err = run(*options, *choice, option, value)
        assert (status, option[2:].replace("-", "_") in err) == (2, True)
    assert run(*options, *choice, "--image-layout", "reference", "--frame-label", "{n}: ", "--no-resume")[0] == 0
    manifest = read_manifest(tmp_path / "mine")
    assert (manifest["image_layout"], manifest["frame_label"]) == ("reference", "{n}: ")


def test_the_folder_has_a_name_by_default(run: Run, options: list[object], tmp_path: Path, questions: Path) -> None:
    assert run(*options, "--methods", "random", "--keep", "0.5")[0] == 0
    (folder,) = (tmp_path / "runs").iterdir()
    assert "questions.jsonl" in folder.name


def test_a_judge_with_its_key_from_the_environment(
    run: Run, options: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REFEREE_KEY", "secret")
    server = Server(replies(NO))
    try:
        judge = ("--judge", server.url, "--judge-model", "referee", "--judge-key-env", "REFEREE_KEY")
        status, out, _ = run(*options, "--methods", "full", "--keep", 1, "-o", "judged", *judge)
    finally:
        server.close()
    assert status == 0
    assert "grade" in out
    assert all(headers["Authorization"] == "Bearer secret" for _, headers, _ in server.requests)
    results = json.loads((tmp_path / "judged" / "results.json").read_text())
    assert results["settings"]["scored_by"] == "judge referee"
    assert {row["accuracy"]["value"] for row in results["rows"]} == {0}
    assert {row["grade"]["value"] for row in results["rows"]} == {1}


@pytest.mark.parametrize(
    ("url", "variable", "key"),
    [
        ("https://api.openai.com/v1", None, "openai's"),
        ("https://eu.api.openai.com/v1", None, "openai's"),
        ("http://localhost:8001/v1", None, None),
        ("https://openai.com.example.org/v1", None, None),
        ("https://notopenai.com/v1", None, None),
        ("http://localhost:8001/v1", "OPENAI_API_KEY", "openai's"),
        ("https://api.openai.com/v1", "REFEREE_KEY", "mine"),
    ],
)
def test_openais_key_is_for_openai(
    monkeypatch: pytest.MonkeyPatch, url: str, variable: str | None, key: str | None
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "openai's")
    monkeypatch.setenv("REFEREE_KEY", "mine")
    with _judge(url, "referee", variable) as judge:
        assert judge._client.headers.get("Authorization") == (key and f"Bearer {key}")


def test_a_judge_that_cannot_be_used_is_found_before_the_run(run: Run, options: list[object], tmp_path: Path) -> None:
    server = Server(replies((401, "no such key")))
    try:
        judge = ("--judge", server.url, "--judge-model", "referee", "-o", "judged")
        status, _, err = run(*options, "--methods", "full", "--keep", 1, *judge)
    finally:
        server.close()
    assert (status, "401 no such key" in err) == (2, True)
    assert len(server.requests) == 1
    assert not (tmp_path / "judged").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("-d", "[red]nothing"), "'[red]nothing'"),
        (("-d", "mvbench:none.json"), "OpenGVLab/MVBench"),
        (("--methods", "nonsense"), "unknown pruning method 'nonsense'"),
        (("--methods", "oracle"), "needs a data set that knows where its objects are"),
        (("--keep", "half"), "not 'half'"),
        (("--keep", "0"), "keep must be in (0, 1], got 0"),
        (("--limit", "0"), "got 0"),
        (("--frames", "0"), "got 0"),
        (("--random-seeds", "0"), "got 0"),
        (("--bootstrap", "0"), "'--bootstrap'"),
        (("--image-layout", "mosaic"), "'reference'"),
        (("--max-bytes", "9"), "than the 9 allowed"),
        (("--max-tokens", "0"), "got 0"),
        (("--judge", "http://localhost:1/v1"), "--judge-model"),
        (("--judge", "ftp://x", "--judge-model", "x"), "'ftp://x'"),
    ],
)
def test_bad_input_is_told_in_one_line(run: Run, options: list[object], arguments: tuple[str, ...], words: str) -> None:
    status, out, err = run(*options, "--methods", "random", "--keep", "0.5", *arguments)
    assert (status, out) == (2, "")
    (line,) = err.splitlines()
    assert line.startswith("error: ")
    assert words in line


def test_matplotlib_is_asked_for_before_the_work(
    run: Run, options: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    status, _, err = run(*options)
    assert status == 2
    assert "fastervlm-video[eval]" in err
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(Exception, match=r"a judge needs httpx: pip install 'fastervlm-video\[eval\]'"):
        Judge("http://localhost/v1", "x")


@pytest.mark.parametrize("command", ["eval", "eval-compare"])
def test_help(command: str) -> None:
    done = CliRunner(env={"COLUMNS": "200"}).invoke(cli.app, [command, "--help"])
    assert done.exit_code == 0
    assert "fastervlm-video eval" in done.output
    assert "[bold]" not in done.output
    for option in ("--dataset", "--methods", "--keep", "--judge", "--no-resume"):
        assert option in done.output or command == "eval-compare"
