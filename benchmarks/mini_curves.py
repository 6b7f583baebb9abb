"""Draws how the mini model learnt, from the log that ``fastervlm-video train-mini`` leaves in its work folder.

Usage: python benchmarks/mini_curves.py mini-training/log.jsonl docs/images/mini_curves.png
"""

import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

Line = dict[str, Any]
Curves = dict[str, list[tuple[int, float]]]

_KINDS = ("color", "shape", "count", "position", "motion", "order")
_SMOOTH = 5


def main(log: Path, picture: Path) -> None:
    """Three panels: the tower's heads, and the answers over eight frames or as many as were shown by then."""
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    figure = Figure(figsize=(13, 3.6), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    _draw(left, _tower(lines), "phase 1: the tower's heads")
    _draw(middle, _answers(lines, "language"), "phase 2: answers")
    _draw(right, _answers(lines, "robustness"), "phase 3: answers, with tokens overlooked")
    _mark_lessons(middle, lines)
    figure.savefig(picture, dpi=130)


def _tower(lines: list[Line]) -> Curves:
    curves = defaultdict(list)
    for line in lines:
        for name, value in line["values"].items() if line["phase"] == "tower" else ():
            if name != "loss":
                curves[name].append((line["step"], value))
    return curves


def _answers(lines: list[Line], phase: str) -> Curves:
    curves = defaultdict(list)
    for line in lines:
        for name, value in line["values"].items() if line["phase"] == phase else ():
            frames, _, kind = name.partition("f ")
            if kind in _KINDS and int(frames) == _frames_shown(line["values"]):
                curves[kind].append((line["step"], value))
    return {kind: curves[kind] for kind in _KINDS if kind in curves}


def _draw(axes: Axes, curves: Curves, title: str) -> None:
    for name, points in curves.items():
        steps, values = zip(*points, strict=True)
        smooth = [sum(values[max(0, i - _SMOOTH + 1) : i + 1]) / min(i + 1, _SMOOTH) for i in range(len(values))]
        axes.plot(steps, smooth, label=name, linewidth=1.4)
    axes.set_title(title, pad=16)
    axes.set(xlabel="step", ylabel="share right, training videos", ylim=(0, 1.02))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="lower right")


def _frames_shown(values: dict[str, float]) -> int:
    """What the lesson is about: the most frames that were shown."""
    return max(int(name.partition("f ")[0]) for name in values if "f " in name)


def _mark_lessons(axes: Axes, lines: list[Line]) -> None:
    shown = 0
    for line in lines:
        if line["phase"] == "language" and (now := _frames_shown(line["values"])) > shown:
            axes.axvline(line["step"], color="grey", linewidth=0.8, linestyle=":")
            axes.text(line["step"], 1.03, f"{now} f.", fontsize=7)
            shown = now


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
