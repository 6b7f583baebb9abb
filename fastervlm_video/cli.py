"""The ``fastervlm-video`` command."""

import importlib.util
import os
import sys
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from typer.exceptions import TyperException

from fastervlm_video.cli_eval import eval_command, eval_compare
from fastervlm_video.cli_models import models_command
from fastervlm_video.cli_options import (
    LIMITS,
    DecodeTimeout,
    Device,
    Dtype,
    File,
    FrameLabel,
    Frames,
    Keep,
    KeepCls,
    KeepTokens,
    Layout,
    MaxBytes,
    MaxDuration,
    MaxPixels,
    Method,
    Model,
    Revision,
)
from fastervlm_video.cli_report import print_answer, report_of, token_counts
from fastervlm_video.cli_size import size_command
from fastervlm_video.cli_tools import (
    EXIT_BAD_INPUT,
    Steps,
    limits_of,
    one_line_errors,
    open_model,
    print_error,
    print_json,
    steps_shown,
)
from fastervlm_video.cli_train import train_mini_command
from fastervlm_video.config import (
    DEFAULT_METHOD,
    DEFAULT_NUM_FRAMES,
    FrameSampling,
    ImageLayout,
    MediaLimits,
    Medium,
    ModelOptions,
    PruneSpec,
    SamplingParams,
)
from fastervlm_video.errors import InvalidInputError

if TYPE_CHECKING:
    from fastervlm_video.pipeline import EncodedVideo, VideoQA

__all__ = ["EXIT_BAD_INPUT", "app", "main"]

PROGRAM = "fastervlm-video"

