"""The commands ``eval`` and ``eval-compare``: what pruning costs, measured."""

import os
import re
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlsplit

import typer

from fastervlm_video.cli_options import (
    LIMITS,
    DecodeTimeout,
    Device,
    Dtype,
    FrameLabel,
    Layout,
    MaxBytes,
    MaxDuration,
    MaxPixels,
    Revision,
)
from fastervlm_video.cli_tools import limits_of, one_line_errors, open_model, steps_shown, wide_console
from fastervlm_video.config import (
    DEFAULT_NUM_FRAMES,
    MEASURED_KEEP_RATIOS,
    FrameSampling,
    ImageLayout,
    ModelOptions,
    PruneSpec,
)
from fastervlm_video.errors import InvalidInputError, InvalidRequestError

if TYPE_CHECKING:
    from fastervlm_video.eval import Dataset, Judge

__all__ = ["eval_command", "eval_compare"]

_KEEPS = ",".join(f"{share:g}" for share in MEASURED_KEEP_RATIOS)
_OPENAI = "openai.com"
_OPENAI_KEY = "OPENAI_API_KEY"

Bootstrap = Annotated[int, typer.Option("--bootstrap", min=1, help="Draws behind the confidence intervals.")]
Seed = Annotated[int, typer.Option("--seed", help="Of methods that draw lots, and of the intervals.")]


def eval_command(
    *,
    dataset: Annotated[
        str,
        typer.Option(
            "--dataset",
            "-d",
            help="[bold]mini[/bold], [bold]mini-ood[/bold] (made on first use), a .jsonl file, gpt-zero-shot:DIR, "
            "videomme:FILE or mvbench:FILE.",
        ),
    ] = "mini",
    methods: Annotated[
        str,
        typer.Option(
            "--methods",
            help="Names, with commas: pruning methods, fastv:K (text attention after K layers), oracle (knows the "
            "objects; mini data sets only), or all. All tokens and none are always measured too.",
        ),
    ] = "all",
    keep: Annotated[
        str, typer.Option("--keep", help="Shares of the visual tokens, in (0, 1\\], with commas.")
    ] = _KEEPS,
    model: Annotated[str, typer.Option("--model", "-m", help="As for ask.")] = "mini",
    limit: Annotated[
        int | None, typer.Option("--limit", help="Take the first so many videos only.", show_default=False)
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="The run's folder.  [dim]\\[default: runs/DATASET][/dim]", show_default=False),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume/--no-resume", help="Continue what is in the folder, or start over.")
    ] = True,
    random_seeds: Annotated[
        int, typer.Option("--random-seeds", help="Average methods that draw lots over so many seeds.")
    ] = 1,
    frames: Annotated[int, typer.Option("--frames", help="Frames to look at, evenly spread over the video.")] = (
        DEFAULT_NUM_FRAMES
    ),
    cache_dtype: Annotated[
        str, typer.Option("--cache-dtype", help="How tokens are stored on their way: float16 or int8.")
    ] = "float16",
    max_tokens: Annotated[int, typer.Option("--max-tokens", help="Longest answer, in tokens.")] = 16,
    judge: Annotated[
        str | None,
        typer.Option(
            "--judge",
            help="URL of an OpenAI-compatible server that grades open answers, such as http://localhost:8001/v1; "
            "otherwise they must match exactly.",
            show_default=False,
        ),
    ] = None,
    judge_model: Annotated[
        str | None, typer.Option("--judge-model", help="The judge's name there.", show_default=False)
    ] = None,
    judge_key_env: Annotated[
        str | None,
        typer.Option(
            "--judge-key-env",
            help=f"Environment variable that holds the judge's API key, if it needs one. OpenAI is sent {_OPENAI_KEY}, "
            "others nothing unless told.",
            show_default=False,
        ),
    ] = None,
    bootstrap: Bootstrap = 2000,
    seed: Seed = 0,
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
    """Measure what pruning costs: accuracy by method and share of visual tokens kept.

    Prints a table, and writes predictions, results.json, results.md and a plot into the run's folder. An
    interrupted run continues where it was.

    [bold]Examples[/bold]

    fastervlm-video eval --methods cls_attention,random,oracle --keep 0.1,0.05 --limit 50

    fastervlm-video eval -d gpt-zero-shot:MSVD_Zero_Shot_QA -m LanguageBind/Video-LLaVA-7B-hf
    """
    with one_line_errors(), steps_shown() as steps:
        keeps, sampling = _shares(keep), FrameSampling(frames)
        limits = limits_of(
            sampling,
            max_bytes=max_bytes,
            max_duration=max_duration_seconds,
            max_pixels=max_pixels_per_frame,
            decode_timeout=decode_timeout_seconds,
        )
        named = [name.strip() for name in methods.split(",") if name.strip()]
        with steps.step("Opening the data set"):
            questions = _open_dataset(dataset, limit, named, keeps)
        folder = out or Path("runs") / re.sub(r"[^\w.-]+", "-", dataset).strip("-")
        with ExitStack() as stack:
            referee = stack.enter_context(_judge(judge, judge_model, judge_key_env)) if judge else None
            qa = stack.enter_context(
                open_model(
                    steps,
                    model=model,
                    revision=revision,
                    device=device,
                    dtype=dtype,
                    prune=PruneSpec(),
                    sampling=sampling,
                    limits=limits,
                    options=ModelOptions(image_layout, frame_label),
                    cache_dtype=cache_dtype,
                )
            )
            from fastervlm_video.eval import evaluate, results_table, write_report

            with steps.step("Answering") as progress:
                results = evaluate(
                    qa,
                    questions,
                    folder,
                    methods=named,
                    keeps=keeps,
                    seed=seed,
                    random_seeds=random_seeds,
                    sampling=sampling,
                    max_tokens=max_tokens,
                    resume=resume,
                    judge=referee,
                    bootstrap=bootstrap,
                    progress=progress,
                )
            paths = write_report(results, folder)
    console = wide_console()
    console.print(results_table(results))
    console.print(f"Written: {', '.join(map(str, paths))}", markup=False, highlight=False, soft_wrap=True)


