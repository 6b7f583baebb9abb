"""The ``fastervlm-video`` command."""

import dataclasses
import importlib.util
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from typer.exceptions import TyperException

from fastervlm_video.cli_eval import eval_command, eval_compare
from fastervlm_video.cli_tools import EXIT_BAD_INPUT, Steps, one_line_errors, open_model, print_error, steps_shown
from fastervlm_video.cli_train import train_mini_command
from fastervlm_video.config import (
    DEFAULT_KEEP_RATIO,
    DEFAULT_METHOD,
    DEFAULT_NUM_FRAMES,
    FrameSampling,
    PruneSpec,
    SamplingParams,
)
from fastervlm_video.errors import InvalidInputError

if TYPE_CHECKING:
    from fastervlm_video.pipeline import Answer, EncodedVideo, VideoQA

__all__ = ["EXIT_BAD_INPUT", "app", "main"]

PROGRAM = "fastervlm-video"

app = typer.Typer(
    name=PROGRAM,
    help="Ask questions about videos, with visual tokens pruned by the vision encoder's own \\[CLS] attention "
    "(FasterVLM).\n\n"
    'Typical:  [bold]fastervlm-video ask clip.mp4 "What happens?" --keep 0.1[/bold]',
    no_args_is_help=True,
    rich_markup_mode="rich",
    add_completion=False,
    pretty_exceptions_enable=False,
)

Video = Annotated[Path, typer.Argument(help="A video file: mp4, mov, mkv, webm, avi, gif, …", show_default=False)]
Model = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        help="[bold]mini[/bold] (comes with this package; knows coloured shapes that move, and nothing else), a "
        "checkpoint's folder, or a Hugging Face id such as LanguageBind/Video-LLaVA-7B-hf.",
    ),
]
Keep = Annotated[
    float | None,
    typer.Option(
        "--keep",
        help=f"Share of each frame's visual tokens to keep, in (0, 1].  [dim]\\[default: {DEFAULT_KEEP_RATIO}][/dim]",
        show_default=False,
    ),
]
KeepTokens = Annotated[
    int | None,
    typer.Option("--keep-tokens", help="Visual tokens to keep per frame, instead of a share.", show_default=False),
]
KeepCls = Annotated[bool, typer.Option("--keep-cls", help="Keep each frame's \\[CLS] token too.")]
Frames = Annotated[int, typer.Option("--frames", help="Frames to look at, evenly spread over the video.")]
Method = Annotated[
    str,
    typer.Option("--method", help="How tokens are chosen: cls_attention (FasterVLM), random or uniform_grid."),
]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")]
Revision = Annotated[str | None, typer.Option("--revision", help="Revision of a Hugging Face id.", show_default=False)]


@app.command()
def ask(
    video: Video,
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
    device: Device = "auto",
    revision: Revision = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")] = False,
) -> None:
    """Answer a question about a video, in this process.

    [bold]Examples[/bold]

    fastervlm-video ask clip.mp4 "What color is the square?"

    fastervlm-video ask clip.mp4 "What happens?" --keep-tokens 26 --frames 16 --json
    """
    with one_line_errors(), steps_shown() as steps:
        params = SamplingParams(max_tokens=max_tokens, temperature=temperature, seed=seed)
        prune = PruneSpec(method=method, keep_ratio=keep, keep_tokens=keep_tokens, keep_cls=keep_cls)
        _check_video(video)
        qa = open_model(
            steps, model=model, revision=revision, device=device, prune=prune, sampling=FrameSampling(frames)
        )
        with qa:
            qa.check_question(question, params)
            encoded = _encode(steps, qa, video)
            with steps.step("Answering"):
                answer = qa.ask(encoded, question, params)
            report = _report(qa, encoded, answer)
    if as_json:
        print(json.dumps(report))  # noqa: T201 - what was asked for
    else:
        _print_answer(report)


