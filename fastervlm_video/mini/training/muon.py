"""Muon as PyTorch has it, for CPUs: float32, and matrices of one shape at a time.

PyTorch's own orthogonalises in bfloat16, matrix by matrix. A CPU without instructions for bfloat16 does that many times
more slowly than in float32, so slowly that it takes most of a training step of the mini model
(``benchmarks/training_step.py``).
"""

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Muon

__all__ = ["BatchedMuon", "orthogonalize"]

_SCALE = 0.2  # the root mean square of AdamW's updates, which "match_rms_adamw" gives these


def orthogonalize(matrices: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float) -> Tensor:
    """About UV^T of each matrix USV^T, by Newton-Schulz iterations of the fifth order.

    Args:
        matrices: [..., R, C].
        coefficients: of X, of (XX^T)X and of (XX^T)^2 X.
        steps: how many iterations.
        eps: least norm to divide by.

    Returns:
        Of the same shape, with singular values between about 0.7 and 1.2.

    Source:
        K. Jordan et al., Muon: An optimizer for hidden layers in neural networks, 2024.
    """
    tall = matrices.shape[-2] > matrices.shape[-1]
    found = matrices.mT if tall else matrices
    found = found / torch.linalg.matrix_norm(found, keepdim=True).clamp(min=eps)
    a, b, c = coefficients
    for _ in range(steps):
        gram = found @ found.mT
        found = torch.baddbmm(found, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), found, beta=a)
    return found.mT if tall else found


class BatchedMuon(Muon):
    """``torch.optim.Muon`` with its options and its state, whose step works on all matrices of one shape at once.

    Args:
        params: matrices.
        lr: learning rate; updates are scaled to the size that AdamW's have.
        weight_decay: decoupled.
    """

    def __init__(self, params: list[nn.Parameter], *, lr: float, weight_decay: float) -> None:
        super().__init__(params, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """One step, from the gradients that are there."""
        if closure is not None:
            raise ValueError("a closure is not supported: compute the gradients first, then call step()")
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape[parameter.shape].append(parameter)
            for shape, parameters in by_shape.items():
                self._update(group, shape, parameters)

    def _update(self, group: dict[str, Any], shape: torch.Size, parameters: list[Tensor]) -> None:
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        moments = [self._moment(parameter) for parameter in parameters]
        torch._foreach_lerp_(moments, gradients, 1 - group["momentum"])
        looked_ahead = torch._foreach_lerp(gradients, moments, group["momentum"]) if group["nesterov"] else moments
        stacked = torch.stack(list(looked_ahead))
        updates = orthogonalize(stacked, group["ns_coefficients"], group["ns_steps"], group["eps"])
        torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(parameters, list(updates), alpha=-group["lr"] * _SCALE * max(shape) ** 0.5)

    def _moment(self, parameter: Tensor) -> Tensor:
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        moment: Tensor = state["momentum_buffer"]
        return moment
