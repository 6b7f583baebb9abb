"""What an optimiser's step on the mini model's matrices takes: PyTorch's Muon against the one that training uses.

    python benchmarks/training_step.py

PyTorch's orthogonalises in bfloat16, which CPUs without instructions for it (AVX2 ones) are slow at. They take turns,
and the ratio of each turn's times is what counts.
"""

import argparse
import statistics
import time

import torch
from torch import nn
from torch.optim import Muon, Optimizer

from fastervlm_video.mini.checkpoint import MiniSize
from fastervlm_video.mini.training.muon import BatchedMuon


def layer_matrices(size: MiniSize) -> list[nn.Parameter]:
    """Of the language model's layers, as they are trained in phases 2 and 3."""
    width, inner = size.text_width, 3 * size.text_width
    shapes = [(width, width)] * 4 + [(inner, width)] * 2 + [(width, inner)]
    return [nn.Parameter(torch.randn(shape) * 0.05) for _ in range(size.text_layers) for shape in shapes]


def seconds_of_a_step(optimizer: Optimizer, parameters: list[nn.Parameter]) -> float:
    """With new gradients."""
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    start = time.perf_counter()
    optimizer.step()
    return time.perf_counter() - start


def main() -> None:
    """Print medians and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    matrices, others = layer_matrices(MiniSize()), layer_matrices(MiniSize())
    theirs = Muon(matrices, lr=1e-3, adjust_lr_fn="match_rms_adamw")
    ours = BatchedMuon(others, lr=1e-3, weight_decay=0.1)
    turns = [(seconds_of_a_step(theirs, matrices), seconds_of_a_step(ours, others)) for _ in range(options.turns + 1)]
    first, second = zip(*turns[1:], strict=True)  # the first turn warms up
    print(f"torch.optim.Muon  {1000 * statistics.median(first):8.1f} ms")
    print(f"BatchedMuon       {1000 * statistics.median(second):8.1f} ms")
    print(f"ratio             {statistics.median(a / b for a, b in turns[1:]):8.1f}")


if __name__ == "__main__":
    main()
