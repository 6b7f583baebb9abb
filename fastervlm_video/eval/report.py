"""Results as a table on the terminal, as Markdown, as JSON, and as a picture."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from fastervlm_video.errors import InvalidInputError
from fastervlm_video.eval.compare import Comparison
from fastervlm_video.eval.plot import draw_retention
from fastervlm_video.eval.results import Results, Row
from fastervlm_video.eval.stats import Estimate

__all__ = ["comparison_table", "results_markdown", "results_table", "write_report"]

RESULTS_FILE, MARKDOWN_FILE, PICTURE_FILE = "results.json", "results.md", "quality.png"
_NOTHING = "-"


def write_report(results: Results, folder: Path) -> tuple[Path, ...]:
    """Write ``results.json``, ``results.md`` and ``quality.png``.

    Returns:
        their paths.

    Raises:
        InvalidInputError: the folder cannot be written to, or matplotlib is not installed.
    """
    paths = (folder / RESULTS_FILE, folder / MARKDOWN_FILE, folder / PICTURE_FILE)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        paths[0].write_text(json.dumps(_plain(asdict(results)), indent=2) + "\n", encoding="utf-8")
        paths[1].write_text(results_markdown(results, PICTURE_FILE), encoding="utf-8")
        draw_retention(results, paths[2])
    except OSError as error:
        raise InvalidInputError(f"cannot write to {folder}: {error.strerror or error}") from error
    return paths


def results_table(results: Results) -> Table:
    """For a terminal."""
    header, body = _cells(results, intervals=True)
    table = Table(title=Text(_title(results)), title_justify="left", header_style="bold")
    for index, name in enumerate(header):
        table.add_column(name, justify="left" if index == 0 else "right", no_wrap=index < 3)
    previous = ""
    for cells in body:
        if previous and cells[0] != previous:
            table.add_section()
        table.add_row(*cells)
        previous = cells[0]
    table.caption = Text("\n".join(_notes(results)))
    table.caption_justify = "left"
    return table


def results_markdown(results: Results, picture: str | None = None) -> str:
    """A document of its own.

    Args:
        results: the numbers.
        picture: path of the plot, to be shown.
    """
    header, body = _cells(results, intervals=True)
    lines = [f"# {_title(results)}", ""]
    lines += [f"![Accuracy retained against the share of visual tokens dropped]({picture})", ""] if picture else []
    lines += [_markdown_row(header), _markdown_row(["---"] + ["---:"] * (len(header) - 1))]
    lines += [_markdown_row(cells) for cells in body]
    lines += ["", *(f"- {note}" for note in _notes(results)), "", "Settings:", ""]
    lines += [f"- {name}: {value}" for name, value in results.settings.items()]
    return "\n".join(lines) + "\n"


def comparison_table(comparisons: Sequence[Comparison]) -> Table:
    """For a terminal."""
    table = Table(header_style="bold")
    for index, name in enumerate(("a", "b", "questions", "accuracy a", "accuracy b", "a - b", "p")):
        table.add_column(name, justify="left" if index < 2 else "right")
    for one in comparisons:
        accuracies = [_percent(one.accuracy_a, interval=True), _percent(one.accuracy_b, interval=True)]
        difference = _percent(one.difference, interval=True, signed=True)
        cells = [one.arm_a, one.arm_b, str(one.questions), *accuracies, difference, f"{one.p_value:.4f}"]
        table.add_row(*(Text(cell) for cell in cells))
    return table


def _title(results: Results) -> str:
    settings = results.settings
    questions = results.rows[0].questions if results.rows else 0
    return f"{settings.get('model')} on {settings.get('dataset')}: {results.videos} videos, {questions} questions"


def _cells(results: Results, *, intervals: bool) -> tuple[list[str], list[list[str]]]:
    """Header and rows; columns that would say nothing are left out."""
    by_layer = any(abs(row.mean_tokens - row.tokens) > 0.5 for row in results.rows)
    gap = any(row.gap_closed is not None for row in results.rows)
    graded = any(row.grade is not None for row in results.rows)
    header = ["method", "keep", "tokens", *(["tokens per layer"] if by_layer else []), "accuracy %", "retention %"]
    header += [*(["gap closed %"] if gap else []), *(["grade"] if graded else []), *results.types]
    header += ["encode ms", "prune ms", "answer ms"]
    body = []
    for row in results.rows:
        cells = [row.method, f"{row.keep:g}", f"{row.tokens:.0f}"]
        cells += [f"{row.mean_tokens:.0f}"] if by_layer else []
        cells += [_percent(row.accuracy, interval=intervals), _percent(row.retention, interval=intervals)]
        cells += [_percent(row.gap_closed, interval=intervals)] if gap else []
        cells += [_NOTHING if row.grade is None else f"{row.grade.value:.2f}"] if graded else []
        cells += [_percent(row.by_type.get(kind)) for kind in results.types]
        seconds = (row.encode_seconds, row.prune_seconds, row.generate_seconds)
        cells += [f"{1000 * value:.1f}" if value else _NOTHING for value in seconds]
        body.append(cells)
    return header, body


def _notes(results: Results) -> list[str]:
    constants = results.constants
    by_type = ", ".join(f"{kind} {100 * share:.1f}" for kind, share in constants.by_type.items())
    notes = [
        f"Best constant answers, chosen with knowledge of the right ones: {100 * constants.per_type:.1f} % with one "
        f"per question type ({by_type}), {100 * constants.per_question:.1f} % with one per wording.",
        "Intervals: 95 %, bootstrap over videos. Times: medians; encoding per video, answering per question.",
    ]
    seeds = max((row.seeds for row in results.rows), default=1)
    if seeds > 1:
        notes.append(f"Methods that draw lots: mean over {seeds} seeds.")
    for label, name in (
        ("Answers that name no choice", "parse_failures"),
        ("Answers without a usable judgement, left out", "unjudged"),
        ("Questions that could not be asked, counted as wrong", "errors"),
    ):
        counted = {f"{row.method}@{row.keep:g}": _count(row, name) for row in results.rows}
        if any(counted.values()):
            notes.append(f"{label}: {', '.join(f'{arm} {count}' for arm, count in counted.items() if count)}.")
    if results.failures:
        names = ", ".join(sorted(results.failures))
        notes.append(f"Left out, for they cannot be decoded: {len(results.failures)} videos ({names}).")
    return notes


def _count(row: Row, name: str) -> int:
    return int(getattr(row, name))


def _percent(estimate: Estimate | None, *, interval: bool = False, signed: bool = False) -> str:
    if estimate is None or not math.isfinite(estimate.value):
        return _NOTHING
    sign = "+" if signed else ""
    text = f"{100 * estimate.value:{sign}.1f}"
    if not interval:
        return text
    if not math.isfinite(estimate.low):
        return f"{text} [?]"
    return f"{text} [{100 * estimate.low:{sign}.1f}, {100 * estimate.high:{sign}.1f}]"


def _markdown_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _plain(value: Any) -> Any:
    """JSON has no NaN."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {str(name): _plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return value
