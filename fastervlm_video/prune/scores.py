"""The two tensor functions FasterVLM consists of: score every patch, keep the best.

::

    queries of [CLS]  [T, heads, D] ─┐
                                     ├─ softmax over 1+N keys ─ mean over heads ─ drop column 0 ─▶ [T, N]
    keys  [T, heads, 1+N, D] ────────┘
"""

import torch
from torch import Tensor

from fastervlm_video.errors import InvalidRequestError

__all__ = ["cls_attention_scores", "top_k_stable"]


def cls_attention_scores(query_cls: Tensor, keys: Tensor, scale: float) -> Tensor:
    """How much the [CLS] token of each frame attends to each of the frame's patches.

    FasterVLM (arXiv 2412.01818), section 3.2. One row of the attention matrix per head is computed, never
    the matrix. The softmax runs over all keys, [CLS]'s own included, so a frame's scores sum to less than 1.

    Args:
        query_cls: floating [T, heads, D], the query of each frame's [CLS] token.
        keys: floating [T, heads, 1+N, D], keys of [CLS] (first) and of the N patches.
        scale: factor on the dot products, ``D ** -0.5`` in CLIP.

    Returns:
        float32 [T, N], whatever the inputs' dtype: bfloat16 would make ties of what is none.
    """
    logits = torch.einsum("thd,thnd->thn", query_cls.float(), keys.float()) * scale
    return logits.softmax(dim=-1).mean(dim=1)[:, 1:]


def top_k_stable(scores: Tensor, k: int) -> Tensor:
    """Indices of the ``k`` highest scores of each row, best first; ties by index, ascending.

    Because the order is total, the result for a smaller ``k`` is a prefix of the result for a larger one
    (``torch.topk`` promises no order among ties).

    Args:
        scores: [T, N].
        k: how many, in [1, N].

    Returns:
        int64 [T, k].

    Raises:
        InvalidRequestError: ``k`` is not in [1, N].
    """
    available = scores.shape[-1]
    if not 1 <= k <= available:
        raise InvalidRequestError(f"cannot keep {k} of {available} tokens: give a count in [1, {available}]")
    return torch.sort(scores, dim=-1, descending=True, stable=True).indices[..., :k]
