"""What may be opened at all, and what can be said of bytes that could not be.

Of the several hundred demuxers and decoders in libav, only those that people's videos really need are
allowed; the rest is code that hostile files reach for. None on the list opens a second file by itself,
except QuickTime's external references, which are off unless asked for (and all opening is refused anyway).
"""

import struct

from fastervlm_video.errors import UnsupportedMediaError
from fastervlm_video.media.sources import MediaSource

__all__ = [
    "ALLOWED_DECODERS",
    "ALLOWED_DEMUXERS",
    "AUDIO_ONLY",
    "DECODING_TIMES_ONLY",
    "PACKETS_TELL_TIMES",
    "RELIABLE_INDEX",
    "SEQUENTIAL_ONLY",
    "UNREFERENCED_IS_FINAL",
    "is_heif",
    "missing_tail",
    "refuse_heif",
    "sniff",
]

ALLOWED_DEMUXERS = (
    "mov,mp4,m4a,3gp,3g2,mj2",
    "matroska,webm",
    "avi",
    "mpegts",
    "mpeg",
    "flv",
    "ogg",
    "asf",
    "gif",
)
"""libav's names of the containers that may be opened."""

_CURRENT = (
    "h264",
    "hevc",
    "vvc",
    "libdav1d",
    "av1",
    "libvpx",
    "libvpx-vp9",
    "vp8",
    "vp9",
    "theora",
    "gif",
    "mjpeg",
    "png",
)
_MPEG = ("mpeg4", "mpeg1video", "mpeg2video", "msmpeg4v1", "msmpeg4v2", "msmpeg4", "h263")
_OLD = ("flv", "vp6", "vp6f", "wmv1", "wmv2", "wmv3", "vc1", "svq1", "svq3", "cinepak", "qtrle")
_EDITING = ("prores", "dnxhd", "dvvideo", "ffv1", "huffyuv", "ffvhuff", "utvideo", "rawvideo")
ALLOWED_DECODERS = frozenset(_CURRENT + _MPEG + _OLD + _EDITING)
"""libav's names of the picture decoders that may run. Audio is never decoded."""

RELIABLE_INDEX = frozenset({"mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "avi"})
"""Containers whose index lists true keyframes. (The transport stream demuxer marks every packet as one.)"""

SEQUENTIAL_ONLY = frozenset({"gif", "mpeg"})
"""Containers that must be decoded from the beginning: a GIF's pictures are changes to the one before, and an
MPEG program stream does not stamp every frame, so that libav misjudges times by half a frame after a seek."""

DECODING_TIMES_ONLY = frozenset({"avi"})
"""Containers that store when a frame is decoded, not when it is shown: libav's presentation times are guesses."""

PACKETS_TELL_TIMES = RELIABLE_INDEX - DECODING_TIMES_ONLY
"""Containers in which each packet is one frame, both of its fields if it has such, and has that frame's time."""

UNREFERENCED_IS_FINAL = frozenset({"h264"})
"""Codecs whose pictures marked as unreferenced are so for every other one. (HEVC's may serve higher layers.)"""

AUDIO_ONLY = "audio"
"""What :func:`sniff` calls files that hold sound and no picture track."""

_HEAD_BYTES = 16
_TS_SYNC, _TS_PACKET_BYTES = 0x47, 188
_MP4_BOXES = frozenset((b"ftyp", b"moov", b"mdat", b"moof", b"styp", b"free", b"skip", b"wide", b"pnot"))
_HEIF_BRANDS = frozenset(b"avci avcs avif avis heic heim heis heix hevc hevm hevs hevx mif1 mif2 msf1".split())
_ASF_HEADER_GUID = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
_EBML_ID, _SEGMENT_ID = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"
_MATROSKA_HEAD_BYTES = 4096
_RIFF_HEAD_BYTES = 8


def sniff(source: MediaSource) -> str | None:
    """The family of container that the first bytes claim, or None.

    It only words the error about a file that libav could not open: a damaged video is not the same
    as something that never was one.
    """
    head = source.read_at(0, _HEAD_BYTES)
    if head[4:8] in _MP4_BOXES:
        return "mp4"
    if head[:4] == b"RIFF":
        return {b"AVI ": "avi", b"WAVE": AUDIO_ONLY}.get(head[8:12])
    prefixes = {
        _EBML_ID: "matroska",
        b"GIF8": "gif",
        b"FLV": "flv",
        b"OggS": "ogg",
        _ASF_HEADER_GUID: "asf",
        b"\x00\x00\x01\xba": "mpeg",
        b"ID3": AUDIO_ONLY,
        b"fLaC": AUDIO_ONLY,
        b"\xff\xfb": AUDIO_ONLY,
    }
    for prefix, family in prefixes.items():
        if head.startswith(prefix):
            return family
    second = source.read_at(_TS_PACKET_BYTES, 1)
    return "mpegts" if head[:1] == second == bytes([_TS_SYNC]) else None


def is_heif(head: bytes) -> bool:
    """Whether a file calls itself a HEIC or AVIF picture, or a sequence of such, in its first 12 bytes."""
    return head[4:8] == b"ftyp" and head[8:12] in _HEIF_BRANDS


def refuse_heif(source: MediaSource) -> None:
    """Refuse what libav would open: it takes each tile of a large picture for a track, and so one tile for the whole.

    Raises:
        UnsupportedMediaError: the file is such a picture.
    """
    if is_heif(source.read_at(0, _HEAD_BYTES)):
        raise UnsupportedMediaError("HEIC and AVIF pictures are not supported; send JPEG, PNG or WebP")


def missing_tail(source: MediaSource) -> int | None:
    """How many bytes the container's own header promises beyond the end of the file, if it promises any.

    Matroska and AVI state the length of their body up front (MP4's index is looked at elsewhere).
    """
    promised = None
    head = source.read_at(0, _MATROSKA_HEAD_BYTES)
    if head.startswith(b"RIFF") and len(head) >= _RIFF_HEAD_BYTES:
        promised = struct.unpack_from("<I", head, 4)[0] + _RIFF_HEAD_BYTES
    elif head.startswith(_EBML_ID):
        promised = _matroska_end(head)
    return promised - source.size if promised is not None and promised > source.size else None


def _matroska_end(head: bytes) -> int | None:
    """Where the Segment element ends, if its size is stated (a live recording's is not)."""
    at = head.find(_SEGMENT_ID)
    if at < 0 or at + len(_SEGMENT_ID) >= len(head):
        return None
    at += len(_SEGMENT_ID)
    # A variable-length integer: the number of leading zero bits is the number of further bytes.
    length = 9 - head[at].bit_length()
    digits = head[at : at + length]
    value = int.from_bytes(digits, "big") & ((1 << 7 * length) - 1)
    unknown = (1 << 7 * length) - 1
    return None if len(digits) < length or value == unknown else at + length + value
