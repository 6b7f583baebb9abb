"""What does encoding with pruning cost, against encoding without, and against the way it was published?

At the dimensions of Video-LLaVA-7B's tower (CLIP ViT-L/14, 224 px, random weights, float32). Every arm begins with
the same normalised frames and ends with features of layer -2:

    ours       VisionEncoder.encode: the tower to the layer that is used, [CLS] row, kept rows only
    published  Hugging Face's tower with eager attention, output_attentions and output_hidden_states; mean over
               heads, top-k, gather
    sdpa       Hugging Face's tower with SDPA attention, as it is: no scores, no pruning
    sdpa-few   the same, as few frames at a time as the encoder takes

The arms take turns; medians of elapsed and of processor time (on a machine that does other things, too, look at the
latter, with --threads 1). They share their weights. Ours also turns bytes into normalised floats, which the others are
given. The processor's peak is that of a product of two square matrices of 4096 rows, in the same run; an arm's
operations are counted by formula (2 for each multiplication with a weight or between queries, keys and values).

With --memory, memory instead: each arm alone in a process of its own, the peak of its resident set while it runs once,
less what is resident when weights and frames are there.

    python benchmarks/encode_prune.py --json encode.json
    python benchmarks/encode_prune.py --memory
"""

import argparse
import copy
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from random_vision import IMAGE, noise_video, random_clip
from transformers import CLIPVisionModel

from fastervlm_video.config import FrameResize, PruneSpec
from fastervlm_video.vision import EncodeJob, Preprocessing, VisionEncoder, VisionTower, tower_depth
from fastervlm_video.vision.passes import frames_per_pass