app = typer.Typer(
    name=PROGRAM,
    help="Ask questions about videos and pictures, with visual tokens pruned by the vision encoder's own \\[CLS] "
    "attention (FasterVLM).\n\n"
    'Typical:  [bold]fastervlm-video ask clip.mp4 "What happens?" --keep 0.1[/bold]',
    no_args_is_help=True,
    rich_markup_mode="rich",
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        Console().print(f"{PROGRAM} {version(PROGRAM)}", highlight=False)
        raise typer.Exit


@app.callback()
def options(
    *,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """What may stand before a command."""


@app.command()
def ask(
    file: File,
    question: Annotated[str, typer.Argument(help="What to ask about it.", show_default=False)],
    *,
    model: Model = "mini",
    keep: Keep = None,
    keep_tokens: KeepTokens = None,
    keep_cls: KeepCls = False,
    frames: Frames = DEFAULT_NUM_FRAMES,
    method: Method = DEFAULT_METHOD,
    max_tokens: Annotated[int, typer.Option("--max-tokens", help="Longest answer, in tokens.")] = 64,
    temperature: Annotated[float, typer.Option("--temperature", help="0 is greedy; higher is more random.")] = 0.0,
    seed: Annotated[int | None, typer.Option("--seed", help="Makes sampling repeatable.", show_default=False)] = None,
    image_layout: Layout = ImageLayout.HUGGING_FACE,
    frame_label: FrameLabel = "",
    device: Device = "auto",
    dtype: Dtype = "auto",
    revision: Revision = None,
    max_bytes: MaxBytes = LIMITS.max_bytes,
    max_duration_seconds: MaxDuration = LIMITS.max_duration_seconds,
    max_pixels_per_frame: MaxPixels = LIMITS.max_pixels_per_frame,
    decode_timeout_seconds: DecodeTimeout = LIMITS.timeout_seconds,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")] = False,
) -> None:
    """Answer a question about a video or a picture, in this process.

    [bold]Examples[/bold]

    fastervlm-video ask clip.mp4 "What color is the square?"

    fastervlm-video ask clip.mp4 "What happens?" --keep-tokens 26 --frames 16 --json

    fastervlm-video ask picture.jpg "What is on the table?" --model llava-hf/llava-v1.6-vicuna-7b-hf
    """
    with one_line_errors(), steps_shown() as steps:
        params = SamplingParams(max_tokens=max_tokens, temperature=temperature, seed=seed)
        prune = PruneSpec(method=method, keep_ratio=keep, keep_tokens=keep_tokens, keep_cls=keep_cls)
        sampling = FrameSampling(frames)
        limits = limits_of(
            sampling,
            max_bytes=max_bytes,
            max_duration=max_duration_seconds,
            max_pixels=max_pixels_per_frame,
            decode_timeout=decode_timeout_seconds,
        )
        medium = _medium(file, limits)
        qa = open_model(
            steps,
            model=model,
            revision=revision,
            device=device,
            dtype=dtype,
            prune=prune,
            sampling=sampling,
            limits=limits,
            options=ModelOptions(image_layout, frame_label),
        )
        with qa:
            qa.check_question(question, params, medium)
            encoded = _encode(steps, qa, file)
            with steps.step("Answering"):
                answer = qa.ask(encoded, question, params)
            report = report_of(qa.facts, encoded, answer)
    if as_json:
        print_json(report)
    else:
        print_answer(report)


@app.command()
def show(
    file: File,
    *,
    out: Annotated[Path, typer.Option("--out", "-o", help="Where to write the PNG.", show_default=False)],
    model: Model = "mini",
    keep: Keep = None,
    keep_tokens: KeepTokens = None,
    frames: Frames = DEFAULT_NUM_FRAMES,
    method: Method = DEFAULT_METHOD,
    image_layout: Layout = ImageLayout.HUGGING_FACE,
    frame_label: FrameLabel = "",
    device: Device = "auto",
    dtype: Dtype = "auto",
    revision: Revision = None,
    max_bytes: MaxBytes = LIMITS.max_bytes,
    max_duration_seconds: MaxDuration = LIMITS.max_duration_seconds,
    max_pixels_per_frame: MaxPixels = LIMITS.max_pixels_per_frame,
    decode_timeout_seconds: DecodeTimeout = LIMITS.timeout_seconds,
) -> None:
    """Draw a video's frames, or a picture's views, with the kept patches lit and the others dimmed.

    Only the vision half of the model is loaded.

    [bold]Examples[/bold]

    fastervlm-video show clip.mp4 --out kept.png --keep 0.25

    fastervlm-video show picture.jpg --out kept.png
    """
    with one_line_errors(), steps_shown() as steps:
        prune = PruneSpec(method=method, keep_ratio=keep, keep_tokens=keep_tokens)
        sampling = FrameSampling(frames)
        limits = limits_of(
            sampling,
            max_bytes=max_bytes,
            max_duration=max_duration_seconds,
            max_pixels=max_pixels_per_frame,
            decode_timeout=decode_timeout_seconds,
        )
        _medium(file, limits)
        _check_picture(out)
        qa = open_model(
            steps,
            model=model,
            revision=revision,
            device=device,
            dtype=dtype,
            prune=prune,
            sampling=sampling,
            limits=limits,
            options=ModelOptions(image_layout, frame_label),
        )
        from fastervlm_video.picture import draw_kept_patches

        with qa:
            encoded = _encode(steps, qa, file)
            assert encoded.frames is not None
            with steps.step("Drawing"):
                picture = draw_kept_patches(encoded.frames, encoded.tokens, title=file.name)
                try:
                    picture.save(out, format="PNG")
                except OSError as exc:
                    raise InvalidInputError(f"cannot write {str(out)!r}: {exc.strerror or exc}") from exc
    kept, full = token_counts(qa.facts, encoded)
    report = f"{out}: {kept} of {full} visual tokens kept by {encoded.tokens.method}"
    Console().print(report, markup=False, highlight=False, soft_wrap=True)


@app.command()
def serve(
    *,
    model: Annotated[str | None, typer.Option("--model", "-m", help="As for ask.", show_default=False)] = None,
    host: Annotated[str | None, typer.Option("--host", help="Address to listen on.", show_default=False)] = None,
    port: Annotated[int | None, typer.Option("--port", help="Port to listen on.", show_default=False)] = None,
) -> None:
    """Start the REST service on this machine: Ray Serve stages, embedded Redis, FastAPI in front.

    All settings are environment variables that begin with FASTERVLM_ (see the README); these options are
    short for three of them. Ctrl-C stops everything.
    """
    with one_line_errors():
        if importlib.util.find_spec("ray") is None:
            raise InvalidInputError("the service needs more packages: pip install 'fastervlm-video[serve]'")
        for name, value in (("MODEL", model), ("HOST", host), ("PORT", port)):
            if value is not None:
                os.environ[f"FASTERVLM_{name}"] = str(value)
        sys.stdout.flush()
        os.execv(sys.executable, [sys.executable, "-P", "-m", "services"])  # noqa: S606 - ourselves


app.command("models")(models_command)
app.command("eval")(eval_command)
app.command("eval-compare")(eval_compare)
app.command("size")(size_command)
app.command("train-mini")(train_mini_command)


def _check_picture(out: Path) -> None:
    if out.suffix.lower() != ".png":
        raise InvalidInputError(f"the picture is a PNG: give --out a name that ends in .png, not {str(out)!r}")
    if not out.absolute().parent.is_dir():
        raise InvalidInputError(f"cannot write {str(out)!r}: No such file or directory")


def _medium(file: Path, limits: MediaLimits) -> Medium:
    """Video or picture, by the file's first bytes; what is no file, or too large, before anything slow is loaded."""
    from fastervlm_video.media import SNIFF_BYTES, sniff_medium
    from fastervlm_video.media.sources import open_source

    with open_source(file, limits) as media:
        return sniff_medium(media.read_at(0, SNIFF_BYTES))


def _encode(steps: Steps, qa: "VideoQA", file: Path) -> "EncodedVideo":
    with steps.step("Decoding and encoding") as progress:
        return qa.encode(file, progress=progress)


def main() -> None:
    """Entry point of the ``fastervlm-video`` command."""
    try:
        status = app(prog_name=PROGRAM, standalone_mode=False)
    except TyperException as exc:  # how the command was written; without arguments there is the help instead
        if message := exc.format_message().strip():
            context = getattr(exc, "ctx", None)
            print_error(f"{message} (see {context.command_path if context else PROGRAM} --help)")
        status = exc.exit_code
    sys.exit(status)
