"""Giving memory back after large uploads."""

import asyncio
import ctypes
import functools
import logging
from collections.abc import Callable

__all__ = ["release_freed_memory_soon"]

logger = logging.getLogger(__name__)


_DELAY_SECONDS = 1.0


def release_freed_memory_soon() -> None:
    """Have the C library return what is free to the system, where it can (glibc's ``malloc_trim``), in a moment:
    the request that is ending now still holds what it has received. Needs a running event loop.

    A body that passes through a process in thousands of pieces leaves its heap full of holes, which glibc
    keeps otherwise: after a few large uploads an idle process would hold gigabytes.
    """
    loop = asyncio.get_running_loop()
    loop.call_later(_DELAY_SECONDS, lambda: loop.run_in_executor(None, _release))


def _release() -> None:
    trim = _malloc_trim()
    if trim is not None:
        trim(0)


@functools.cache
def _malloc_trim() -> Callable[[int], int] | None:
    try:
        found = ctypes.CDLL("libc.so.6").malloc_trim
    except (OSError, AttributeError):
        logger.info("this C library cannot give memory back")
        return None
    found.argtypes, found.restype = [ctypes.c_size_t], ctypes.c_int
    trim: Callable[[int], int] = found
    return trim
