"""Which frames go through the tower together."""

from collections.abc import Sequence
from dataclasses import dataclass

from fastervlm_video.vision.tower import VisionTower

__all__ = ["Span", "frames_per_pass", "plan_passes"]

# A processor's last-level cache is some tens of MB, shared by its cores. What a layer's MLP works on should stay there.
_CACHED_BYTES = 20 * 1024**2


@dataclass(frozen=True, slots=True)
class Span:
    """Frames ``start`` to ``stop`` (exclusive) of one job."""

    job: int
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


def frames_per_pass(tower: VisionTower, limit: int) -> int:
    """How many frames are best sent through the tower at a time.

    A GPU wants many. On a CPU a matrix product is no faster for 2000 rows than for 1000, while everything between two
    products is faster the smaller it is, because it is found in the cache: at ViT-L/14 four frames at a time take
    about a tenth less time than eight. With fewer the weights would be read from memory more often for nothing.

    Args:
        tower: where it runs and how large its activations are.
        limit: most frames that memory is meant for, at least 1.
    """
    if tower.device.type != "cpu":
        return limit
    return max(1, min(limit, _CACHED_BYTES // tower.activation_bytes_per_frame))


def plan_passes(frame_counts: Sequence[int], order: Sequence[int], limit: int) -> list[list[Span]]:
    """Fill forward passes of at most ``limit`` frames with all jobs' frames, one job after the other.

    ::

        counts (3, 4), order (0, 1), limit 4  ─▶  [0: 0..3, 1: 0..1]  [1: 1..4]

    Args:
        frame_counts: frames of each job.
        order: the jobs' indices, each once.
        limit: frames in one pass.
    """
    plan: list[list[Span]] = []
    room = 0
    for job in order:
        start, count = 0, frame_counts[job]
        while start < count:
            if room == 0:
                plan.append([])
                room = limit
            stop = min(count, start + room)
            plan[-1].append(Span(job, start, stop))
            room -= stop - start
            start = stop
    return plan
