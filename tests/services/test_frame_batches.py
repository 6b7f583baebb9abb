"""Which jobs are worked on together, and in which order."""

import asyncio
import threading
from collections.abc import Callable

import pytest

from services.frame_batches import FrameBatches


class Tower:
    """Takes numbers of frames for jobs; gives each back as text. The first batch waits for the gate."""

    def __init__(self, fails: Callable[[list[int]], bool] = lambda _: False) -> None:
        self.batches: list[list[int]] = []
        self.begun, self.gate = threading.Event(), threading.Event()
        self._fails = fails

    def work(self, jobs: list[int]) -> list[str]:
        self.batches.append(jobs)
        self.begun.set()
        assert self.gate.wait(30)
        if self._fails(jobs):
            raise MemoryError("too many")
        return [str(job) for job in jobs]


async def in_turn(tower: Tower, sizes: list[int], max_frames: int = 10) -> list[str | BaseException]:
    """Results of jobs that come while the first one, of a frame, is worked on."""
    batches = FrameBatches(tower.work, max_frames=max_frames, wait_seconds=0)
    first = asyncio.create_task(batches.run(1, 1))
    assert await asyncio.to_thread(tower.begun.wait, 30)
    others = [asyncio.create_task(batches.run(size, size)) for size in sizes]
    await asyncio.sleep(0)
    tower.gate.set()
    return await asyncio.gather(first, *others, return_exceptions=True)


async def test_batches_are_filled_in_order() -> None:
    tower = Tower()
    assert await in_turn(tower, [4, 4, 4, 2, 3]) == ["1", "4", "4", "4", "2", "3"]
    assert tower.batches == [[1], [4, 4], [4, 2, 3]]


async def test_a_large_job_is_not_overtaken() -> None:
    tower = Tower()
    await in_turn(tower, [2, 9, 2, 64, 1, 1])
    assert tower.batches == [[1], [2], [9], [2], [64], [1, 1]]


async def test_jobs_that_come_within_the_wait_join_the_first() -> None:
    tower = Tower()
    tower.gate.set()
    batches = FrameBatches(tower.work, max_frames=10, wait_seconds=0.2)
    assert await asyncio.gather(*(batches.run(size, size) for size in (3, 4))) == ["3", "4"]
    assert tower.batches == [[3, 4]]
    assert await batches.run(5, 5) == "5"


async def test_nothing_is_done_for_those_who_have_gone() -> None:
    tower = Tower()
    batches = FrameBatches(tower.work, max_frames=10, wait_seconds=0)
    first, gone, stays = [asyncio.create_task(batches.run(size, size)) for size in (8, 6, 5)]
    assert await asyncio.to_thread(tower.begun.wait, 30)
    gone.cancel()
    first.cancel()  # too late: it is being worked on
    await asyncio.sleep(0)
    tower.gate.set()
    assert await stays == "5"
    assert tower.batches == [[8], [5]]


async def test_an_error_is_for_its_batch_alone() -> None:
    tower = Tower(fails=lambda jobs: 6 in jobs)
    results = await in_turn(tower, [6, 4, 5])
    assert [type(result) for result in results] == [str, MemoryError, MemoryError, str]


async def test_too_few_results_are_an_error_and_not_silence() -> None:
    batches = FrameBatches[int, str](lambda _: [], max_frames=10, wait_seconds=0)
    with pytest.raises(ValueError, match="shorter"):
        await batches.run(1, 1)
