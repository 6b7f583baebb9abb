"""Draws how the mini model learnt, from the log that ``fastervlm-video train-mini`` leaves in its work folder.

Usage: python benchmarks/mini_curves.py mini-training/log.jsonl docs/images/mini_curves.png
"""

import json
import sys
from collections import defaultdict
from pathlib import Path

from matplotlib.figure import Figure

_KINDS = ("color", "shape", "count", "position", "motion", "order")
_SMOOTH = 5


def main(log: Path, picture: Path) -> None:
    """Two panels: the tower's heads, and the answers over eight frames or as many as were shown by then."""
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    tower, answers = defaultdict(list), defaultdict(list)
    for line in lines:
        for name, value in line["values"].items():
            if line["phase"] == "tower" and name != "loss":
                tower[name].append((line["step"], value))
            elif line["phase"] == "language" and name != "loss":
                frames, _, kind = name.partition("f ")
                if kind in _KINDS and int(frames) == _frames_shown(line["values"]):
                    answers[kind].append((line["step"], value))
    for axes, curves, title in ((left, tower, "phase 1: the tower's heads"), (right, answers, "phase 2: answers")):
        for name, points in curves.items():
            steps, values = zip(*points, strict=True)
            smooth = [sum(values[max(0, i - _SMOOTH + 1) : i + 1]) / min(i + 1, _SMOOTH) for i in range(len(values))]
            axes.plot(steps, smooth, label=name, linewidth=1.4)
        axes.set_title(title, pad=16)
        axes.set(xlabel="step", ylabel="share right, training videos", ylim=(0, 1.02))
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8, loc="lower right")
    _mark_lessons(right, lines)
    figure.savefig(picture, dpi=130)


def _frames_shown(values: dict[str, float]) -> int:
    """What the lesson is about: the most frames that were shown."""
    return max(int(name.partition("f ")[0]) for name in values if "f " in name)


def _mark_lessons(axes: object, lines: list[dict[str, object]]) -> None:
    shown = 0
    for line in lines:
        values = line["values"]
        if line["phase"] == "language" and isinstance(values, dict) and (now := _frames_shown(values)) > shown:
            axes.axvline(line["step"], color="grey", linewidth=0.8, linestyle=":")  # type: ignore[attr-defined]
            axes.text(line["step"], 1.03, f"{now} frame{'s' * (now > 1)}", fontsize=7)  # type: ignore[attr-defined]
            shown = now


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
