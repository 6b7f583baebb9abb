"""The loop that both training phases share: schedule, clipping, progress, and a state to resume from.

Nothing random is carried from step to step: each step seeds its own generators from (seed, step), so a run
that was interrupted continues exactly as it would have gone on.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fastervlm_video.mini.training.optim import learning_rate_factor, set_learning_rate

__all__ = ["Report", "Schedule", "Step", "log_uniform", "run_steps", "step_generator"]

_CLIP_NORM = 1.0
_SAVE_EVERY = 250
_MEAN_OVER = 50


@dataclass(frozen=True, slots=True)
class Schedule:
    """Length and learning rate of a phase.

    Attributes:
        steps: how many.
        learning_rate: at its highest.
        warmup: steps of linear rise.
        hold: share of the steps before the rate begins to fall.
        weight_decay: of matrices.
    """

    steps: int
    learning_rate: float
    warmup: int = 100
    hold: float = 0.0
    weight_decay: float = 0.05


@dataclass(frozen=True, slots=True)
class Report:
    """Progress of a phase.

    Attributes:
        phase: its name.
        step: steps done.
        steps: steps in all.
        values: means over the last steps, by name.
    """

    phase: str
    step: int
    steps: int
    values: dict[str, float]


Step = Callable[[int], tuple[Tensor, dict[str, float]]]
"""From the number of a step to its loss and what else is worth reporting."""


def step_generator(seed: int, phase: int, step: int) -> np.random.Generator:
    """This step's own generator; torch's is seeded alike."""
    torch.manual_seed((seed * 1_000_003 + phase) * 1_000_003 + step)
    return np.random.default_rng((seed, phase, step))


def log_uniform(rng: np.random.Generator, least: float, shape: tuple[int, ...] = ()) -> npt.NDArray[np.float64]:
    """Between ``least`` and 1, spread evenly over the orders of magnitude."""
    return np.asarray(np.exp(rng.uniform(np.log(least), 0, shape)))


def run_steps(
    phase: str,
    module: nn.Module,
    optimizers: Sequence[Optimizer],
    schedule: Schedule,
    step_of: Step,
    *,
    state: Path,
    report: Callable[[Report], None],
) -> None:
    """Train ``module`` to the end of the schedule, from where ``state`` left off.

    Args:
        phase: name for the reports.
        module: everything that is trained.
        optimizers: of its parameters.
        schedule: length and learning rate.
        step_of: computes one step's loss.
        state: file that is written now and then, and resumed from if it exists.
        report: called every few steps.
    """
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    history: list[dict[str, float]] = []
    for step in range(_resume(state, module, optimizers), schedule.steps):
        factor = learning_rate_factor(step, steps=schedule.steps, warmup=schedule.warmup, hold=schedule.hold)
        set_learning_rate(optimizers, schedule.learning_rate * factor)
        loss, values = step_of(step)
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(trained, _CLIP_NORM)
        for optimizer in optimizers:
            optimizer.step()
        history.append({"loss": float(loss.detach())} | values)
        done = step + 1
        if done % _MEAN_OVER == 0 or done == schedule.steps:
            report(Report(phase, done, schedule.steps, _means(history[-_MEAN_OVER:])))
        if done % _SAVE_EVERY == 0 or done == schedule.steps:
            _save(state, done, module, optimizers)


def _means(history: Sequence[dict[str, float]]) -> dict[str, float]:
    names = {name: None for values in history for name in values}
    return {name: float(np.mean([values[name] for values in history if name in values])) for name in names}


def _save(state: Path, done: int, module: nn.Module, optimizers: Sequence[Optimizer]) -> None:
    scratch = state.with_suffix(".part")
    torch.save(
        {"step": done, "module": module.state_dict(), "optimizers": [o.state_dict() for o in optimizers]}, scratch
    )
    os.replace(scratch, state)


def _resume(state: Path, module: nn.Module, optimizers: Sequence[Optimizer]) -> int:
    if not state.is_file():
        return 0
    saved = torch.load(state, weights_only=True)
    module.load_state_dict(saved["module"])
    for optimizer, values in zip(optimizers, saved["optimizers"], strict=True):
        optimizer.load_state_dict(values)
    return int(saved["step"])
