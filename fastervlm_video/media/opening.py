"""Opening a container: only allowed ones, only its picture track, and never a second file."""

import logging
from typing import NoReturn

import av
import av.container
import av.error
import av.stream

from fastervlm_video.config import MediaLimits
from fastervlm_video.errors import CorruptMediaError, MediaError, NoVideoStreamError, UnsupportedMediaError
from fastervlm_video.media import containers
from fastervlm_video.media.edit_list import shows_everything
from fastervlm_video.media.sources import MediaSource

__all__ = ["check_index_fits_file", "open_track", "why"]

logger = logging.getLogger(__name__)

_IO_BUFFER_BYTES = 64 * 1024
_NOT_A_PICTURE_TRACK = (
    av.stream.Disposition.attached_pic
    | av.stream.Disposition.timed_thumbnails
    | av.stream.Disposition.dependent  # a part of a picture, such as a tile
)


def open_track(
    source: MediaSource, limits: MediaLimits, threads: int
) -> tuple[av.container.InputContainer, av.VideoStream]:
    """Open a video from its start and choose its picture track; all other tracks are dropped unread.

    Args:
        source: the video's bytes; its (lack of a) name plays no part.
        limits: the decoder refuses pictures above ``max_pixels_per_frame`` before it makes room for them.
        threads: decoder threads. More than one splits pictures into slices; threads that work on several
            pictures at once would have to be filled anew after each seek.

    Raises:
        UnsupportedMediaError: not a video, or not an allowed container or codec.
        NoVideoStreamError: no picture track.
        CorruptMediaError: the container is damaged.
    """
    containers.refuse_heif(source)
    edits = "0" if shows_everything(source) else "1"
    source.seek(0)
    pixels = str(limits.max_pixels_per_frame)
    try:
        container = av.open(
            source,
            mode="r",
            container_options={
                "format_whitelist": ",".join(containers.ALLOWED_DEMUXERS),
                "protocol_whitelist": "none",
                "advanced_editlist": edits,
            },
            options={"codec_whitelist": ",".join(sorted(containers.ALLOWED_DECODERS)), "max_pixels": pixels},
            metadata_errors="replace",
            buffer_size=_IO_BUFFER_BYTES,
            io_open=_refuse_to_open,
        )
    except (av.error.FFmpegError, EOFError) as error:
        raise _why_unopened(source, error) from error
    try:
        stream = _pick_stream(container)
    except MediaError:
        container.close()
        raise
    for other in container.streams:
        if other is not stream:
            other.discard = av.stream.Discard.all
    context = stream.codec_context
    context.thread_count = threads
    context.thread_type = "SLICE"
    context.options = {"max_pixels": pixels}
    return container, stream


def check_index_fits_file(stream: av.VideoStream, source: MediaSource) -> None:
    """MP4's index gives every frame's place in the file; the last one's must be inside it.

    Raises:
        CorruptMediaError: it is not: the file has been cut off.
    """
    entries = stream.index_entries
    if not stream.container.format.name.startswith("mov") or not len(entries) or stream.time_base is None:
        return
    if entries[-1].pos + entries[-1].size <= source.size:
        return
    lost = next(entry for entry in entries if entry.pos + entry.size > source.size)
    held, promised = (
        float((stamp - entries[0].timestamp) * stream.time_base) for stamp in (lost.timestamp, entries[-1].timestamp)
    )
    raise CorruptMediaError(
        f"the video is truncated: its data end after {held:.2f} s of the {promised:.2f} s that its index lists"
    )


def why(error: BaseException) -> str:
    """Libav's words for what went wrong, without its numbers."""
    return str(getattr(error, "strerror", None) or error)


def _refuse_to_open(url: str, _flags: int, _options: dict[str, str]) -> NoReturn:
    """Called when a demuxer wants another file: none of the allowed ones has a reason to."""
    raise UnsupportedMediaError(f"the video refers to another file ({url[:200]!r}), which is not allowed")


def _why_unopened(source: MediaSource, error: Exception) -> MediaError:
    family = containers.sniff(source)
    if family == containers.AUDIO_ONLY:
        return NoVideoStreamError("this is a sound file: it has no picture track")
    if family is None or isinstance(error, av.error.ArgumentError):
        logger.debug("libav refused to open it: %s", error)
        allowed = ", ".join(name.split(",")[0] for name in containers.ALLOWED_DEMUXERS)
        return UnsupportedMediaError(f"not a video in an allowed container ({allowed}); send one of these")
    return CorruptMediaError(f"a damaged or truncated {family} file: {why(error)}")


def _pick_stream(container: av.container.InputContainer) -> av.VideoStream:
    videos = [s for s in container.streams.video if not s.disposition & _NOT_A_PICTURE_TRACK]
    if not videos:
        kinds = ", ".join(sorted({stream.type for stream in container.streams})) or "nothing"
        covers = " (a cover picture or a tile is not one)" if container.streams.video else ""
        raise NoVideoStreamError(f"the file has no picture track{covers}; it holds {kinds}")
    stream = max(videos, key=lambda s: bool(s.disposition & av.stream.Disposition.default))
    # A codec that libav knows but cannot decode has no context, whatever the type stubs say.
    decoder = getattr(getattr(stream.codec_context, "codec", None), "name", "unknown")
    if decoder not in containers.ALLOWED_DECODERS:
        raise UnsupportedMediaError(f"the picture track's codec ({decoder}) is not supported")
    return stream
