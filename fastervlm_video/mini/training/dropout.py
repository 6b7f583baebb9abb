"""What phase 3 leaves out, so that no answer hangs on what background tokens are made to hold, or on their being there.

Blind to what a token shows and to [CLS], and every token stays in the sequence: nothing is pruned.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fastervlm_video.mini.training.loop import log_uniform

__all__ = ["VideoDropout", "draw_dropout"]

_UNTOUCHED_SHARE = 0.15  # of videos, to which nothing happens
_ALL_UPDATED_SHARE, _FEWEST_UPDATED = 0.2, 0.002  # of the other videos; of tokens in the rest of them
_ALL_VISIBLE_SHARE, _FEWEST_VISIBLE = 0.3, 0.001  # of their layers; of keys in the rest of these: one in two videos


@dataclass(frozen=True, slots=True, eq=False)
class VideoDropout:
    """Two regularisers of one training step, on the tokens in front of the questions.

    Attributes:
        updated: boolean [B, P], which tokens the layers update; the others keep their embedding through all layers, as
            if every residual branch were dropped (stochastic depth, Huang et al., 2016, token by token).
        visible: boolean [layers, B, P], which keys a layer attends to, before its softmax (DropKey, Li et al., 2023,
            with the same keys for all heads); a token always sees its own.
    """

    updated: Tensor
    visible: Tensor

    def front_mask(self, layer: int) -> Tensor:
        """Boolean [B, 1, P, P]: what the tokens in front may attend to."""
        length = self.visible.shape[-1]
        own = torch.eye(length, dtype=torch.bool)
        causal = torch.ones(length, length, dtype=torch.bool).tril()
        return (self.visible[layer, :, None, None] | own) & causal

    def question_mask(self, layer: int, mask: Tensor) -> Tensor:
        """``mask`` [B, 1, Q, P + Q], without the keys in front that are not visible."""
        front = self.visible[layer]
        keys = torch.cat([front, front.new_ones(len(front), mask.shape[-1] - front.shape[-1])], dim=-1)
        return mask & keys[:, None, None]


def draw_dropout(rng: np.random.Generator, *, layers: int, batch: int, length: int, exempt: int) -> VideoDropout:
    """Every video its own share of updated tokens, and every layer of it its own share of visible keys.

    The shares are spread evenly over the orders of magnitude, down to hardly a token: in the first layer, above all,
    the questions' tokens must not come to count on anything.

    Args:
        rng: where the lots come from.
        layers: of the language model.
        batch: videos, B.
        length: tokens in front of the questions, P.
        exempt: of these, the first ones, which nothing happens to: the text before the video.
    """
    updating = _shares(rng, (batch, 1), _ALL_UPDATED_SHARE, _FEWEST_UPDATED)
    seeing = _shares(rng, (layers, batch, 1), _ALL_VISIBLE_SHARE, _FEWEST_VISIBLE)
    updated, visible = rng.random((batch, length)) < updating, rng.random((layers, batch, length)) < seeing
    untouched = rng.random(batch) < _UNTOUCHED_SHARE
    updated[untouched], visible[:, untouched] = True, True
    updated[:, :exempt], visible[..., :exempt] = True, True
    return VideoDropout(torch.from_numpy(updated), torch.from_numpy(visible))


def _shares(rng: np.random.Generator, shape: tuple[int, ...], whole: float, least: float) -> npt.NDArray[np.float64]:
    """1 with probability ``whole``, otherwise log-uniform between ``least`` and 1."""
    some = log_uniform(rng, least, shape)
    return np.where(rng.random(shape) < whole, 1.0, some)
