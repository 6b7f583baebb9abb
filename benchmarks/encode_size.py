"""How do seconds and stored bytes of a video grow with the number of its frames and with the share that is kept?

At the dimensions of CLIP ViT-B/16 (12 layers, 196 patches a frame, width 768, random weights, float32): all of a real
tower's layers, so that the one layer whose cost depends on what is kept has its real share, at a quarter of ViT-L/14's
time. Every setting is encoded in each round; processor time, of which the fastest of the rounds counts, because what
else the machine does can only add to it. Bytes are those of the entry in the cache, as float16. A straight line is
fitted to each series by least squares; R² is the share of the variance that it explains.

    python benchmarks/encode_size.py --json size.json --plot size.png
"""

import argparse
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from random_vision import IMAGE, noise_video, random_clip

from fastervlm_video.cache import Storage, encode_tokens
from fastervlm_video.config import FrameResize, PruneSpec
from fastervlm_video.vision import EncodeJob, Preprocessing, VisionEncoder, VisionTower, tower_depth

LAYERS, FEATURE_LAYER = 12, -2
PREPROCESSING = Preprocessing(FrameResize(size=(IMAGE, IMAGE)), 1 / 255, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
FRAME_COUNTS, KEEP_RATIOS = (2, 4, 8, 12, 16, 24), (0.05, 0.1, 0.25, 0.5, 0.75, 1.0)
FEW_FRAME_COUNTS, FEW_KEEP_RATIOS = (1, 2, 3), (0.1, 0.5, 1.0)
KEEP, FRAMES = 0.1, 8


@dataclass(frozen=True)
class Line:
    """``intercept + slope * x``, and how well that is what was measured."""

    slope: float
    intercept: float
    r_squared: float
    residuals: tuple[float, ...]

    @classmethod
    def fit(cls, xs: list[float], ys: list[float]) -> "Line":
        """By least squares."""
        slope, intercept = np.polyfit(xs, ys, 1)
        residuals = np.array(ys) - (intercept + slope * np.array(xs))
        r_squared = 1 - residuals.var() / np.var(ys)
        return cls(float(slope), float(intercept), float(r_squared), tuple(residuals.tolist()))


@dataclass(frozen=True)
class Series:
    """Seconds and bytes along one axis."""

    axis: str
    xs: list[float]
    seconds: list[float]
    stored_bytes: list[float]


def load_encoder(layers: int) -> VisionEncoder:
    """Random weights."""
    torch.manual_seed(0)
    model = random_clip(width=768, layers=layers, heads=12, patch=16)
    return VisionEncoder(VisionTower(model, tower_depth(FEATURE_LAYER, layers)), PREPROCESSING, "0" * 64)


def make_job(frames: int, keep: float) -> EncodeJob:
    """Of a video of noise."""
    return EncodeJob(noise_video(frames), PruneSpec(keep_ratio=keep))


def measure(encoder: VisionEncoder, settings: list[tuple[int, float]], rounds: int) -> dict[tuple[int, float], float]:
    """Processor seconds per setting (frames, keep ratio); the settings take turns."""
    jobs = {setting: make_job(*setting) for setting in settings}
    encoder.encode([jobs[settings[0]]])
    fastest = dict.fromkeys(settings, float("inf"))
    for _ in range(rounds):
        for setting, job in jobs.items():
            begin = time.process_time()
            encoder.encode([job])
            fastest[setting] = min(fastest[setting], time.process_time() - begin)
    return fastest


def stored_bytes(encoder: VisionEncoder, frames: int, keep: float) -> int:
    """Of the entry in the cache."""
    return len(encode_tokens(encoder.encode([make_job(frames, keep)])[0], dtype=Storage.FLOAT16))


def print_series(series: Series) -> None:
    """A table of both, and the lines through them."""
    seconds, sizes = Line.fit(series.xs, series.seconds), Line.fit(series.xs, series.stored_bytes)
    print(f"| {series.axis} | seconds | off the line | bytes | off the line |\n|---|---|---|---|---|")
    for x, took, off, size, size_off in zip(
        series.xs, series.seconds, seconds.residuals, series.stored_bytes, sizes.residuals, strict=True
    ):
        print(f"| {x:g} | {took:.3f} | {off:+.3f} | {size:.0f} | {size_off:+.0f} |")
    print(f"\nseconds = {seconds.intercept:.3f} + {seconds.slope:.4f} x, R² {seconds.r_squared:.4f}")
    print(f"bytes = {sizes.intercept:.0f} + {sizes.slope:.1f} x, R² {sizes.r_squared:.6f}\n")


def draw(all_series: list[Series], path: Path) -> None:
    """Points and lines: seconds above, megabytes below."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5.5), layout="constrained")
    panels = figure.subplots(2, len(all_series), squeeze=False)
    for column, series in enumerate(all_series):
        for row, (label, ys) in enumerate(
            (("seconds", series.seconds), ("MB stored", [size / 1e6 for size in series.stored_bytes]))
        ):
            axes, line = panels[row][column], Line.fit(series.xs, ys)
            axes.plot(series.xs, ys, "o")
            axes.plot(series.xs, [line.intercept + line.slope * x for x in series.xs], "-", linewidth=1)
            axes.set(xlabel=series.axis, ylabel=label, ylim=(0, None), title=f"R² = {line.r_squared:.4f}")
            axes.grid(alpha=0.3)
    figure.savefig(path, dpi=130)


def main() -> None:
    """Measure, fit, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="three layers, few settings, two rounds: does it run?")
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write the numbers here")
    parser.add_argument("--plot", type=Path, metavar="PATH", help="also draw them here (needs matplotlib)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    encoder = load_encoder(3 if options.quick else LAYERS)
    counts = FEW_FRAME_COUNTS if options.quick else FRAME_COUNTS
    ratios = FEW_KEEP_RATIOS if options.quick else KEEP_RATIOS
    by_frames, by_ratio = [(count, KEEP) for count in counts], [(FRAMES, ratio) for ratio in ratios]
    seconds = measure(encoder, list(dict.fromkeys(by_frames + by_ratio)), 2 if options.quick else options.rounds)
    all_series = [
        Series(axis, xs, [seconds[at] for at in settings], [float(stored_bytes(encoder, *at)) for at in settings])
        for axis, xs, settings in (
            (f"frames, keep ratio {KEEP}", [float(count) for count in counts], by_frames),
            (f"keep ratio, {FRAMES} frames", list(ratios), by_ratio),
        )
    ]
    for series in all_series:
        print_series(series)
    if options.json:
        options.json.write_text(json.dumps([asdict(series) for series in all_series], indent=2) + "\n")
    if options.plot:
        draw(all_series, options.plot)


if __name__ == "__main__":
    main()
