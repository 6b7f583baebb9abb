"""Which moments of a video are looked at. Pure arithmetic on timestamps; nothing here knows of files.

A moment is a time, not a frame number, so that a variable frame rate, a missing frame count or a wrong
header cannot move it. At each moment the frame *on screen* is taken: the latest one that began by then.
Five moments out of a video whose frames are shown unevenly (times in ticks)::

    frame     0     1     2                 3  4        5
    begins    0     4     8                 20 22       28     <- the last one begins at 28
              |-----|-----|-----------------|--|--------|--
    moments   0          7          14          21      28     = 0 + 28 * i / 4
    shown     0          1          2           3       5

For a constant frame rate this is ``linspace(0, last, N)`` over frame numbers, rounded down: the
sampling that Video-LLaVA was trained with. A video of fewer frames than N shows some of them twice.
"""

from fractions import Fraction

from fastervlm_video.errors import InvalidRequestError

__all__ = ["instants", "rounding_tolerance"]

MIN_TICKS_PER_FRAME = 8
"""Below this many ticks per frame a tick is no longer small beside a frame."""


def instants(first: int, last: int, count: int) -> tuple[Fraction, ...]:
    """``count`` moments spread evenly from the first frame's time to the last one's, both included.

    Args:
        first: when the first frame begins, in ticks.
        last: when the last frame begins, in ticks.
        count: how many moments; a single one falls in the middle.

    Returns:
        The moments in ticks, exact, non-decreasing.

    Raises:
        InvalidRequestError: ``count`` is below 1, or ``last`` lies before ``first``.
    """
    if count < 1:
        raise InvalidRequestError(f"the number of moments must be at least 1, got {count}")
    if last < first:
        raise InvalidRequestError(f"the last frame's time {last} lies before the first one's {first}")
    if count == 1:
        return (Fraction(first + last, 2),)
    return tuple(first + Fraction((last - first) * i, count - 1) for i in range(count))


def rounding_tolerance(ticks_per_frame: Fraction | None) -> int:
    """How much later than a moment a frame may begin and still count as shown, in ticks.

    Containers round times to their tick (a millisecond in Matroska), and a frame that should begin
    exactly at a moment may be stored just after it. One tick covers both roundings, unless a tick is
    itself a good part of a frame (AVI counts in frames), where times are exact and none is needed.
    """
    return 1 if ticks_per_frame is not None and ticks_per_frame >= MIN_TICKS_PER_FRAME else 0
