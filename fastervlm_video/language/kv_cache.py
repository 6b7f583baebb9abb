"""The batch's key/value cache: rows of different lengths, left-padded. The only user of transformers' caches.

::

    row 0   . . a b c        column padding is masked out; a row's positions count its own tokens only
    row 1   . d e f g
    row 2   h i j k l        a step appends one column; a shorter newcomer is padded on the left

Rows leave by :meth:`PaddedCache.select`, which also drops columns that no remaining row uses. Everything
goes through ``DynamicCache``'s constructor and iteration, none of its layers is touched.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional
from transformers import DynamicCache, PreTrainedConfig
from transformers.cache_utils import DynamicLayer

from fastervlm_video.errors import CheckpointError

__all__ = ["PaddedCache", "check_full_attention"]


def check_full_attention(config: PreTrainedConfig) -> None:
    """Refuse models whose cache is more than plain keys and values.

    Raises:
        CheckpointError: some layers use a sliding window, a recurrent state or the like.
    """
    kinds = {type(layer) for layer in DynamicCache(config=config).layers}
    if kinds - {DynamicLayer}:
        names = sorted(kind.__name__ for kind in kinds - {DynamicLayer})
        raise CheckpointError(f"this engine batches models with full attention only, but the cache has {names}")


class PaddedCache:
    """Keys and values of a batch of rows, and how many tokens each row holds.

    Attributes:
        lengths: tokens held per row; the width of the cache is the longest row's.
        past: what the model's forward takes as ``past_key_values`` and appends to.
    """

    def __init__(self, lengths: Sequence[int], past: DynamicCache | None = None) -> None:
        self.lengths = list(lengths)
        self.past = past if past is not None else DynamicCache()

    def attention_mask(self, device: torch.device) -> Tensor:
        """int64 [rows, width]: 1 where a row has a token."""
        width = max(self.lengths)
        padding = width - torch.tensor(self.lengths, device=device)
        return (torch.arange(width, device=device) >= padding[:, None]).long()

    def extend(self) -> None:
        """Count the token that the coming forward pass appends to every row."""
        self.lengths = [length + 1 for length in self.lengths]

    def select(self, rows: Sequence[int]) -> "PaddedCache":
        """A cache of these rows only (at least one), as narrow as they allow."""
        lengths = [self.lengths[row] for row in rows]
        unused = max(self.lengths) - max(lengths)
        layers = [(keys[rows, :, unused:], values[rows, :, unused:]) for keys, values, _ in self.past]
        return PaddedCache(lengths, DynamicCache(layers))

    def join(self, newcomers: "PaddedCache") -> "PaddedCache":
        """A cache of these rows and, behind them, the newcomers'."""
        width = max(*self.lengths, *newcomers.lengths)

        def widen(states: Tensor) -> Tensor:
            return functional.pad(states, (0, 0, width - states.shape[-2], 0))

        layers = [
            (torch.cat([widen(keys), widen(new_keys)]), torch.cat([widen(values), widen(new_values)]))
            for (keys, values, _), (new_keys, new_values, _) in zip(self.past, newcomers.past, strict=True)
        ]
        return PaddedCache(self.lengths + newcomers.lengths, DynamicCache(layers))
