"""``torch.compile`` where it works, the same function as it is where it does not."""

import logging
from collections.abc import Callable
from typing import Generic, ParamSpec, TypeVar

import torch

__all__ = ["CompiledOrEager"]

logger = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")
_LONGEST_REASON = 300


class CompiledOrEager(Generic[P, R]):
    """A function that is compiled when it is first called; if that fails, it runs uncompiled from then on.

    No compiler, one that does not start, code that cannot be compiled: whatever it is, it is logged once. An error
    that the uncompiled function raises, too, is the function's own.

    Args:
        function: pure, of tensors whose first dimension may vary; it needs no gradients.
        freeze: treat weights as constants, which may be laid out as the processor likes. They must not change any more.
    """

    def __init__(self, function: Callable[P, R], *, freeze: bool) -> None:
        self._eager = function
        self._compiled: Callable[P, R] | None = torch.compile(function, dynamic=True, options={"freezing": freeze})

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """The function's result."""
        if self._compiled is None:
            return self._eager(*args, **kwargs)
        try:
            with torch.no_grad():  # with gradients nothing would be frozen
                return self._compiled(*args, **kwargs)
        except Exception as error:  # compilers fail in all ways there are
            result = self._eager(*args, **kwargs)
            self._compiled = None
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:_LONGEST_REASON]
            logger.warning("torch.compile failed, the vision tower runs uncompiled: %s", reason)
            return result
