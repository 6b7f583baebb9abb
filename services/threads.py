"""Blocking work off the event loop, without leaving it running behind one's back."""

import asyncio
from collections.abc import Callable
from typing import ParamSpec, TypeVar

__all__ = ["finish_in_thread"]

P = ParamSpec("P")
R = TypeVar("R")


async def finish_in_thread(work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Run ``work`` in a thread and return its result; if cancelled, wait until it is done, then go on unwinding.

    A thread cannot be interrupted. ``asyncio.to_thread`` abandons it when its caller is cancelled, and the
    caller then closes the file to which the thread still writes. Here what was begun is over when this returns
    or raises, so ``work`` should be short.
    """
    task = asyncio.ensure_future(asyncio.to_thread(work, *args, **kwargs))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        if not task.cancelled():
            task.exception()  # seen, and superseded by the cancellation
        raise
