"""Attention over a paged cache of keys and values, for devices without a flash kernel.

The new tokens of all sequences of a step lie in one row. A sequence's keys and values are in pages anywhere in the
cache; what a step needs to know of them is the same for all layers, so it is worked out once (:class:`StepPlan`)::

    queries   a a a a  b  c  d d          a: a whole prompt, attends to itself: nothing is read from the cache
    kinds     `-----'  '--'  '-'          b, c: one token each, attend to their pages in one padded batch
                                          d: a piece of a prompt, attends to its pages and to itself

:func:`paged_attention` is registered under a name that contains "flash", by which transformers tells functions that
take sequence lengths instead of a mask.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

__all__ = ["PAGED_ATTENTION", "PagedSequence", "StepPlan", "paged_attention"]

PAGED_ATTENTION = "flash_by_sequence"

PagedKeysValues: TypeAlias = tuple[Tensor, Tensor]
"""One layer's keys and values, each [pages, tokens in a page, key heads, D]."""


@dataclass(frozen=True, slots=True)
class PagedSequence:
    """One sequence in one step.

    Attributes:
        new: its new tokens.
        seen: tokens it attends to, the new ones included.
        pages: where these are.
    """

    new: int
    seen: int
    pages: Sequence[int]


class StepPlan:
    """What one step's sequences attend to.

    Args:
        sequences: in the order of their queries.
        layers: the cache, by layer.
        writes: int64 [Q], the place of each new token, counted in tokens from the cache's first.
        dtype: of the queries.
    """

    def __init__(
        self,
        sequences: Sequence[PagedSequence],
        layers: Mapping[int, PagedKeysValues],
        writes: Tensor,
        dtype: torch.dtype,
    ) -> None:
        self._layers, self._writes = layers, writes
        device, page_tokens = writes.device, next(iter(layers.values()))[0].shape[1]
        self._prompts: list[tuple[slice, Tensor | None, Tensor | None]] = []  # queries, pages and mask behind a past
        singles: list[tuple[int, PagedSequence]] = []
        first = 0
        for sequence in sequences:
            if sequence.new == 1:
                singles.append((first, sequence))
            else:
                queries = slice(first, first + sequence.new)
                behind_past = sequence.new < sequence.seen
                pages = torch.tensor(sequence.pages, device=device) if behind_past else None
                mask = _causal(sequence.new, sequence.seen, device, dtype) if behind_past else None
                self._prompts.append((queries, pages, mask))
            first += sequence.new
        self._singles = [_Singles(group, page_tokens, device, dtype) for group in _of_like_length(singles)]

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> Tensor:
        """Write a layer's new keys and values, and attend.

        Args:
            layer: its index.
            query: floating [heads, Q, D].
            key: floating [key heads, Q, D], of the new tokens.
            value: like ``key``.
            scaling: of the scores.

        Returns:
            floating [Q, heads, D].
        """
        cached = self._layers[layer]
        for pages, new in zip(cached, (key, value), strict=True):
            pages.flatten(0, 1).index_copy_(0, self._writes, new.transpose(0, 1))
        if len(self._singles) == 1 and not self._prompts:
            return self._singles[0].attend(cached, query.transpose(0, 1), scaling)
        output = query.new_empty(query.shape[1], query.shape[0], query.shape[2])
        for singles in self._singles:
            output[singles.rows] = singles.attend(cached, query.transpose(0, 1)[singles.rows], scaling)
        for queries, pages_behind, mask in self._prompts:
            if pages_behind is None:
                keys, values = key[:, queries], value[:, queries]
            else:
                assert mask is not None
                seen = mask.shape[1]
                keys, values = (_gather(pages, pages_behind, seen).transpose(0, 1) for pages in cached)
            output[queries] = scaled_dot_product_attention(
                query[None, :, queries],
                keys[None],
                values[None],
                attn_mask=mask,
                is_causal=mask is None,
                scale=scaling,
                enable_gqa=query.shape[0] != key.shape[0],
            )[0].transpose(0, 1)
        return output