def eval_compare(
    run_a: Annotated[Path, typer.Argument(help="A run's folder.", show_default=False)],
    run_b: Annotated[Path, typer.Argument(help="Another's, or the same.", show_default=False)],
    *,
    arm_a: Annotated[
        str | None,
        typer.Option("--a", help="An arm of the first, such as cls_attention@0.1; otherwise all they share."),
    ] = None,
    arm_b: Annotated[
        str | None, typer.Option("--b", help="An arm of the second.  [dim]\\[default: as --a][/dim]")
    ] = None,
    bootstrap: Bootstrap = 2000,
    permutations: Annotated[int, typer.Option("--permutations", help="Swaps behind the p-values.")] = 10_000,
    seed: Seed = 0,
) -> None:
    """Compare two runs, question by question: difference, 95 % interval, and p-value.

    Open answers must match exactly; videos, not questions, are what is drawn and swapped.

    [bold]Examples[/bold]

    fastervlm-video eval-compare runs/before runs/after

    fastervlm-video eval-compare runs/mini runs/mini --a vispruner@0.1 --b cls_attention@0.1
    """
    with one_line_errors(), steps_shown() as steps:
        with steps.step("Loading the libraries"):
            from fastervlm_video.eval import compare_runs, comparison_table
        with steps.step("Comparing"):
            comparisons = compare_runs(
                run_a, run_b, arm_a=arm_a, arm_b=arm_b, bootstrap=bootstrap, permutations=permutations, seed=seed
            )
    wide_console().print(comparison_table(comparisons))


def _shares(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as exc:
        raise InvalidRequestError(f"--keep takes numbers with commas, such as 0.1,0.05, not {text!r}") from exc


def _open_dataset(name: str, limit: int | None, methods: list[str], keeps: list[float]) -> "Dataset":
    """Once everything else is known to be right."""
    from fastervlm_video.eval import check_arms, open_dataset, require_matplotlib

    require_matplotlib()
    check_arms(methods, keeps)
    return open_dataset(name, limit=limit)


def _judge(url: str, model: str | None, key_variable: str | None) -> "Judge":
    from fastervlm_video.eval import Judge

    if not model:
        raise InvalidInputError("a judge needs a model: give --judge-model")
    host = urlsplit(url).hostname or ""
    if key_variable is None and (host == _OPENAI or host.endswith(f".{_OPENAI}")):
        key_variable = _OPENAI_KEY
    return Judge(url, model, api_key=os.environ.get(key_variable) if key_variable else None)
