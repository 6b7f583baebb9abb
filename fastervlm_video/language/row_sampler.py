"""Choosing the next tokens of a batch, each row with its own settings and its own randomness."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fastervlm_video.config import SamplingParams
from fastervlm_video.language.sampling import sample_tokens

__all__ = ["RowSampler", "choose_tokens"]


@dataclass(slots=True)
class RowSampler:
    """One row's sampling settings and its own source of randomness, which no other row draws from."""

    params: SamplingParams
    _generator: torch.Generator = field(default_factory=torch.Generator)

    def __post_init__(self) -> None:
        if self.params.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(self.params.seed)

    def draw(self) -> float:
        """The next uniform number in [0, 1); greedy rows draw none."""
        if self.params.temperature == 0:
            return 0.0
        return float(torch.rand((), generator=self._generator, dtype=torch.float64))


def choose_tokens(logits: Tensor, samplers: Sequence[RowSampler]) -> list[int | None]:
    """The next token of each row of ``logits`` [rows, vocabulary]; None where they are not finite."""
    logits = logits.float()
    settings = torch.tensor([[s.params.temperature, s.params.top_p, s.draw()] for s in samplers])
    temperatures, top_ps, uniforms = settings.to(logits).unbind(dim=1)
    tokens = sample_tokens(logits, temperatures, top_ps, uniforms)
    # Infinite and undefined maxima alike: an overflow upstream. -inf elsewhere in a row is legitimate.
    usable = torch.isfinite(logits.amax(dim=-1))
    return [token if good else None for token, good in torch.stack([tokens, usable], dim=1).tolist()]