@app.command()
def show(
    video: Video,
    *,
    out: Annotated[Path, typer.Option("--out", "-o", help="Where to write the PNG.", show_default=False)],
    model: Model = "mini",
    keep: Keep = None,
    keep_tokens: KeepTokens = None,
    frames: Frames = DEFAULT_NUM_FRAMES,
    method: Method = DEFAULT_METHOD,
    device: Device = "auto",
    revision: Revision = None,
) -> None:
    """Draw a video's frames with the kept patches lit and the others dimmed.

    Only the vision half of the model is loaded.

    [bold]Example[/bold]

    fastervlm-video show clip.mp4 --out kept.png --keep 0.25
    """
    with one_line_errors(), steps_shown() as steps:
        prune = PruneSpec(method=method, keep_ratio=keep, keep_tokens=keep_tokens)
        _check_video(video)
        _check_picture(out)
        qa = open_model(
            steps, model=model, revision=revision, device=device, prune=prune, sampling=FrameSampling(frames)
        )
        from fastervlm_video.picture import draw_kept_patches

        with qa:
            encoded = _encode(steps, qa, video)
            assert encoded.frames is not None
            with steps.step("Drawing"):
                picture = draw_kept_patches(encoded.frames, encoded.tokens, title=video.name)
                try:
                    picture.save(out, format="PNG")
                except OSError as exc:
                    raise InvalidInputError(f"cannot write {str(out)!r}: {exc.strerror or exc}") from exc
    tokens = encoded.tokens
    report = f"{out}: {tokens.tokens_kept} of {tokens.tokens_full} visual tokens kept by {tokens.method}"
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


app.command("eval")(eval_command)
app.command("eval-compare")(eval_compare)
app.command("train-mini")(train_mini_command)


def _check_video(video: Path) -> None:
    """Before anything slow is loaded."""
    if not video.exists():
        raise InvalidInputError(f"cannot open {str(video)!r}: No such file or directory")
    if not video.is_file():
        raise InvalidInputError(f"cannot open {str(video)!r}: not a regular file")


def _check_picture(out: Path) -> None:
    if out.suffix.lower() != ".png":
        raise InvalidInputError(f"the picture is a PNG: give --out a name that ends in .png, not {str(out)!r}")
    if not out.absolute().parent.is_dir():
        raise InvalidInputError(f"cannot write {str(out)!r}: No such file or directory")


def _encode(steps: Steps, qa: "VideoQA", video: Path) -> "EncodedVideo":
    with steps.step("Decoding and encoding") as progress:
        return qa.encode_video(video, progress=progress)


def _report(qa: "VideoQA", encoded: "EncodedVideo", answer: "Answer") -> dict[str, Any]:
    tokens = encoded.tokens
    return {
        "model": qa.facts.name,
        "answer": answer.text,
        "finish_reason": answer.finish_reason,
        "usage": dataclasses.asdict(answer.usage),
        "video": {
            "sha256": encoded.digest,
            "frames": tokens.num_frames,
            "frame_seconds": [round(moment, 3) for moment in tokens.pts_seconds],
            "method": tokens.method,
            "tokens_full": tokens.tokens_full,
            "tokens_kept": tokens.tokens_kept,
            "tokens_per_frame": list(tokens.counts),
            "cache": encoded.cache,
            "seconds": {name: round(value, 4) for name, value in (encoded.seconds | answer.seconds).items()},
        },
    }


def _print_answer(report: dict[str, Any]) -> None:
    video = report["video"]
    Console().print(report["answer"], markup=False, highlight=False, soft_wrap=True)
    seconds = ", ".join(f"{name} {value:.2f} s" for name, value in video["seconds"].items())
    line = (
        f"{report['model']}: {video['tokens_kept']} of {video['tokens_full']} visual tokens "
        f"({video['frames']} frames, {video['method']}); {seconds}"
    )
    Console(stderr=True).print(line, style="dim", markup=False, highlight=False, soft_wrap=True)


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
