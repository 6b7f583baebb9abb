"""Blocking work off the event loop, without leaving it running behind one's back."""

import asyncio
import errno
from collections.abc import Callable
from typing import BinaryIO, ParamSpec, TypeVar

from fastervlm_video.errors import StorageFullError

__all__ = ["finish", "finish_in_thread", "write_to_disk"]

P = ParamSpec("P")
R = TypeVar("R")


def write_to_disk(file: BinaryIO, data: bytes | bytearray) -> None:
    """Write to a temporary file.

    Raises:
        StorageFullError: the disk is full.
    """
    try:
        file.write(data)
    except OSError as exc:
        if exc.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
            raise StorageFullError("the disk for incoming files is full; try again later") from exc
        raise


async def finish_in_thread(work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Run ``work`` in a thread and return its result; if cancelled, wait until it is done, then go on unwinding.

    A thread cannot be interrupted. ``asyncio.to_thread`` abandons it when its caller is cancelled, and the
    caller then closes the file to which the thread still writes. Here what was begun is over when this returns
    or raises, so ``work`` should be short.
    """
    return await finish(asyncio.ensure_future(asyncio.to_thread(work, *args, **kwargs)))


async def finish(running: asyncio.Future[R]) -> R:
    """The result of work that was begun; if cancelled, wait until it is done, then go on unwinding."""
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait([running])
        if not running.cancelled():
            running.exception()  # seen, and superseded by the cancellation
        raise
