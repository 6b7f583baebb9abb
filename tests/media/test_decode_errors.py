"""What cannot be decoded: the right error, with the value and the limit in its message."""

import io
import os
import resource
import struct
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from fastervlm_video.config import FrameResize, FrameSampling, MediaLimits
from fastervlm_video.errors import (
    CorruptMediaError,
    InvalidRequestError,
    MediaLimitError,
    NoVideoStreamError,
    UnsupportedMediaError,
    VideoNotFoundError,
)
from fastervlm_video.media import FrameBatch, decode_video, write_video
from tests.media.videos import FPS, HEIGHT, WIDTH, encode_silence, numbered, numbers_of, spread, write_sound

FRAMES = 100


def take(source: Any, frames: int = 8, **options: Any) -> FrameBatch:
    return decode_video(source, FrameSampling(frames), **options)


def video(folder: Path, name: str = "video.mp4", frames: int = FRAMES, **options: Any) -> bytes:
    write_video(folder / name, numbered(frames), **{"fps": FPS, "gop_size": 10, **options})
    return (folder / name).read_bytes()


def test_no_such_path(tmp_path: Path) -> None:
    with pytest.raises(VideoNotFoundError, match=r"nothing\.mp4"):
        take(tmp_path / "nothing.mp4")


def test_impossible_path() -> None:
    with pytest.raises(VideoNotFoundError, match="null"):
        take("a\0b")


def test_folder_and_named_pipe_are_not_videos(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(UnsupportedMediaError, match="not a regular file"):
            take(path)


@pytest.mark.parametrize("source", [42.0, None, object()])
def test_not_a_source_at_all(source: Any) -> None:
    with pytest.raises(InvalidRequestError, match=type(source).__name__):
        take(source)


def test_text_file_object() -> None:
    with pytest.raises(InvalidRequestError, match="binary"):
        take(io.StringIO("hello"))


def test_closed_file_object(tmp_path: Path) -> None:
    file = io.BytesIO(video(tmp_path))
    file.close()
    with pytest.raises(CorruptMediaError, match="closed"):
        take(file)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0" * 5000,
        b"hello, this is a text file\n" * 100,
        np.random.default_rng(0).bytes(20_000),
        b"\x89PNG\r\n\x1a\n" + b"\0" * 1000,
        b"\xff\xd8\xff\xe0\x00\x10JFIF" + b"\0" * 1000,
        b"%PDF-1.7\n" + b"x" * 1000,
        b"PK\x03\x04" + b"\0" * 1000,
    ],
    ids=["empty", "zeros", "text", "noise", "png", "jpeg", "pdf", "zip"],
)
def test_not_a_video(data: bytes) -> None:
    with pytest.raises(UnsupportedMediaError, match="empty" if not data else "allowed container"):
        take(data)


@pytest.mark.parametrize("name", ["only.wav", "only.mp3", "only.flac"])
def test_sound_file(tmp_path: Path, name: str) -> None:
    codec = {"wav": "pcm_s16le", "mp3": "libmp3lame", "flac": "flac"}[name.rpartition(".")[2]]
    write_sound(tmp_path / name, codec)
    with pytest.raises(NoVideoStreamError, match="no picture track"):
        take(tmp_path / name)


@pytest.mark.parametrize("name", ["only.mp4", "only.mkv", "only.ogg"])
def test_video_container_without_a_picture_track(tmp_path: Path, name: str) -> None:
    write_sound(tmp_path / name, "libopus" if name.endswith("ogg") else "aac")
    with pytest.raises(NoVideoStreamError, match="holds audio"):
        take(tmp_path / name)


