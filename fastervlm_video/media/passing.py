"""Which packets on the way to a wanted frame hold a frame that is not the wanted one.

libav can be told to leave out frames from which no other is predicted (H.264: ``nal_ref_idc`` 0). They are of no use
unless shown themselves, and of those on the way to a moment only the last that begins by then is shown::

    wanted                                 t
    stored     I0  P4  B2  b1  b3  P8  B6  b5  b7  P12      number: when it is shown, t = 6
    passed     x   x   x   x   x           x                another with a time up to t is known to be later
    decoded    *   *   *           *   *       *   *        capital letters, for others need them, and what follows

A packet is stored before others that are shown earlier, so whether it is the last by ``t`` is known only after a look
around it. Marking a packet from which others are predicted does no harm: libav decodes it all the same.
"""

from collections import deque
from collections.abc import Callable, Iterator
from itertools import chain

import av

__all__ = ["MOST_REORDERED", "PacketsOnTheWay"]

MOST_REORDERED = 16
"""H.264 stores a frame at most this many frames before its turn to be shown."""


class PacketsOnTheWay:
    """Packets in the order in which they are stored, each with whether its frame is surely passed, not wanted.

    Reads ahead by up to :data:`MOST_REORDERED` packets, and only where that is needed to tell.

    Args:
        packets: of one picture track; each is one frame and has its times.
        wanted: asked before each packet: the moment, in ticks, whose frame is decoded next; None marks nothing.
    """

    def __init__(self, packets: Iterator["av.Packet[av.VideoStream]"], wanted: Callable[[], int | None]) -> None:
        self._packets, self._wanted = packets, wanted
        self._ahead: deque[av.Packet[av.VideoStream]] = deque()
        self._behind: deque[av.Packet[av.VideoStream]] = deque(maxlen=MOST_REORDERED)

    def __iter__(self) -> Iterator[tuple["av.Packet[av.VideoStream]", bool]]:
        while (packet := self._ahead.popleft() if self._ahead else next(self._packets, None)) is not None:
            wanted = self._wanted()
            passed = wanted is not None and packet.pts is not None and self._is_passed(packet.pts, wanted)
            self._behind.append(packet)
            yield packet, passed

    def is_last(self, pts: int, wanted: int) -> bool:
        """Whether no packet, seen or not yet, can hold a frame that is shown after ``pts`` and by ``wanted``.

        Frames are stored in the order in which they are decoded, and none is shown before: behind a packet that is
        decoded after ``wanted`` all are shown after it.
        """
        return self._sees_beyond(wanted) and not any(
            _is_between(pts, packet, wanted) for packet in chain(self._ahead, self._behind)
        )

    def _is_passed(self, pts: int, wanted: int) -> bool:
        if pts > wanted:
            return False
        if any(_is_between(pts, other, wanted) and _is_sound(other) for other in chain(self._ahead, self._behind)):
            return True
        while len(self._ahead) < MOST_REORDERED and not self._sees_beyond(wanted):
            following = next(self._packets, None)
            if following is None:
                break
            self._ahead.append(following)
            if _is_between(pts, following, wanted) and _is_sound(following):
                return True
        return False

    def _sees_beyond(self, wanted: int) -> bool:
        """Whether the packets read ahead reach to one that is decoded after ``wanted``."""
        return bool(self._ahead) and (dts := self._ahead[-1].dts) is not None and dts > wanted


def _is_between(pts: int, packet: "av.Packet[av.VideoStream]", wanted: int) -> bool:
    return packet.pts is not None and pts < packet.pts <= wanted


def _is_sound(packet: "av.Packet[av.VideoStream]") -> bool:
    """Whether its frame can be expected to be shown."""
    return not (packet.is_discard or packet.is_corrupt)
