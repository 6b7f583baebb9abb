"""A training too small to learn anything, for tests of the loop; run in a process of its own to be killed."""

import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from fastervlm_video.mini.training.loop import Report, Schedule, run_steps, step_generator
from fastervlm_video.mini.training.optim import build_optimizers

STEPS = 300
SCHEDULE = Schedule(steps=STEPS, learning_rate=1e-2, warmup=10, hold=0.1)
HALTED = "halted"


def build() -> nn.ModuleDict:
    torch.manual_seed(0)
    return nn.ModuleDict({"layers": nn.ModuleList([nn.Linear(6, 6), nn.Linear(6, 6)]), "head": nn.Linear(6, 3)})


def train(
    state: Path, *, halt_at: int | None = None, seed: int = 1, report: Callable[[Report], None] = lambda _: None
) -> nn.ModuleDict:
    """To the end; or up to a step, and then do nothing, for a minute."""
    torch.set_num_threads(1)
    module = build()

    def step_of(step: int) -> tuple[Tensor, dict[str, float]]:
        if step == halt_at:
            print(HALTED, flush=True)  # noqa: T201 - the parent waits for it
            time.sleep(60)
        rng = step_generator(seed, 3, step)
        hidden = torch.from_numpy(rng.normal(size=(8, 6))).float()
        for layer in module["layers"].children():
            hidden = nn.functional.dropout(torch.tanh(layer(hidden)), 0.3)  # torch's own lots matter, too
        wanted = torch.from_numpy(rng.integers(0, 3, 8))
        return nn.functional.cross_entropy(module["head"](hidden), wanted), {"step": float(step)}

    optimizers = build_optimizers(module.named_parameters(), learning_rate=1e-2, weight_decay=0.05)
    run_steps("toy", module.train(), optimizers, SCHEDULE, step_of, state=state, report=report)
    return module