def test_cover_picture_is_not_a_video(tmp_path: Path) -> None:
    """A song in an m4a with a picture on the sleeve: the atom that such files have, written by hand."""
    path = tmp_path / "song.m4a"
    with av.open(str(path), "w", format="mp4") as out:
        out.metadata["title"] = "song"
        encode_silence(out, out.add_stream("aac", rate=16_000), 1)
    data = path.read_bytes()
    picture = io.BytesIO()
    with av.open(picture, "w", format="image2pipe") as out:
        stream = out.add_stream("mjpeg", rate=1)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuvj420p"
        out.mux(stream.encode(av.VideoFrame.from_ndarray(next(numbered(1)), format="rgb24")))
        out.mux(stream.encode(None))

    def box(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body) + 8) + name + body

    cover = box(b"covr", box(b"data", struct.pack(">II", 13, 0) + picture.getvalue()))
    # moov comes last: enlarge it and each box on the way down to the list of tags.
    at = data.index(b"ilst") - 4
    end = at + struct.unpack_from(">I", data, at)[0]
    grown = bytearray(data[:end] + cover + data[end:])
    for name in (b"moov", b"udta", b"meta", b"ilst"):
        size_at = data.index(name) - 4
        struct.pack_into(">I", grown, size_at, struct.unpack_from(">I", data, size_at)[0] + len(cover))
    with av.open(io.BytesIO(grown)) as check:
        assert len(check.streams.video) == 1  # libav does see a "video stream"
    with pytest.raises(NoVideoStreamError, match="cover picture"):
        take(bytes(grown))


@pytest.mark.parametrize("share", [0.05, 0.5, 0.95])
def test_mp4_without_its_index(tmp_path: Path, share: float) -> None:
    data = video(tmp_path)
    with pytest.raises(CorruptMediaError, match="damaged or truncated mp4"):
        take(data[: int(share * len(data))])


@pytest.mark.parametrize("share", [0.6, 0.9])
def test_truncated_mp4_with_its_index_says_where(tmp_path: Path, share: float) -> None:
    data = video(tmp_path, container_options={"movflags": "faststart"})
    with pytest.raises(CorruptMediaError, match=r"data end after (\d\.\d\d) s of the 3\.96 s") as caught:
        take(data[: int(share * len(data))])
    held = float(str(caught.value).split("after ")[1].split(" s")[0])
    assert 0.5 < held < 3.9


def test_mp4_that_lacks_only_its_last_byte(tmp_path: Path) -> None:
    data = video(tmp_path, container_options={"movflags": "faststart"})
    with pytest.raises(CorruptMediaError, match="truncated"):
        take(data[:-1])


@pytest.mark.parametrize("name", ["cut.mkv", "cut.webm", "cut.avi"])
def test_other_truncated_containers(tmp_path: Path, name: str) -> None:
    codec = {"mkv": "libx264", "webm": "libvpx", "avi": "mpeg4"}[name[4:]]
    data = video(tmp_path, name, codec=codec)
    with pytest.raises(CorruptMediaError, match=r"data end after [123]\.\d\d s, \d+ bytes before"):
        take(data[: int(0.6 * len(data))])


def test_truncated_fragmented_mp4(tmp_path: Path) -> None:
    data = video(tmp_path, container_options={"movflags": "frag_keyframe+empty_moov"})
    cut = data.rindex(b"mdat") + 20
    with pytest.raises(CorruptMediaError, match="truncated"):
        take(data[:cut])


