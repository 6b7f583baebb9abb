"""The picture track of one open video: its first frame, its last, and the one on screen at any moment.

Seeking in video containers is a hint, not a promise: it may land late (indexes count in decoding order,
transport streams do not know their keyframes) or not work at all. So the reader checks what comes out:

    wanted                                    t
    frames   ---K----------K----------K-------|--K---      K: keyframe
    1st try                           >.......x            lands on K at or before t: decode on to t
    late                                         >         first frame is after t: go back 1 s, 2 s, 4 s ...
    never                                                  decode from the start
"""

import logging
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import dropwhile

import av
import av.error

from fastervlm_video.config import MediaLimits
from fastervlm_video.errors import CorruptMediaError, MediaLimitError
from fastervlm_video.media import containers
from fastervlm_video.media.opening import check_index_fits_file, open_track
from fastervlm_video.media.passing import PacketsOnTheWay
from fastervlm_video.media.sampling import rounding_tolerance
from fastervlm_video.media.sources import MediaSource

__all__ = ["ShownFrame", "TrackReader"]

logger = logging.getLogger(__name__)

_SEEK_WORTH_SECONDS = 1
"""Without a usable index: how far ahead a moment must be before seeking to it is tried."""
_TRUNCATION_SLACK_SECONDS = 1
"""Header durations are rounded, and may include sound that outlasts the picture a little."""


@dataclass(frozen=True, slots=True)
class ShownFrame:
    """A decoded frame and when it begins, in the track's ticks."""

    pts: int
    frame: av.VideoFrame


