"""The command ``train-mini``: the default model, from a seed."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from fastervlm_video.cli_tools import one_line_errors

if TYPE_CHECKING:
    from fastervlm_video.mini.training import Report

__all__ = ["train_mini_command"]


def train_mini_command(
    out: Annotated[Path, typer.Argument(help="Folder for the checkpoint.", show_default=False)],
    *,
    work: Annotated[
        Path, typer.Option("--work", "-w", help="Folder for training data and state: 6 GB, may be deleted after.")
    ] = Path("mini-training"),
    seed: Annotated[int, typer.Option("--seed", help="Of everything: videos, weights, order.")] = 0,
    workers: Annotated[int, typer.Option("--workers", help="Processor cores to use.")] = 2,
    smoke: Annotated[
        bool, typer.Option("--smoke", help="A minute's worth of every step; the result has learnt nothing.")
    ] = False,
) -> None:
    """Train the mini model from scratch, as the one that comes with this package was trained.

    It takes below two hours on two cores. Interrupted, it goes on where it was when called again.

    [bold]Example[/bold]

    fastervlm-video train-mini my-mini && fastervlm-video eval --model my-mini
    """
    with one_line_errors():
        from transformers.utils import logging as transformers_logging

        from fastervlm_video.mini.training import SMOKE, STANDARD, train_mini

        transformers_logging.disable_progress_bar()
        transformers_logging.set_verbosity_error()
        with _Bars() as bars:
            measured = train_mini(
                work, out, recipe=SMOKE if smoke else STANDARD, seed=seed, workers=workers, report=bars.show
            )
    table = Table("on held-out videos, nothing pruned", "share")
    for name, value in measured.items():
        table.add_row(name, f"{value:.1%}")
    Console().print(table)
    Console().print(f"Written: {out}", markup=False, highlight=False, soft_wrap=True)


class _Bars:
    """A bar per phase, with what was last measured beside it; a line now and then where there is no terminal."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.completed}/{task.total}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("[dim]{task.fields[values]}[/dim]"),
        )
        self._progress = Progress(*columns, console=self._console, disable=not self._console.is_terminal)
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> "_Bars":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def show(self, report: "Report") -> None:
        """Take in what the training reports."""
        if report.phase not in self._tasks:
            self._tasks[report.phase] = self._progress.add_task(report.phase, total=report.steps, values="")
        values = " ".join(f"{name} {value:.2f}" for name, value in report.values.items())
        self._progress.update(self._tasks[report.phase], completed=report.step, values=values)
        if values and not self._console.is_terminal:
            line = f"{report.phase} {report.step}/{report.steps}: {values}"
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)