def _of_like_length(singles: list[tuple[int, PagedSequence]]) -> list[list[tuple[int, PagedSequence]]]:
    """In groups in which padding at most doubles a sequence; in order, if it is only one."""
    groups: list[list[tuple[int, PagedSequence]]] = []
    for single in sorted(singles, key=lambda single: -single[1].seen):
        if not groups or 2 * single[1].seen < groups[-1][0][1].seen:
            groups.append([])
        groups[-1].append(single)
    return [singles] if len(groups) == 1 else groups


class _Singles:
    """Sequences of one new token each, in one batch padded to the longest."""

    def __init__(
        self, group: list[tuple[int, PagedSequence]], page_tokens: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        sequences = [sequence for _, sequence in group]
        self.rows = torch.tensor([row for row, _ in group], device=device)
        self._seen = max(sequence.seen for sequence in sequences)
        used = [-(-sequence.seen // page_tokens) for sequence in sequences]
        padded = [[*s.pages[:n], *[0] * (max(used) - n)] for s, n in zip(sequences, used, strict=True)]
        self._pages = torch.tensor(padded, device=device).flatten()
        self._mask: Tensor | None = None
        lengths = torch.tensor([sequence.seen for sequence in sequences])
        if bool((lengths < self._seen).any()):
            beyond = torch.arange(self._seen) >= lengths[:, None]
            mask = torch.zeros(beyond.shape, dtype=dtype).masked_fill_(beyond, float("-inf"))
            self._mask = mask[:, None, None].to(device)
            starts = torch.arange(len(sequences))[:, None] * max(used) * page_tokens
            self._unused = (starts + torch.arange(self._seen))[beyond].to(device)

    def attend(self, cached: PagedKeysValues, query: Tensor, scaling: float | None) -> Tensor:
        """Of queries [n, heads, D], the output of the same shape."""
        key_heads = cached[0].shape[2]
        keys, values = (self._read(pages) for pages in cached)
        # Query heads that share a key head attend to the same keys: they are that head's queries.
        grouped: Tensor = query.unflatten(1, (key_heads, -1))
        output: Tensor = scaled_dot_product_attention(grouped, keys, values, attn_mask=self._mask, scale=scaling)
        return output.reshape(query.shape)

    def _read(self, pages: Tensor) -> Tensor:
        """[n, key heads, longest, D]."""
        found = pages.index_select(0, self._pages).flatten(0, 1)
        if self._mask is not None:
            # What is not masked by a zero weight: infinities of a former owner, in a page's unused end.
            found.index_fill_(0, self._unused, 0.0)
        return found.view(len(self.rows), -1, *found.shape[1:])[:, : self._seen].transpose(1, 2)


def _gather(pages: Tensor, wanted: Tensor, seen: int) -> Tensor:
    return pages.index_select(0, wanted).flatten(0, 1)[:seen]


def _causal(new: int, seen: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """[new, seen]: the last query sees all, each one before it one key less."""
    return torch.full((new, seen), float("-inf"), device=device, dtype=dtype).triu_(seen - new + 1)


def paged_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    *,
    scaling: float | None = None,
    cache: Any = None,
    **kwargs: Any,  # noqa: ARG001 - what transformers tells its own functions
) -> tuple[Tensor, None]:
    """Causal attention of each sequence's new tokens to its own past and to themselves.

    Args:
        module: the attention layer; ``layer_idx`` is looked at.
        query: floating [1, heads, Q, D], the new tokens of all sequences.
        key: floating [1, key heads, Q, D].
        value: like ``key``.
        attention_mask: always None.
        scaling: of the scores.
        cache: has the step's plan, as ``plan``.
        kwargs: not looked at.

    Returns:
        floating [1, Q, heads, D], and no weights.
    """
    assert attention_mask is None
    plan: StepPlan = cache.plan
    layer = module.layer_idx
    assert isinstance(layer, int)
    return plan.attend(layer, query[0], key[0], value[0], scaling)[None], None


AttentionInterface.register(PAGED_ATTENTION, paged_attention)
