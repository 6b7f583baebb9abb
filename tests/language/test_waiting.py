"""The line of requests that have not begun."""

import random
import threading

import pytest
from transformers import PreTrainedTokenizerFast

from fastervlm_video.errors import OverloadedError, UnavailableError
from fastervlm_video.language.job import Job
from fastervlm_video.language.waiting import WaitingLine
from fastervlm_video.models.base import LanguageHalf
from tests.language.kit import Listener
from tests.language.toys import make_request


@pytest.fixture
def jobs(half: LanguageHalf, tokenizer: PreTrainedTokenizerFast) -> list[Job]:
    return [Job(make_request(half), Listener(), tokenizer, [], on_cancel=lambda job: None) for _ in range(200)]


def test_first_come_first(jobs: list[Job]) -> None:
    line = WaitingLine(10, lambda: 0)
    for job in jobs[:4]:
        line.push(job)
    assert line.snapshot() == jobs[:4]
    assert line.remove(jobs[1])
    assert not line.remove(jobs[1])
    assert line.snapshot() == [jobs[0], jobs[2], jobs[3]]
    assert len(line) == 3


def test_capacity_counts_who_runs_too(jobs: list[Job]) -> None:
    running = 2
    line = WaitingLine(3, lambda: running)
    line.push(jobs[0])
    with pytest.raises(OverloadedError, match="2 requests running, 1 waiting"):
        line.push(jobs[1])
    running = 1
    line.push(jobs[1])


def test_a_closed_line_keeps_its_first_reason(jobs: list[Job]) -> None:
    line = WaitingLine(3, lambda: 0)
    line.push(jobs[0])
    assert line.close("it broke") == "it broke"
    assert line.close("it was closed") == "it broke"
    assert line.closed
    with pytest.raises(UnavailableError, match="it broke"):
        line.push(jobs[1])
    assert line.empty() == [jobs[0]]
    assert line.empty() == []


def test_everybody_leaves_exactly_once_whoever_asks(jobs: list[Job]) -> None:
    """Pushed, removed, taken and closed from several threads: each is refused, removed by one, or left at the end."""
    line = WaitingLine(len(jobs), lambda: 0)
    start = threading.Barrier(5)
    pushed: list[Job] = []
    removed: list[list[Job]] = [[], [], []]
    stop = threading.Event()

    def push() -> None:
        start.wait()
        for number, job in enumerate(jobs):
            if number == 150:
                line.close("enough")
            try:
                line.push(job)
            except UnavailableError:
                continue
            pushed.append(job)
        stop.set()

    def remove(mine: list[Job], seed: int) -> None:
        rng = random.Random(seed)
        start.wait()
        while not stop.is_set():
            snapshot = line.snapshot()
            if snapshot and line.remove(job := rng.choice(snapshot)):
                mine.append(job)

    threads = [threading.Thread(target=push)]
    threads += [threading.Thread(target=remove, args=(mine, seed)) for seed, mine in enumerate(removed)]
    for thread in threads:
        thread.start()
    start.wait()
    for thread in threads:
        thread.join()
    left = [*line.empty(), *(job for mine in removed for job in mine)]
    assert pushed == jobs[:150]
    assert len(left) == len(set(left)) == 150
    assert set(left) == set(pushed)
