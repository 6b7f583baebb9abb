"""The command ``models``: what is supported, and what a checkpoint's visual tokens come to, without its weights."""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from fastervlm_video.cli_tools import one_line_errors, print_json, steps_shown, wide_console
from fastervlm_video.config import DEFAULT_NUM_FRAMES, ImageLayout, Medium, ModelOptions, PruneSpec

if TYPE_CHECKING:
    from fastervlm_video.models import Blueprint

__all__ = ["models_command"]

KEEP_RATIOS = (1.0, 0.75, 0.5, 0.25, 0.1, 0.05)
PICTURE_SIZES = ((672, 672), (500, 1000), (1000, 500), (336, 336))
"""(height, width) in pixels of the pictures whose tokens are counted where that depends on their size."""

Opening = Callable[[ModelOptions], "Blueprint"]


def models_command(
    *,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            help="Tell of this checkpoint instead: [bold]mini[/bold], a folder, or a Hugging Face id, of which the "
            "small files are fetched.",
            show_default=False,
        ),
    ] = None,
    revision: Annotated[
        str | None, typer.Option("--revision", help="Revision of a Hugging Face id.", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")] = False,
) -> None:
    """List the architectures that can be asked, the pruning methods, and how many visual tokens each keep ratio keeps.

    No weights are read. Without --model, tokens are counted at the geometry of transformers' default configs,
    which is that of the published checkpoints.

    [bold]Examples[/bold]

    fastervlm-video models

    fastervlm-video models --model llava-hf/llava-1.5-7b-hf --json
    """
    with one_line_errors():
        with steps_shown() as steps, steps.step("Loading the libraries"):
            from fastervlm_video.models import adapters as _  # noqa: F401 - slow to import
        found = _all_architectures() if model is None else _one_checkpoint(model, revision)
    if as_json:
        print_json(found)
    else:
        wide_console().print(_architectures_shown(found) if model is None else _checkpoint_shown(found))


def _all_architectures() -> dict[str, Any]:
    from fastervlm_video.models import Blueprint, adapters
    from fastervlm_video.prune import get_method, method_names

    methods = [{"name": name, "source": get_method(name).source} for name in method_names()]
    found = []
    for adapter in adapters().values():
        opening = partial(Blueprint.of_config, adapter.config_class())
        found.append(_architecture(adapter.model_type) | {"tokens": _tokens(opening)})
    return {"num_frames": DEFAULT_NUM_FRAMES, "architectures": found, "methods": methods}


def _one_checkpoint(model: str, revision: str | None) -> dict[str, Any]:
    from fastervlm_video.mini import resolve_model
    from fastervlm_video.models import Blueprint, locate

    found = resolve_model(model)
    _, folder = locate(found.location, revision, weights=False)
    blueprint = Blueprint.read(folder)
    return {
        "model": found.name,
        **_architecture(blueprint.adapter.model_type),
        "context_length": blueprint.adapter.context_length,
        "num_frames": DEFAULT_NUM_FRAMES,
        "tokens": _tokens(partial(Blueprint.read, folder)),
    }


def _architecture(model_type: str) -> dict[str, Any]:
    from fastervlm_video.models import adapters

    adapter = adapters()[model_type]
    return {
        "model_type": model_type,
        "title": adapter.title,
        "example": adapter.example,
        "towers": {medium.value: adapter.towers[medium] for medium in sorted(adapter.towers)},
        "frames_are_pictures": adapter.pictures_only,
    }


def _tokens(opening: Opening) -> dict[str, Any]:
    """What is kept of a view, by keep ratio; of whole pictures, where they have several views."""
    blueprint = opening(ModelOptions())
    rows, columns = blueprint.adapter.grid
    budgets = [PruneSpec(keep_ratio=ratio).tokens_per_frame(rows * columns) for ratio in KEEP_RATIOS]
    found: dict[str, Any] = {
        "image_size": blueprint.adapter.image_size,
        "patches_per_view": rows * columns,
        "keep_ratios": list(KEEP_RATIOS),
        "kept_per_view": budgets,
    }
    if blueprint.preprocessing[Medium.IMAGE].tiling is None:
        return found | {"kept_per_video": [DEFAULT_NUM_FRAMES * budget for budget in budgets]}
    layouts = {chosen: opening(ModelOptions(image_layout=chosen)).layout(Medium.IMAGE) for chosen in ImageLayout}
    pictures = []
    for size in PICTURE_SIZES:
        per_layout = {str(name): [layout.count(size, budget) for budget in budgets] for name, layout in layouts.items()}
        views = len(layouts[ImageLayout.REFERENCE].regions(size))
        pictures.append({"width": size[1], "height": size[0], "views": views, "tokens": per_layout})
    return found | {"pictures": pictures}


def _architectures_shown(found: dict[str, Any]) -> RenderableType:
    table = Table(title="Supported architectures", title_justify="left", header_style="bold")
    for column in ("name", "model_type", "for example", "looks at", "a video is"):
        table.add_column(column, overflow="fold")
    for one in found["architectures"]:
        shown = "so many pictures, one placeholder each" if one["frames_are_pictures"] else "a run of all its frames"
        table.add_row(one["title"], one["model_type"], one["example"], "pictures, videos", shown)
    title = "Visual tokens kept of a view, at the default configs' geometry"
    kept = Table(title=title, title_justify="left", header_style="bold")
    kept.add_column("name")
    kept.add_column("view", justify="right")
    for ratio in KEEP_RATIOS:
        kept.add_column(f"keep {ratio:g}", justify="right")
    for one in found["architectures"]:
        tokens = one["tokens"]
        kept.add_row(one["title"], f"{tokens['image_size']} px", *map(str, tokens["kept_per_view"]))
    methods = Table(title="Pruning methods", title_justify="left", header_style="bold")
    for column in ("name", "from"):
        methods.add_column(column, overflow="fold")
    for one in found["methods"]:
        methods.add_row(Text(one["name"]), Text(one["source"]))
    parts: list[RenderableType] = [table, "", methods, "", kept]
    for one in found["architectures"]:
        if "pictures" in one["tokens"]:
            parts += ["", _pictures_shown(one["title"], one["tokens"])]
    return Group(*parts)


def _checkpoint_shown(found: dict[str, Any]) -> RenderableType:
    tokens, frames, context = found["tokens"], found["num_frames"], found["context_length"]
    facts = Table.grid(padding=(0, 2))
    facts.add_row("architecture", Text(f"{found['title']} ({found['model_type']})"))
    facts.add_row("towers", _towers_shown(found["towers"]))
    facts.add_row("view", f"{tokens['image_size']} px, {tokens['patches_per_view']} patches")
    facts.add_row("context", f"{context} positions")
    title = Text(found["model"], style="bold")
    if "pictures" in tokens:
        note = f"A video of {frames} frames has {frames} times as many: each frame is such a picture."
        return Group(title, facts, "", _pictures_shown("", tokens, context), note)
    table = Table(title="Visual tokens kept", title_justify="left", header_style="bold")
    for column in ("keep", "frame or picture", f"video of {frames} frames"):
        table.add_column(column, justify="right")
    for ratio, view, video in zip(KEEP_RATIOS, tokens["kept_per_view"], tokens["kept_per_video"], strict=True):
        table.add_row(f"{ratio:g}", str(view), _within(video, context))
    return Group(title, facts, "", table)


def _towers_shown(towers: dict[str, str]) -> str:
    names = {name: [f"{medium}s" for medium in towers if towers[medium] == name] for name in sorted(towers.values())}
    return ", ".join(f"{name} for {' and '.join(media)}" for name, media in names.items())


def _pictures_shown(name: str, tokens: dict[str, Any], context: int | None = None) -> Table:
    """Tokens by picture and keep ratio, a row for each order of them."""
    title = f"Visual tokens of a picture{f', {name}' if name else ''}, separators included"
    table = Table(title=title, title_justify="left", header_style="bold")
    for column in ("picture", "views", "layout"):
        table.add_column(column, justify="right" if column == "views" else "left")
    for ratio in KEEP_RATIOS:
        table.add_column(f"keep {ratio:g}", justify="right")
    for picture in tokens["pictures"]:
        size = f"{picture['width']} x {picture['height']}"
        for layout, counts in picture["tokens"].items():
            table.add_row(size, str(picture["views"]), layout, *(_within(count, context) for count in counts))
        table.add_section()
    return table


def _within(count: int, context: int | None) -> str:
    return f"{count} (too long)" if context is not None and count >= context else str(count)