def test_truncated_transport_stream_is_just_shorter(tmp_path: Path) -> None:
    data = video(tmp_path, "cut.ts", codec_options={"bf": "0"})
    batch = take(data[: len(data) * 6 // 10 // 188 * 188])
    shown = numbers_of(batch.frames_thwc_u8)
    assert shown[0] == 0
    assert 40 < shown[-1] < 80


def test_picture_data_that_is_all_zero(tmp_path: Path) -> None:
    data = bytearray(video(tmp_path))
    start = data.index(b"mdat") + 4
    data[start : data.index(b"moov") - 4] = bytes(data.index(b"moov") - 4 - start)
    with pytest.raises(CorruptMediaError, match="no frame of the h264 track"):
        take(bytes(data))


def test_damage_in_the_middle_is_played_over(tmp_path: Path) -> None:
    data = bytearray(video(tmp_path))
    middle = len(data) // 2
    data[middle : middle + 40] = bytes(40)
    assert take(bytes(data)).num_frames == 8


def test_codec_that_is_not_allowed(tmp_path: Path) -> None:
    write_video(tmp_path / "odd.mov", numbered(5), codec="cfhd", pix_fmt="yuv422p10le")
    with pytest.raises(UnsupportedMediaError, match=r"codec \(cfhd\) is not supported"):
        take(tmp_path / "odd.mov")


@pytest.mark.parametrize("name", ["odd.nut", "odd.y4m", "odd.h264"])
def test_container_that_is_not_allowed(tmp_path: Path, name: str) -> None:
    codec = {"nut": "libx264", "y4m": "wrapped_avframe", "h264": "libx264"}[name[4:]]
    write_video(tmp_path / name, numbered(5), codec=codec)
    with pytest.raises(UnsupportedMediaError, match="allowed container"):
        take(tmp_path / name)


# -- limits ----------------------------------------------------------------------------------------------


def test_byte_limit_is_checked_before_reading(tmp_path: Path) -> None:
    data = video(tmp_path)
    for source in (data, io.BytesIO(data), tmp_path / "video.mp4"):
        with pytest.raises(MediaLimitError, match=f"{len(data)} bytes, more than the 1000"):
            take(source, limits=MediaLimits(max_bytes=1000))


def test_byte_limit_of_an_endless_stream() -> None:
    class Endless(io.RawIOBase):
        given = 0

        def readable(self) -> bool:
            return True

        def readinto(self, buffer: Any) -> int:
            self.given += len(buffer)
            return len(buffer)

    stream = Endless()
    with pytest.raises(MediaLimitError, match="more than the 5000000"):
        take(stream, limits=MediaLimits(max_bytes=5_000_000))
    assert stream.given < 10_000_000


@pytest.mark.parametrize("name", ["video.mp4", "video.mkv", "video.ts", "live.mkv"])
def test_duration_limit(tmp_path: Path, name: str) -> None:
    data = video(tmp_path, name, container_options={"live": "1"} if name == "live.mkv" else {})
    with pytest.raises(MediaLimitError, match=r"s long, more than the 2\.5 s"):
        take(data, limits=MediaLimits(max_duration_seconds=2.5))
    assert take(data, limits=MediaLimits(max_duration_seconds=4.1)).num_frames == 8


def test_frame_limit() -> None:
    with pytest.raises(MediaLimitError, match="65 frames asked for, more than the 64"):
        take(b"not even looked at", 65)


def test_pixel_limit(tmp_path: Path) -> None:
    data = video(tmp_path)
    with pytest.raises(MediaLimitError, match=f"{WIDTH}x{HEIGHT} have more than the {WIDTH * HEIGHT - 1} pixels"):
        take(data, limits=MediaLimits(max_pixels_per_frame=WIDTH * HEIGHT - 1))


@pytest.mark.parametrize("codec", ["mpeg2video", "libx264"])
def test_pixel_limit_when_the_resolution_grows_midway(tmp_path: Path, codec: str) -> None:
    parts = []
    for height, width in ((48, 64), (480, 640)):
        write_video(tmp_path / "part.ts", numbered(50, height, width), codec=codec, fps=FPS, gop_size=10)
        parts.append((tmp_path / "part.ts").read_bytes())
    with pytest.raises(MediaLimitError, match="more than the 100000 pixels"):
        take(b"".join(parts), limits=MediaLimits(max_pixels_per_frame=100_000))


def test_container_that_lies_about_the_size_is_overruled(tmp_path: Path) -> None:
    data = bytearray(video(tmp_path))
    at = data.rindex(b"avc1") + 4 + 24
    assert struct.unpack_from(">HH", data, at) == (WIDTH, HEIGHT)
    struct.pack_into(">HH", data, at, 65520, 65520)
    batch = take(bytes(data))
    assert numbers_of(batch.frames_thwc_u8) == spread(FRAMES, 8)
    assert (batch.info.width, batch.info.height) == (WIDTH, HEIGHT)


def test_pictures_that_claim_to_be_giant(tmp_path: Path) -> None:
    """Every JPEG's own header says 65500x65500, which would take 12 GB: refused before room is made for it."""
    data = video(tmp_path, "giant.mov", 20, codec="mjpeg", pix_fmt="yuvj420p")
    size = b"\xff\xc0\x00\x11\x08" + struct.pack(">HH", HEIGHT, WIDTH)
    assert data.count(size) == 20
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises((MediaLimitError, CorruptMediaError)):
        take(data.replace(size, size[:5] + struct.pack(">HH", 65500, 65500)))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # kB


def test_time_limit(tmp_path: Path) -> None:
    with pytest.raises(MediaLimitError, match="longer than the 1e-09 s"):
        take(video(tmp_path), limits=MediaLimits(timeout_seconds=1e-9))


def test_aspect_ratio_limit(tmp_path: Path) -> None:
    write_video(tmp_path / "strip.mkv", [np.zeros((2, 10_000, 3), np.uint8)], codec="ffv1", pix_fmt="yuv444p")
    with pytest.raises(MediaLimitError, match="10000x2"):
        take(tmp_path / "strip.mkv", resize=FrameResize(shortest_edge=224))


# -- files that refer to other files ---------------------------------------------------------------------


@pytest.fixture
def neighbour(tmp_path: Path) -> Path:
    video(tmp_path, "secret.mp4")
    return tmp_path / "secret.mp4"


def references(neighbour: Path) -> dict[str, bytes]:
    """Files that make libav open another one, if it is let."""
    url = str(neighbour)
    return {
        "ffconcat": f"ffconcat version 1.0\nfile '{url}'\n".encode(),
        "hls": f"#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXTINF:4,\n{url}\n#EXT-X-ENDLIST\n".encode(),
        "sdp": b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n"
        b"a=rtpmap:96 H264/90000\n",
        "dash": f'<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" '
        f'mediaPresentationDuration="PT4S"><Period><AdaptationSet mimeType="video/mp4"><Representation id="0" '
        f'bandwidth="1"><BaseURL>{url}</BaseURL></Representation></AdaptationSet></Period></MPD>'.encode(),
    }


@pytest.mark.parametrize("kind", ["ffconcat", "hls", "sdp", "dash"])
@pytest.mark.parametrize("extension", ["mp4", "m3u8", "ffconcat", "sdp", "mpd"])
def test_playlists_cannot_open_their_neighbours(neighbour: Path, kind: str, extension: str) -> None:
    path = neighbour.with_name(f"evil.{extension}")
    path.write_bytes(references(neighbour)[kind])
    with pytest.raises(UnsupportedMediaError, match="allowed container"):
        take(path)


def test_an_unguarded_libav_would_open_the_neighbour(neighbour: Path) -> None:
    """The attack is real: without the guards the concat file shows the neighbour's frames."""
    path = neighbour.with_name("evil.ffconcat")
    path.write_bytes(references(neighbour)["ffconcat"])
    with av.open(str(path), options={"safe": "0"}) as container:
        assert sum(1 for _ in container.decode(video=0)) == FRAMES


def test_quicktime_external_reference_is_not_followed(neighbour: Path) -> None:
    """A track that says its data lie in another file: the flag "in this file" cleared, an alias put in its place."""
    data = video(neighbour.parent, "plain.mov")
    here = b"\0\0\0\x0curl \0\0\0\1"
    assert data.count(here) == 1
    path = str(neighbour).encode()
    alias = struct.pack(">I", len(path) + 13) + b"url \0\0\0\0" + path + b"\0"
    grown = bytearray(data.replace(here, alias))
    at = data.index(here)
    for name in (b"moov", b"trak", b"mdia", b"minf", b"dinf", b"dref"):
        size_at = data.rindex(name, 0, at) - 4
        struct.pack_into(">I", grown, size_at, struct.unpack_from(">I", data, size_at)[0] + len(alias) - len(here))
    # The track's own data are blanked, so that any picture at all would be the neighbour's.
    start, end = data.index(b"mdat") + 4, data.index(b"moov") - 4
    grown[start:end] = bytes(end - start)
    with pytest.raises((CorruptMediaError, UnsupportedMediaError)):
        take(bytes(grown))


def test_hour_long_times_do_not_overflow(tmp_path: Path) -> None:
    """A gap of ten hours between two frames, and a clock that starts late."""
    write_video(tmp_path / "gap.mkv", numbered(3), pts_seconds=[5.0, 6.0, 36_000.0], fps=Fraction(FPS))
    batch = take(tmp_path / "gap.mkv", 3, limits=MediaLimits(max_duration_seconds=40_000))
    assert numbers_of(batch.frames_thwc_u8) == [0, 1, 2]
    assert spread(3, 3) == [0, 1, 2]
