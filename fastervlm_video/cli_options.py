"""Arguments and options that commands have in common, with their help."""

from pathlib import Path
from typing import Annotated

import typer

from fastervlm_video.config import DEFAULT_KEEP_RATIO, ImageLayout, MediaLimits

__all__ = [
    "LIMITS",
    "DecodeTimeout",
    "Device",
    "Dtype",
    "File",
    "FrameLabel",
    "Frames",
    "Keep",
    "KeepCls",
    "KeepTokens",
    "Layout",
    "MaxBytes",
    "MaxDuration",
    "MaxPixels",
    "Method",
    "Model",
    "Revision",
]

File = Annotated[
    Path,
    typer.Argument(
        help="A video (mp4, mov, mkv, webm, avi, gif, …) or a picture (jpg, png, webp); its content tells which.",
        show_default=False,
    ),
]
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
        help="Share of the visual tokens of each frame, or view of a picture, to keep, in (0, 1].  "
        f"[dim]\\[default: {DEFAULT_KEEP_RATIO}][/dim]",
        show_default=False,
    ),
]
KeepTokens = Annotated[
    int | None,
    typer.Option(
        "--keep-tokens", help="Visual tokens to keep per frame or view, instead of a share.", show_default=False
    ),
]
KeepCls = Annotated[bool, typer.Option("--keep-cls", help="Keep each frame's \\[CLS] token too.")]
Frames = Annotated[
    int, typer.Option("--frames", help="Frames of a video to look at, evenly spread over it; of no effect on pictures.")
]
Method = Annotated[
    str,
    typer.Option(
        "--method",
        help="How tokens are chosen: cls_attention (FasterVLM), cls_dpp, divprune, evs, random, uniform_grid, "
        "visionzip, vispruner, or a plug-in's.",
    ),
]
Layout = Annotated[
    ImageLayout,
    typer.Option(
        "--image-layout",
        help="Order of the tokens of a picture that the model sees in several views: that of Hugging Face's port, "
        "without padding and with separators, or that of the paper's authors. Of no effect on models with one view.",
    ),
]
FrameLabel = Annotated[
    str,
    typer.Option(
        "--frame-label",
        help="Written before each frame of a video, for models to which a video is so many pictures, such as "
        '[bold]"Frame {n}: "[/bold]; {n} is its number.',
        show_default=False,
    ),
]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")]
Dtype = Annotated[
    str,
    typer.Option(
        "--dtype", help="Of the weights: float32, float16 or bfloat16; auto is float32 on a CPU and bfloat16 on a GPU."
    ),
]
Revision = Annotated[str | None, typer.Option("--revision", help="Revision of a Hugging Face id.", show_default=False)]

LIMITS = MediaLimits()
"""Of files, unless options say otherwise."""
_PANEL = "Limits of files"
MaxBytes = Annotated[int, typer.Option("--max-bytes", help="Largest file.", rich_help_panel=_PANEL)]
MaxDuration = Annotated[float, typer.Option("--max-duration-seconds", help="Longest video.", rich_help_panel=_PANEL)]
MaxPixels = Annotated[
    int,
    typer.Option(
        "--max-pixels-per-frame", help="Largest frame or picture, width times height.", rich_help_panel=_PANEL
    ),
]
DecodeTimeout = Annotated[
    float, typer.Option("--decode-timeout-seconds", help="Time limit of a decode.", rich_help_panel=_PANEL)
]
