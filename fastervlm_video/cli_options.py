"""Arguments and options that ``ask`` and ``show`` have in common, with their help."""

from pathlib import Path
from typing import Annotated

import typer

from fastervlm_video.config import DEFAULT_KEEP_RATIO, ImageLayout

__all__ = [
    "Device",
    "File",
    "FrameLabel",
    "Frames",
    "Keep",
    "KeepCls",
    "KeepTokens",
    "Layout",
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
    typer.Option("--method", help="How tokens are chosen: cls_attention (FasterVLM), random or uniform_grid."),
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
Revision = Annotated[str | None, typer.Option("--revision", help="Revision of a Hugging Face id.", show_default=False)]
