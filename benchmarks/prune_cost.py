"""What does choosing tokens cost, as a share of encoding the video?

At the dimensions of Video-LLaVA-7B's tower (CLIP ViT-L/14, 224 px, 256 patches a frame, width 1024, random
weights): one forward pass up to the layer that is used, and every method's choice from its output, in turn; medians
of processor time.

    python benchmarks/prune_cost.py --json prune.json
"""

import argparse
import json
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from random_vision import IMAGE, random_clip

from fastervlm_video.prune import PruneInputs, get_method, method_names
from fastervlm_video.vision import TowerOutput, VisionTower

T = TypeVar("T")

FRAMES, GRID, HEADS, WIDTH, LAYERS, USED = 8, (16, 16), 16, 1024, 24, 23


def main() -> None:
    """Time tower and methods, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="rounds, each with one forward pass (default 5)")
    parser.add_argument("--keep", type=float, default=0.1, help="share of the patches (default 0.1)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write the numbers here")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    tower = VisionTower(random_clip(width=WIDTH, layers=LAYERS, heads=HEADS, patch=14), USED)
    pixels = torch.randn(FRAMES, 3, IMAGE, IMAGE)
    seconds: dict[str, list[float]] = defaultdict(list)
    with torch.inference_mode():
        for _ in range(options.repeats):
            output = _timed(seconds["encoding"], lambda: tower(pixels))
            for name in method_names():
                _choose(seconds[name], name, output, round(options.keep * GRID[0] * GRID[1]))
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    print("| method | ms | share of encoding |\n| --- | ---: | ---: |")
    for name, value in medians.items():
        print(f"| {name} | {1000 * value:.1f} | {value / medians['encoding']:.1%} |")
    if options.json:
        options.json.write_text(json.dumps(medians, indent=2) + "\n")


def _choose(seconds: list[float], name: str, output: TowerOutput, budget: int) -> None:
    inputs = PruneInputs(
        budget,
        GRID,
        tuple(float(t) for t in range(FRAMES)),
        cls_attention=output.cls_attention,
        features=output.features[:, 1:],
        keys=output.keys[:, :, 1:],
    )
    _timed(seconds, lambda: get_method(name).select(inputs))


def _timed(seconds: list[float], work: Callable[[], T]) -> T:
    begin = time.process_time()
    result = work()
    seconds.append(time.process_time() - begin)
    return result


if __name__ == "__main__":
    main()
