"""Choosing the next token: a pure function of logits, settings and uniform random numbers."""

import torch
from torch import Tensor

__all__ = ["sample_tokens"]


def sample_tokens(logits: Tensor, temperatures: Tensor, top_ps: Tensor, uniforms: Tensor) -> Tensor:
    """The next token of each row, greedy or by nucleus sampling.

    Randomness comes in as one uniform number per row and is turned into a token by inverting the cumulative
    distribution, so that a row's token depends on nothing else in the batch. The nucleus is the smallest set
    of most probable tokens whose probabilities reach ``top_p`` (Holtzman et al., 2020); among equally
    probable tokens the smaller id comes first.

    Args:
        logits: floating [B, V].
        temperatures: float32 [B]; 0 means greedy.
        top_ps: float32 [B] in (0, 1].
        uniforms: float32 [B] in [0, 1); not looked at where the row is greedy.

    Returns:
        int64 [B] token ids.
    """
    logits = logits.float()
    greedy = logits.argmax(dim=-1)
    if not bool((temperatures > 0).any()):
        return greedy
    # Subtracting the maximum first keeps tiny temperatures from overflowing to inf - inf.
    centred = logits - logits.amax(dim=-1, keepdim=True)
    scaled = centred / torch.where(temperatures > 0, temperatures, 1.0)[:, None]
    probabilities, order = scaled.softmax(dim=-1).sort(dim=-1, descending=True, stable=True)
    mass_before = probabilities.cumsum(dim=-1) - probabilities
    within = mass_before < top_ps[:, None]
    within[:, 0] = True  # a top_p that rounds to 0 still leaves the most probable token
    nucleus = probabilities * within
    cumulative = nucleus.cumsum(dim=-1)
    # The first rank whose cumulative mass exceeds the drawn share of the nucleus' mass; rounding in the
    # product must not lead past the nucleus' last token.
    ranks = (cumulative <= uniforms[:, None] * cumulative[:, -1:]).sum(dim=-1)
    last = ((nucleus > 0).sum(dim=-1) - 1).clamp_min(0)
    sampled = order.gather(-1, torch.minimum(ranks, last)[:, None])[:, 0]
    return torch.where(temperatures > 0, sampled, greedy)