PATCH, HEADS, WIDTH, MLP, LAYERS, FEATURE_LAYER = 14, 16, 1024, 4096, 24, -2
ROWS = 1 + (IMAGE // PATCH) ** 2
PREPROCESSING = Preprocessing(FrameResize(size=(IMAGE, IMAGE)), 1 / 255, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
ARMS = ("ours", "published", "sdpa", "sdpa-few")
PRODUCT, SQUARE = "product", 4096


@dataclass(frozen=True)
class Case:
    """What is encoded, and how."""

    frames: int
    keep: float
    layers: int
    compiled: bool

    @property
    def kept(self) -> int:
        """Patches kept in a frame."""
        return PruneSpec(keep_ratio=self.keep).tokens_per_frame(ROWS - 1)

    def operations(self, arm: str) -> int:
        """Floating-point operations of an arm, those of the patch embedding included."""
        layer = 2 * ROWS * (4 * WIDTH**2 + 2 * WIDTH * MLP) + 4 * ROWS**2 * WIDTH
        embedding = 2 * (ROWS - 1) * 3 * PATCH**2 * WIDTH
        if arm != "ours":
            return self.frames * (embedding + self.layers * layer)
        # Keys and values of all rows, the query of [CLS], its row of attention, then the kept rows.
        scoring = 2 * (ROWS + 1) * WIDTH**2 + 2 * ROWS * WIDTH
        finishing = 2 * ROWS * WIDTH**2 + 2 * self.kept * (2 * WIDTH**2 + 2 * WIDTH * MLP)
        attention = 4 * self.kept * ROWS * WIDTH
        earlier = tower_depth(FEATURE_LAYER, self.layers) - 1
        return self.frames * (embedding + earlier * layer + scoring + finishing + attention)


def random_towers(layers: int) -> dict[str, CLIPVisionModel]:
    """Hugging Face's model with either attention, and the same weights."""
    torch.manual_seed(0)
    sdpa = random_clip(width=WIDTH, layers=layers, heads=HEADS, patch=PATCH)
    with torch.device("meta"):
        eager = CLIPVisionModel._from_config(copy.deepcopy(sdpa.config), attn_implementation="eager").eval()
    eager.load_state_dict(sdpa.state_dict(), assign=True)
    eager.embeddings.position_ids = sdpa.embeddings.position_ids  # computed, hence not among the weights
    return {"sdpa": sdpa, "eager": eager}


def build(case: Case, arms: Sequence[str]) -> dict[str, Callable[[], object]]:
    """The work of each arm."""
    models = random_towers(case.layers)
    sdpa = models["sdpa"]
    video = noise_video(case.frames)
    job = EncodeJob(video, PruneSpec(keep_ratio=case.keep))
    pixels = PREPROCESSING.normalise(torch.from_numpy(video.frames_thwc_u8), torch.device("cpu"), torch.float32)
    tower = VisionTower(sdpa, tower_depth(FEATURE_LAYER, case.layers))
    compiled = case.compiled and "ours" in arms
    encoder = VisionEncoder(tower, PREPROCESSING, "0" * 64, compile_tower=compiled)
    work: dict[str, Callable[[], object]] = {
        "ours": partial(encoder.encode, [job]),
        "published": partial(published, models["eager"], pixels, case.kept),
        "sdpa": partial(whole_tower, sdpa, pixels, case.frames),
        "sdpa-few": partial(whole_tower, sdpa, pixels, frames_per_pass(tower, case.frames)),
    }
    return {arm: work[arm] for arm in arms}


@torch.inference_mode()
def published(model: CLIPVisionModel, pixels: torch.Tensor, kept: int) -> torch.Tensor:
    """As FasterVLM's code does it."""
    output = model(pixels, output_attentions=True, output_hidden_states=True)
    scores = output.attentions[FEATURE_LAYER].mean(dim=1)[:, 0, 1:]
    indices = scores.topk(kept, dim=1).indices
    return torch.take_along_dim(output.hidden_states[FEATURE_LAYER][:, 1:], indices[..., None], dim=1)


@torch.inference_mode()
def whole_tower(model: CLIPVisionModel, pixels: torch.Tensor, at_a_time: int) -> list[torch.Tensor]:
    """Every layer, for every row."""
    return [model(part).last_hidden_state for part in pixels.split(at_a_time)]


@dataclass(frozen=True)
class Took:
    """Seconds of one run; processor time of all threads, divided by their number."""

    elapsed: float
    processor: float

    @classmethod
    def measure(cls, work: Callable[[], object]) -> "Took":
        """Run it once."""
        elapsed, processor = time.perf_counter(), time.process_time()
        work()
        return cls(time.perf_counter() - elapsed, (time.process_time() - processor) / torch.get_num_threads())

    @classmethod
    def median(cls, runs: list["Took"]) -> "Took":
        """Of each by itself."""
        return cls(statistics.median(run.elapsed for run in runs), statistics.median(run.processor for run in runs))


def time_arms(case: Case, repeats: int) -> dict[str, list[Took]]:
    """Each arm, and the large product, in turn."""
    work = build(case, ARMS)
    work[PRODUCT] = partial(torch.mm, torch.randn(SQUARE, SQUARE), torch.randn(SQUARE, SQUARE))
    for run in work.values():
        run()  # the first time takes memory from the system
    runs: dict[str, list[Took]] = {name: [] for name in work}
    for _ in range(repeats):
        for name, run in work.items():
            runs[name].append(Took.measure(run))
    return runs


def memory_of(case: Case, arm: str) -> int:
    """Bytes that an arm takes while it runs, measured in this process, which must do nothing else."""
    work = build(case, [arm])[arm]
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak that building the model left
    work()
    lines = Path("/proc/self/status").read_text().splitlines()
    peak = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * 1024
    return peak - resident


def measure_memory() -> dict[str, int]:
    """Bytes of each arm, each in a process of its own that is given the same options."""
    command = [sys.executable, __file__, *sys.argv[1:], "--memory-of"]
    return {arm: int(subprocess.run([*command, arm], check=True, stdout=subprocess.PIPE).stdout) for arm in ARMS}


def print_table(case: Case, runs: dict[str, list[Took]]) -> None:
    """One row per arm; ratios and shares of elapsed and of processor time."""
    medians = {name: Took.median(values) for name, values in runs.items()}
    # Nothing is faster than the peak: its best run, not the one in the middle.
    product = Took(min(run.elapsed for run in runs[PRODUCT]), min(run.processor for run in runs[PRODUCT]))
    flops = 2 * SQUARE**3
    print(
        f"{case}, {torch.get_num_threads()} threads, peak {flops / product.elapsed / 1e9:.1f} GFLOP/s (elapsed), ",
        end="",
    )
    print(f"{flops / product.processor / 1e9:.1f} (processor time)\nEach cell: elapsed / processor time\n")
    print("| arm | seconds | published takes | share of sdpa | GFLOP | share of peak |")
    print("|---|---|---|---|---|---|")
    for arm in ARMS:
        took, old, plain = medians[arm], medians["published"], medians["sdpa"]
        share = case.operations(arm) / flops
        print(
            f"| {arm} | {took.elapsed:.2f} / {took.processor:.2f} "
            f"| {old.elapsed / took.elapsed:.2f}x / {old.processor / took.processor:.2f}x "
            f"| {took.elapsed / plain.elapsed:.2f} / {took.processor / plain.processor:.2f} "
            f"| {case.operations(arm) / 1e9:.0f} "
            f"| {share * product.elapsed / took.elapsed:.0%} / {share * product.processor / took.processor:.0%} |"
        )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--keep", type=float, default=0.1, help="share of the patches (default 0.1)")
    parser.add_argument("--repeats", type=int, default=5, help="rounds, of every arm once (default 5)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--compile", action="store_true", help="ours is compiled with torch.compile")
    parser.add_argument("--quick", action="store_true", help="four layers, three rounds: does it run?")
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write the numbers here")
    parser.add_argument("--memory", action="store_true", help="measure memory, not time")
    parser.add_argument("--memory-of", choices=ARMS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    case = Case(options.frames, options.keep, 4 if options.quick else LAYERS, options.compile)
    if options.memory_of:
        print(memory_of(case, options.memory_of))
        return
    if options.memory:
        memory = measure_memory()
        print(
            "\n".join(["| arm | memory, MB |", "|---|---|", *(f"| {arm} | {memory[arm] / 1e6:.0f} |" for arm in ARMS)])
        )
        return
    runs = time_arms(case, 3 if options.quick else options.repeats)
    print_table(case, runs)
    if options.json:
        seconds = {name: [vars(run) for run in values] for name, values in runs.items()}
        options.json.write_text(json.dumps({"case": vars(case), "seconds": seconds}, indent=2) + "\n")


if __name__ == "__main__":
    main()