class TrackReader:
    """Random access to the frames of a video's picture track.

    Args:
        source: the video's bytes.
        limits: bounds on pixels, duration and time.
        threads: decoder threads.

    Raises:
        UnsupportedMediaError: not a video, or not an allowed container or codec.
        NoVideoStreamError: no picture track.
        CorruptMediaError: the container is damaged.
        MediaLimitError: too long, too large or too slow.
    """

    def __init__(self, source: MediaSource, limits: MediaLimits, threads: int = 1) -> None:
        self._source = source
        self._limits = limits
        self._threads = threads
        self._deadline = time.monotonic() + limits.timeout_seconds
        self._seekable = True
        self._lead = 0
        self._wanted: int | None = None
        self._open()
        self._seekable = self.container not in containers.SEQUENTIAL_ONLY
        self._tolerance = rounding_tolerance(self.ticks_per_frame)
        self._check_declared_limits()
        check_index_fits_file(self._stream, self._source)
        first = self._next()
        if first is None:
            raise CorruptMediaError(f"no frame of the {self.codec} track could be decoded")
        self.first = first
        self._tail: ShownFrame | None = None

    # -- facts ---------------------------------------------------------------------------------------

    @property
    def container(self) -> str:
        """The demuxer's name."""
        return self._container.format.name

    @property
    def codec(self) -> str:
        """The codec's name."""
        return self._stream.codec_context.codec.canonical_name

    @property
    def time_base(self) -> Fraction:
        """Seconds per tick."""
        return self._stream.time_base or Fraction(1, av.time_base)

    @property
    def ticks_per_frame(self) -> Fraction | None:
        """The usual distance between two frames in ticks, if the container knows of one."""
        rate = self._stream.guessed_rate
        return None if not rate else 1 / (rate * self.time_base)

    # -- frames --------------------------------------------------------------------------------------

    def last_pts(self) -> int:
        """When the last frame begins, in ticks: by decoding the end, or by scanning all packets.

        Raises:
            CorruptMediaError: the file ends before its own index or header says it should.
            MediaLimitError: the track is longer than the limit.
        """
        end = self._declared_end()
        if self._seekable and end is not None:
            self._tail = self._decode_tail(end)
        if self._tail is not None:
            last = self._tail.pts
        else:
            last = self._scan_packets()
            self._rewind()
        check_index_fits_file(self._stream, self._source)
        if end is not None and (end - last) * self.time_base > _TRUNCATION_SLACK_SECONDS:
            self._check_file_is_whole(last)
        self._check_duration((last - self.first.pts) * self.time_base)
        return max(last, self.first.pts)

    def frame_at(self, moment: Fraction) -> ShownFrame:
        """The frame on screen at ``moment`` (ticks): the latest that begins by then.

        Fast for moments in ascending order.

        Raises:
            CorruptMediaError: nothing around the moment can be decoded.
        """
        if moment <= self.first.pts:
            return self.first
        if self._tail is not None and moment >= self._tail.pts:
            return self._tail
        limit = self._wanted = int(moment) + self._tolerance
        if not self._seek_pays(limit):
            return self._advance(limit)
        for target in self._seek_targets(limit):
            if not self._seek(target):
                break
            landed = self._next()
            if landed is not None and landed.pts <= limit:
                self._lead = limit - target
                return self._advance(limit)
        self._rewind()
        return self._advance(limit)

    def close(self) -> None:
        """Free the decoder."""
        self._container.close()

    # -- opening -------------------------------------------------------------------------------------

    def _open(self) -> None:
        self._container, self._stream = open_track(self._source, self._limits, self._threads)
        self._start_decoding(from_keyframe=False)

    def _rewind(self) -> None:
        """Back to the very start, by opening anew: the one way that works for every container."""
        self._container.close()
        self._open()

    # -- limits and truncation -----------------------------------------------------------------------

    def _check_declared_limits(self) -> None:
        self._check_pixels(self._stream.codec_context.width, self._stream.codec_context.height)
        if self._stream.duration is not None:
            self._check_duration(self._stream.duration * self.time_base)

    def _check_pixels(self, width: int, height: int) -> None:
        if width * height > (most := self._limits.max_pixels_per_frame):
            raise MediaLimitError(f"frames of {width}x{height} have more than the {most} pixels allowed")

    def _check_refused_size(self, error: Exception) -> None:
        """Whether the decoder failed because the picture size has changed to one that it was told to refuse."""
        context = self._stream.codec_context
        self._check_pixels(context.width, context.height)
        if isinstance(error, av.error.ArgumentError) and not context.width:
            most = self._limits.max_pixels_per_frame
            raise MediaLimitError(f"the picture size changes to one with more than the {most} pixels allowed")

    def _check_duration(self, seconds: Fraction) -> None:
        if seconds > (most := self._limits.max_duration_seconds):
            raise MediaLimitError(f"the video is {float(seconds):.1f} s long, more than the {most:g} s allowed")

    def _check_time(self) -> None:
        if time.monotonic() > self._deadline:
            raise MediaLimitError(f"decoding took longer than the {self._limits.timeout_seconds:g} s allowed")

    def _check_file_is_whole(self, last: int) -> None:
        """The picture ends early: because the file was cut off, or only because the header guessed."""
        if (missing := containers.missing_tail(self._source)) is not None:
            seconds = float((last - self.first.pts) * self.time_base)
            raise CorruptMediaError(
                f"the video is truncated: its data end after {seconds:.2f} s, {missing} bytes before the end its "
                "header promises"
            )

    # -- the end -------------------------------------------------------------------------------------

    def _declared_end(self) -> int | None:
        """When the container says the track ends, in ticks; None if it does not say."""
        start = self._stream.start_time or 0
        if self._stream.duration:
            return start + self._stream.duration
        if self._container.duration:
            return start + int(Fraction(self._container.duration, av.time_base) / self.time_base)
        return None

    def _decode_tail(self, end: int) -> ShownFrame | None:
        self._wanted = sys.maxsize
        for target in self._seek_targets(end):
            if not self._seek(target):
                return None
            if self._next() is not None:
                return self._advance(None)
        return None

    def _scan_packets(self) -> int:
        """The latest time of any packet, without decoding: for containers that do not state their end."""
        self._rewind()
        last = self.first.pts
        for packet in self._packets():
            stamp = packet.pts if packet.pts is not None else packet.dts
            if stamp is not None and not packet.is_discard and stamp > last:
                last = stamp
                self._check_duration((last - self.first.pts) * self.time_base)
        return last

    # -- seeking -------------------------------------------------------------------------------------

    def _seek_targets(self, ticks: int) -> Iterator[int]:
        """Where to try landing: at ``ticks``, then ever further before it, until the track's start."""
        second = max(1, round(1 / self.time_base))
        lead = 0 if self.container in containers.RELIABLE_INDEX else self._lead
        yield ticks - lead
        while ticks - (lead := max(second, 2 * lead)) > self.first.pts:
            yield ticks - lead

    def _seek_pays(self, ticks: int) -> bool:
        """Whether a keyframe lies between what was decoded last and ``ticks``, as far as one can tell."""
        if not self._seekable:
            return False
        if self._current is None or self._current.pts > ticks or self._dts is None:
            return True
        entries = self._stream.index_entries
        if self.container in containers.RELIABLE_INDEX and len(entries):
            nearest = entries.search_timestamp(ticks)
            second = round(1 / self.time_base)
            if nearest >= 0 and entries[-1].timestamp + second >= ticks:
                return entries[nearest].timestamp > self._dts
        return (ticks - self._current.pts) * self.time_base > _SEEK_WORTH_SECONDS

    def _seek(self, ticks: int) -> bool:
        try:
            self._container.seek(ticks, stream=self._stream)
        except (av.error.FFmpegError, OverflowError) as error:
            logger.debug("this %s file cannot seek (%s): decoding it from the start", self.container, error)
            self._seekable = False
            return False
        self._start_decoding(from_keyframe=True)
        return True

    # -- decoding ------------------------------------------------------------------------------------

    def _start_decoding(self, *, from_keyframe: bool) -> None:
        self._current: ShownFrame | None = None
        self._ahead: ShownFrame | None = None
        self._dts: int | None = None
        self._way: PacketsOnTheWay | None = None
        self._run = self._frames(from_keyframe=from_keyframe)

    def _next(self) -> ShownFrame | None:
        """Make the next decoded frame the current one; None at the end."""
        following, self._ahead = self._ahead or next(self._run, None), None
        self._current = following or self._current
        return following

    def _advance(self, ticks: int | None) -> ShownFrame:
        """Decode on to the frame on screen at ``ticks``, or to the end."""
        while True:
            if not self._ahead and self._current and ticks is not None and self._is_last(self._current, ticks):
                break
            self._ahead = self._ahead or next(self._run, None)
            if self._ahead is None or (self._current and ticks is not None and self._ahead.pts > ticks):
                break
            self._next()
        if self._current is None:
            raise CorruptMediaError(f"no frame around {ticks} ticks could be decoded")
        return self._current

    def _is_last(self, shown: ShownFrame, ticks: int) -> bool:
        """Whether it is known without decoding another that no later frame begins by ``ticks``."""
        return self._way is not None and self._may_pass() and self._way.is_last(shown.pts, ticks)

    def _packets(self) -> Iterator["av.Packet[av.VideoStream]"]:
        """Packets of the track from the current place to the end, or to where reading fails."""
        try:
            for packet in self._container.demux(self._stream):
                self._check_time()
                if packet.size:
                    yield packet
        except (av.error.FFmpegError, EOFError, IndexError) as error:
            # IndexError: PyAV flushes every track at the end, and trips over those that appeared on the way.
            logger.debug("reading stopped: %s", error)

    def _frames(self, *, from_keyframe: bool) -> Iterator[ShownFrame]:
        """Frames in display order. Packets that cannot be decoded are passed over, as players do."""
        stamp = None
        packets = self._packets()
        if from_keyframe:
            packets = dropwhile(lambda packet: not packet.is_keyframe, packets)
        context, may_pass = self._stream.codec_context, self._may_pass()
        self._way = PacketsOnTheWay(packets, lambda: self._wanted if may_pass else None)
        for packet, passed in self._way:
            context.skip_frame = "NONREF" if passed else "DEFAULT"
            self._dts = packet.dts if packet.dts is not None else packet.pts
            for frame in self._decode(packet):
                stamp = self._stamp(frame, stamp)
                yield ShownFrame(stamp, frame)
        for frame in self._decode(None):
            stamp = self._stamp(frame, stamp)
            yield ShownFrame(stamp, frame)

    def _may_pass(self) -> bool:
        """Whether passed frames that no other refers to may be left out: where packets say when theirs are shown."""
        return self.codec in containers.UNREFERENCED_IS_FINAL and self.container in containers.PACKETS_TELL_TIMES

    def _decode(self, packet: "av.Packet[av.VideoStream] | None") -> list[av.VideoFrame]:
        try:
            frames = self._stream.codec_context.decode(packet)
        except MemoryError:
            raise
        except (av.error.FFmpegError, EOFError) as error:
            self._check_refused_size(error)
            logger.debug("a packet could not be decoded: %s", error)
            return []
        for frame in frames:
            self._check_pixels(frame.width, frame.height)
        return frames

    def _stamp(self, frame: av.VideoFrame, previous: int | None) -> int:
        """When a frame begins. A broken file may not say, or go back in time."""
        if self.container in containers.DECODING_TIMES_ONLY:
            # The time of the packet that released the frame: steady, and late by the same delay everywhere.
            stamp = frame.dts
        else:
            stamp = frame.pts if frame.pts is not None else frame.dts
        if stamp is None:
            # Released by the end of the data: one frame later than the last that a packet released.
            latest = previous if previous is not None else self._dts
            stamp = (latest or 0) + max(1, round(self.ticks_per_frame or 1))
        return stamp if previous is None else max(stamp, previous)
