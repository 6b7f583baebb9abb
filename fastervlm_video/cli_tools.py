"""What the commands share: progress, errors in one line, opening a model."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.text import Text

from fastervlm_video.config import FrameSampling, MediaLimits, ModelOptions, PruneSpec
from fastervlm_video.errors import CheckpointError, FasterVLMError, InvalidInputError

if TYPE_CHECKING:
    from fastervlm_video.pipeline import VideoQA

__all__ = [
    "EXIT_BAD_INPUT",
    "EXIT_FAILED",
    "Steps",
    "limits_of",
    "one_line_errors",
    "open_model",
    "print_error",
    "print_json",
    "steps_shown",
    "wide_console",
]

EXIT_BAD_INPUT = 2
EXIT_FAILED = 1
_PLAIN_WIDTH = 240  # of a table that is not shown on a terminal


class Steps:
    """Progress on standard error: a line per step, with a bar where there is something to count."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    @contextmanager
    def step(self, name: str, total: int | None = None) -> Iterator[Any]:
        """Show a step while the block runs; gives a function (done, total) for those that count."""
        task = self._progress.add_task(name, total=total)
        yield lambda done, of: self._progress.update(task, completed=done, total=of)
        self._progress.update(task, total=1, completed=1)


@contextmanager
def steps_shown() -> Iterator[Steps]:
    """Steps, seen while the block runs, if standard error is a terminal."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(bar_width=24), TimeElapsedColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        yield Steps(progress)


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Errors of this package as one line; 2 is the exit status for what the user can mend."""
    try:
        yield
    except FasterVLMError as exc:
        print_error(exc.message)
        mendable = isinstance(exc, InvalidInputError | CheckpointError)
        raise typer.Exit(EXIT_BAD_INPUT if mendable else EXIT_FAILED) from exc
    except RuntimeError as exc:
        if type(exc).__name__ != "OutOfMemoryError":  # torch's, which not every command imports
            raise
        print_error(f"the GPU's memory is full: try --dtype bfloat16, fewer --frames, or --device cpu. {exc}")
        raise typer.Exit(EXIT_FAILED) from exc


def print_error(message: str) -> None:
    """In one line, however many the message has; what a user has typed is no markup."""
    Console(stderr=True, soft_wrap=True).print(Text.assemble(("error: ", "red"), " ".join(message.split())))


def print_json(value: object) -> None:
    """As one line on standard output, for machines."""
    print(json.dumps(value))  # noqa: T201 - what was asked for


def wide_console() -> Console:
    """Standard output, as wide as the terminal; wide enough for any table where there is none."""
    console = Console()
    return console if console.is_terminal else Console(width=_PLAIN_WIDTH)


def open_model(
    steps: Steps,
    *,
    model: str,
    revision: str | None,
    device: str,
    dtype: str,
    prune: PruneSpec,
    sampling: FrameSampling,
    limits: MediaLimits,
    options: ModelOptions | None = None,
    cache_dtype: str | None = None,
) -> "VideoQA":
    """Import what is slow to import, and open a checkpoint."""
    with steps.step("Loading the libraries"):
        from transformers.utils import logging as transformers_logging

        from fastervlm_video.pipeline import VideoQA

        transformers_logging.disable_progress_bar()
        transformers_logging.set_verbosity_error()
    with steps.step("Opening the model"):
        return VideoQA.open(
            model,
            prune=prune,
            sampling=sampling,
            revision=revision,
            device=device,
            dtype=dtype,
            limits=limits,
            cache_dtype=cache_dtype,
            options=options,
        )


def limits_of(
    sampling: FrameSampling, *, max_bytes: int, max_duration: float, max_pixels: int, decode_timeout: float
) -> MediaLimits:
    """What the options say. How many frames there may be is up to who asks for them."""
    return MediaLimits(
        max_bytes=max_bytes,
        max_duration_seconds=max_duration,
        max_pixels_per_frame=max_pixels,
        max_num_frames=sampling.num_frames,
        timeout_seconds=decode_timeout,
    )
