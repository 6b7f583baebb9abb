"""Who is encoded together with whom: first come, first served, as many frames at a time as a pass should have."""

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Generic, TypeVar

__all__ = ["FrameBatches"]

J = TypeVar("J")
R = TypeVar("R")


@dataclass(slots=True, eq=False)
class _Waiting(Generic[J, R]):
    job: J
    frames: int
    result: asyncio.Future[R] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class FrameBatches(Generic[J, R]):
    """Gathers jobs and has one thread work on them, batch after batch. For use from one event loop.

    Jobs keep their order, whatever their sizes: a batch is the longest beginning of the queue that is within the
    limit, and at least its first job. Those whose asker has gone before their turn are left out.

    Args:
        work: called in the thread with the jobs of a batch; gives their results in order.
        max_frames: most frames of a batch of several jobs.
        wait_seconds: how long the first job of a batch waits for others.
    """

    def __init__(self, work: Callable[[list[J]], list[R]], *, max_frames: int, wait_seconds: float) -> None:
        self._work, self._max_frames, self._wait_seconds = work, max_frames, wait_seconds
        self._queue: deque[_Waiting[J, R]] = deque()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="tower")
        self._running: asyncio.Task[None] | None = None

    async def run(self, job: J, frames: int) -> R:
        """The job's result.

        Args:
            job: what to do.
            frames: how much that is.
        """
        waiting = _Waiting[J, R](job, frames)
        self._queue.append(waiting)
        if self._running is None or self._running.done():
            self._running = asyncio.create_task(self._run_batches())
        return await waiting.result

    async def _run_batches(self) -> None:
        loop = asyncio.get_running_loop()
        await asyncio.sleep(self._wait_seconds)  # later batches gather while one is worked on
        while batch := self._next_batch():
            settled: list[tuple[_Waiting[J, R], R | Exception]]
            try:
                results = await loop.run_in_executor(self._thread, self._work, [waiting.job for waiting in batch])
                settled = list(zip(batch, results, strict=True))
            except Exception as exc:  # whatever it is, it is the askers' to know, and nothing for those after them
                settled = [(waiting, exc) for waiting in batch]
            for waiting, outcome in settled:
                _settle(waiting.result, outcome)

    def _next_batch(self) -> list[_Waiting[J, R]]:
        batch: list[_Waiting[J, R]] = []
        frames = 0
        while self._queue and (not batch or frames + self._queue[0].frames <= self._max_frames):
            waiting = self._queue.popleft()
            if not waiting.result.cancelled():
                batch.append(waiting)
                frames += waiting.frames
        return batch


def _settle(future: asyncio.Future[R], outcome: R | Exception) -> None:
    """Hand out a result, or the error instead of it, unless the asker has gone meanwhile."""
    if future.done():
        return
    if isinstance(outcome, Exception):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)
