"""Optimisers and schedule that both training phases share."""

import math
from collections.abc import Iterable

from torch import nn
from torch.optim import AdamW, Optimizer

from fastervlm_video.mini.training.muon import BatchedMuon

__all__ = ["build_optimizers", "learning_rate_factor", "set_learning_rate"]

_BETAS = (0.9, 0.98)


def build_optimizers(
    parameters: Iterable[tuple[str, nn.Parameter]], *, learning_rate: float, weight_decay: float
) -> list[Optimizer]:
    """Muon for the matrices inside transformer layers, AdamW for everything else.

    Args:
        parameters: names and parameters; those of layers have ``.layers.`` in their names.
        learning_rate: of both; Muon's updates are scaled to the size that AdamW's have.
        weight_decay: of matrices; vectors have none.
    """
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    vectors: list[nn.Parameter] = []
    for name, parameter in parameters:
        if parameter.ndim == 2 and "layers." in name:
            matrices.append(parameter)
        else:
            (others if parameter.ndim > 1 else vectors).append(parameter)
    groups = [{"params": others, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return [
        BatchedMuon(matrices, lr=learning_rate, weight_decay=weight_decay),
        AdamW(groups, lr=learning_rate, betas=_BETAS),
    ]


def learning_rate_factor(step: int, *, steps: int, warmup: int, hold: float = 0.0, floor: float = 0.02) -> float:
    """Share of the full learning rate at a step: a linear rise, a plateau of ``hold`` of the steps, half a cosine."""
    decay = max(0.0, (step / steps - hold) / (1 - hold))
    return min(1.0, (step + 1) / warmup) * max(floor, 0.5 * (1 + math.cos(math.pi * decay)))


def set_learning_rate(optimizers: Iterable[Optimizer], value: float) -> None:
    """Set it in every group."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = value
