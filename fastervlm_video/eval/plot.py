"""The paper's kind of figure: what is retained against what is dropped, one line per method."""

import importlib.util
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastervlm_video.config import DEFAULT_METHOD
from fastervlm_video.errors import InvalidInputError
from fastervlm_video.eval.arms import BLIND, FULL, ORACLE, Arm
from fastervlm_video.eval.results import Results, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw_retention", "require_matplotlib"]

# Mostly Okabe and Ito's colours, which colour-blind readers tell apart; markers do the rest. Black is the default
# method.
_COLORS = (
    *("#0072B2", "#C00000", "#009E73", "#CC79A7", "#56B4E9", "#D55E00"),
    *("#8C6D31", "#7A5195", "#5B8E23", "#A0A0A0", "#E69F00", "#1B4F4F"),
)
_MARKERS = "osD^vP*Xhp"
_OWN_BAND, _OTHER_BAND = 0.16, 0.07  # opacity
_GREY = "#666666"
_MARGIN = 1.08
_SIZE_INCHES = (9.0, 5.2)
_DPI = 150


def require_matplotlib() -> None:
    """Find out before hours of work that no picture can be drawn.

    Raises:
        InvalidInputError: matplotlib is not installed.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise InvalidInputError("the plot needs matplotlib: pip install 'fastervlm-video[eval]'")


def draw_retention(results: Results, path: Path) -> None:
    """Draw retention against the reduction ratio, with 95 % bands, into a PNG.

    The horizontal axis is logarithmic in what is *kept*, so that the high reductions have room.

    Raises:
        InvalidInputError: matplotlib is not installed.
        OSError: the file cannot be written.
    """
    require_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=_SIZE_INCHES, dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    full = next((row for row in results.rows if row.method == FULL), None)
    lines = _lines(results)
    names = sorted(method for method, _ in lines)  # so that a method has one colour, whatever its rank
    for method, rows in lines:
        _draw_line(axes, method, [full, *rows] if full is not None else rows, _style(method, names.index(method)))
    _draw_references(axes, results, full)
    _label(axes, results, sorted({row.keep for row in results.rows if row.method != BLIND}, reverse=True))
    figure.savefig(path, format="png")


def _lines(results: Results) -> list[tuple[str, list[Row]]]:
    """Methods with their rows, most tokens first; what keeps most at the smallest budget comes first."""
    lines: dict[str, list[Row]] = {}
    for row in results.rows:
        if row.method not in {FULL, BLIND} and math.isfinite(_retained(row)):
            lines.setdefault(row.method, []).append(row)
    for rows in lines.values():
        rows.sort(key=lambda row: -row.keep)
    return sorted(lines.items(), key=lambda item: -_retained(item[1][-1]))


def _retained(row: Row) -> float:
    return row.retention.value if row.retention is not None else math.nan


def _style(method: str, index: int) -> dict[str, Any]:
    style = {"color": _COLORS[index % len(_COLORS)], "marker": _MARKERS[index % len(_MARKERS)], "zorder": 3}
    if method == DEFAULT_METHOD:
        style |= {"color": "black", "linewidth": 2.4, "zorder": 5}
    elif method == ORACLE:
        style |= {"color": _GREY, "linestyle": (0, (1, 1)), "marker": "None", "linewidth": 2.0, "zorder": 4}
    elif method in {"random", "uniform_grid"}:
        style |= {"linestyle": (0, (4, 2))}
    return style


def _draw_line(axes: "Axes", method: str, rows: list[Row], style: dict[str, Any]) -> None:
    shares = [row.keep for row in rows]
    layer = Arm(method, 1.0).fastv_layer
    label = f"{method} (all up to layer {layer})" if layer else method
    axes.plot(
        shares, [100 * _retained(row) for row in rows], label=label, **{"linewidth": 1.6, "markersize": 5} | style
    )
    bands = [
        (row.keep, row.retention) for row in rows if row.retention is not None and math.isfinite(row.retention.low)
    ]
    alpha = _OWN_BAND if method == DEFAULT_METHOD else _OTHER_BAND
    low, high = [100 * band.low for _, band in bands], [100 * band.high for _, band in bands]
    axes.fill_between([keep for keep, _ in bands], low, high, color=style["color"], alpha=alpha, linewidth=0)


def _draw_references(axes: "Axes", results: Results, full: Row | None) -> None:
    """Horizontal lines at what is had with every token and with none."""
    axes.axhline(100, color=_GREY, linewidth=0.8, zorder=1)
    blind = next((row for row in results.rows if row.method == BLIND), None)
    if blind is None or full is None or not math.isfinite(_retained(blind)):
        return
    level = 100 * _retained(blind)
    axes.axhline(level, color=_GREY, linewidth=0.8, linestyle=":", zorder=1)
    axes.annotate(
        f"no visual tokens: {level:.0f} %", (1.0, level), (2, 4), textcoords="offset points", fontsize=8, color=_GREY
    )


def _label(axes: "Axes", results: Results, shares: list[float]) -> None:
    axes.set_xscale("log")
    axes.set_xlim(max(shares) * _MARGIN, min(shares) / _MARGIN)
    axes.set_xticks(shares, [f"{100 * (1 - share):g} %" for share in shares])
    axes.minorticks_off()
    axes.set_xlabel("visual tokens dropped")
    axes.set_ylabel("accuracy retained, %")
    full = next((row for row in results.rows if row.method == FULL), None)
    title = f"{results.settings.get('model')} on {results.settings.get('dataset')}"
    if full is not None:
        title += f" (all tokens: {100 * full.accuracy.value:.1f} %)"
    axes.set_title(title, fontsize=10, loc="left")
    axes.grid(axis="y", color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=9)
