"""Every case is a real file; the numbers in the pictures say which frames came out, and a plain sequential
decode of the same file says which pixels they should have.
"""

import io
import struct
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from fastervlm_video.config import FrameResize, FrameSampling, Tiling
from fastervlm_video.errors import InvalidRequestError
from fastervlm_video.media import FrameBatch, apply_resize, decode_video, split_views, views_per_picture, write_video
from tests.media.videos import (
    FPS,
    HEIGHT,
    WIDTH,
    Frame,
    decode_everything,
    number_of,
    numbered,
    numbers_of,
    shown_at,
    spread,
    write_with_sound,
)


@dataclass(frozen=True)
class Case:
    name: str
    options: dict[str, Any] = field(default_factory=dict)
    container: str = ""
    codec: str = ""


H264 = {"codec_options": {"preset": "ultrafast"}}
B_FRAMES = {"codec_options": {"bf": "3", "b_strategy": "0"}}
X265 = {"codec": "libx265", "codec_options": {"x265-params": "log-level=none", "preset": "ultrafast"}}
CASES = [
    Case("h264.mp4", H264, "mov", "h264"),
    Case("b_frames.mp4", B_FRAMES, "mov", "h264"),
    Case("faststart.mp4", {"container_options": {"movflags": "faststart"}, **B_FRAMES}, "mov", "h264"),
    Case("fragmented.mp4", {"container_options": {"movflags": "frag_keyframe+empty_moov"}, **B_FRAMES}, "mov", "h264"),
    Case("open_gop.mp4", {"codec_options": {"x264-params": "open-gop=1:bframes=3:b-adapt=0"}}, "mov", "h264"),
    Case("interlaced.mkv", {"codec_options": {"x264-params": "interlaced=1:bframes=3:b-adapt=0"}}, "matroska", "h264"),
    Case("pyramid.mp4", {"codec_options": {"x264-params": "bframes=15:b-adapt=0:b-pyramid=normal"}}, "mov", "h264"),
    Case("ten_bit.mp4", {"pix_fmt": "yuv420p10le", **H264}, "mov", "h264"),
    Case("full_chroma.mp4", {"pix_fmt": "yuv444p", **H264}, "mov", "h264"),
    Case("hevc.mp4", X265, "mov", "hevc"),
    Case("hevc_ten_bit.mkv", {**X265, "pix_fmt": "yuv420p10le"}, "matroska", "hevc"),
    Case("av1.mp4", {"codec": "libsvtav1", "codec_options": {"preset": "12"}}, "mov", "av1"),
    Case("mpeg4.mp4", {"codec": "mpeg4", "codec_options": {"bf": "2"}}, "mov", "mpeg4"),
    Case("h264.mkv", B_FRAMES, "matroska", "h264"),
    Case("no_cues.mkv", {"container_options": {"live": "1"}, **B_FRAMES}, "matroska", "h264"),
    Case("ffv1.mkv", {"codec": "ffv1", "pix_fmt": "yuv420p"}, "matroska", "ffv1"),
    Case("vp8.webm", {"codec": "libvpx"}, "matroska", "vp8"),
    Case("vp9.webm", {"codec": "libvpx-vp9", "codec_options": {"cpu-used": "8"}}, "matroska", "vp9"),
    Case("transparent.webm", {"codec": "libvpx-vp9", "pix_fmt": "yuva420p"}, "matroska", "vp9"),
    Case("mpeg4.avi", {"codec": "mpeg4"}, "avi", "mpeg4"),
    Case("b_frames.avi", {"codec": "mpeg4", "codec_options": {"bf": "2"}}, "avi", "mpeg4"),
    Case("h264_b_frames.avi", B_FRAMES, "avi", "h264"),
    Case("mjpeg.mov", {"codec": "mjpeg", "pix_fmt": "yuvj420p"}, "mov", "mjpeg"),
    Case("prores_alpha.mov", {"codec": "prores_ks", "pix_fmt": "yuva444p10le"}, "mov", "prores"),
    Case("png_alpha.mov", {"codec": "png", "pix_fmt": "rgba"}, "mov", "png"),
    Case("picture.gif", {"codec": "gif", "pix_fmt": "rgb8"}, "gif", "gif"),
    Case("h264.ts", B_FRAMES, "mpegts", "h264"),
    Case("mpeg4.ts", {"codec": "mpeg4"}, "mpegts", "mpeg4"),
    Case("mpeg2.ts", {"codec": "mpeg2video", "codec_options": {"bf": "2"}}, "mpegts", "mpeg2video"),
    Case("mpeg2.mpg", {"codec": "mpeg2video", "codec_options": {"bf": "2"}}, "mpeg", "mpeg2video"),
    Case("flv1.flv", {"codec": "flv"}, "flv", "flv1"),
    Case("h264.flv", B_FRAMES, "flv", "h264"),
    Case("vp8.ogv", {"codec": "libvpx"}, "ogg", "vp8"),
    Case("wmv2.wmv", {"codec": "wmv2"}, "asf", "wmv2"),
]
FRAMES = 120


def write(path: Path, frames: int = FRAMES, **options: Any) -> Path:
    write_video(path, numbered(frames), **{"fps": FPS, "gop_size": 12, **options})
    return path


def take(source: Any, frames: int = 8, **options: Any) -> FrameBatch:
    return decode_video(source, FrameSampling(frames), **options)


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case.name)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Case, Path]:
    chosen: Case = request.param
    return chosen, write(tmp_path_factory.mktemp("videos") / chosen.name, **chosen.options)


@pytest.mark.parametrize("count", [1, 2, 8, 23])
def test_every_format_gives_the_frames_asked_for(case: tuple[Case, Path], count: int) -> None:
    _, path = case
    batch = take(path, count)
    expected = spread(FRAMES, count)
    assert numbers_of(batch.frames_thwc_u8) == expected
    assert batch.pts_seconds == pytest.approx([index / FPS for index in expected], abs=0.0101)


def test_pixels_are_those_of_a_sequential_decode(case: tuple[Case, Path]) -> None:
    _, path = case
    everything = decode_everything(path)
    assert len(everything) == FRAMES
    for index, pixels in zip(spread(FRAMES, 8), take(path).frames_thwc_u8, strict=True):
        assert np.array_equal(pixels, everything[index][1])


def test_facts_about_every_format(case: tuple[Case, Path]) -> None:
    chosen, path = case
    info = take(path, 1).info
    assert (info.width, info.height, info.codec) == (WIDTH, HEIGHT, chosen.codec)
    assert info.container.split(",")[0] == chosen.container
    assert info.duration_seconds == pytest.approx(FRAMES / FPS, abs=0.05)


@pytest.mark.parametrize("gop", [1, 7, 250])
def test_any_keyframe_distance(tmp_path: Path, gop: int) -> None:
    path = write(tmp_path / "gop.mp4", gop_size=gop, codec_options={"bf": "2", "sc_threshold": "0"})
    assert numbers_of(take(path, 17).frames_thwc_u8) == spread(FRAMES, 17)


@pytest.mark.parametrize("name", ["open.mkv", "open.mp4", "open.ts"])
@pytest.mark.parametrize("codec", ["libx264", "libx265"])
def test_open_gops_at_every_phase(tmp_path: Path, codec: str, name: str) -> None:
    """Each moment in turn falls just before, on and after a keyframe whose leading frames need the GOP before."""
    option, extra = {"libx264": ("x264-params", ""), "libx265": ("x265-params", ":log-level=none")}[codec]
    parameters = f"open-gop=1:bframes=3:b-adapt=0:keyint=10:min-keyint=10:scenecut=0{extra}"
    path = write(tmp_path / name, 64, codec=codec, gop_size=10, codec_options={option: parameters})
    for count in (64, *range(2, 16)):
        assert numbers_of(take(path, count).frames_thwc_u8) == spread(64, count)


@pytest.mark.parametrize("name", ["vfr.mp4", "vfr.mkv"])
def test_variable_frame_rate_goes_by_time(tmp_path: Path, name: str) -> None:
    rng = np.random.default_rng(3)
    times = np.concatenate([[0], np.cumsum(rng.choice([0.01, 0.04, 0.5, 2.0], 79))]).round(3)
    path = tmp_path / name
    write_video(path, numbered(80), pts_seconds=times.tolist(), gop_size=9, codec_options={"bf": "2"})
    everything = decode_everything(path)
    moments = np.linspace(0, everything[-1][0], 21)
    expected = shown_at(everything, moments.tolist())
    batch = take(path, 21)
    assert numbers_of(batch.frames_thwc_u8) == expected
    assert batch.pts_seconds == pytest.approx([everything[i][0] for i in expected], abs=1e-6)
    assert expected != spread(80, 21)


def test_fewer_frames_than_asked_for_repeat(tmp_path: Path) -> None:
    batch = take(write(tmp_path / "three.mp4", 3), 8)
    assert numbers_of(batch.frames_thwc_u8) == [0, 0, 0, 0, 1, 1, 1, 2]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("one.mp4", {}),
        ("one.mkv", {}),
        ("one.gif", {"codec": "gif", "pix_fmt": "rgb8"}),
        ("one.avi", {"codec": "mpeg4"}),
        ("one.ts", {}),
        ("still.mov", {"codec": "mjpeg", "pix_fmt": "yuvj420p"}),
    ],
)
def test_single_frame(tmp_path: Path, name: str, options: dict[str, Any]) -> None:
    batch = take(write(tmp_path / name, 1, **options), 4)
    assert batch.frames_thwc_u8.shape == (4, HEIGHT, WIDTH, 3)
    assert batch.pts_seconds == (0.0, 0.0, 0.0, 0.0)
    assert all(np.array_equal(frame, batch.frames_thwc_u8[0]) for frame in batch.frames_thwc_u8)


def test_zero_duration_header(tmp_path: Path) -> None:
    """Zeroed durations in mvhd, tkhd and mdhd: the frames' own times must do."""
    data = bytearray(write(tmp_path / "zero.mp4").read_bytes())
    for box, offset in ((b"mvhd", 20), (b"tkhd", 24), (b"mdhd", 20)):
        at = data.index(box)
        data[at + offset : at + offset + 4] = bytes(4)
    assert numbers_of(take(bytes(data)).frames_thwc_u8) == spread(FRAMES, 8)


@pytest.mark.parametrize(("seconds", "mean"), [(0x7FFFFFFF, "far too long"), (1000, "too short")])
def test_wrong_duration_header(tmp_path: Path, seconds: int, mean: str) -> None:
    data = bytearray(write(tmp_path / "wrong.mkv").read_bytes())
    at = data.index(b"\x44\x89\x88") + 3  # Duration, an 8-byte float in milliseconds
    data[at : at + 8] = struct.pack(">d", seconds)
    assert numbers_of(take(bytes(data)).frames_thwc_u8) == spread(FRAMES, 8), mean


@pytest.mark.parametrize("size", [(49, 67), (1, 1), (2, 200), (47, 64)])
def test_odd_sizes(tmp_path: Path, size: tuple[int, int]) -> None:
    frames = [np.full((*size, 3), 40 * i, np.uint8) for i in range(6)]
    write_video(tmp_path / "odd.mkv", frames, codec="ffv1", pix_fmt="yuv444p")
    batch = take(tmp_path / "odd.mkv", 6)
    assert batch.frames_thwc_u8.shape == (6, *size, 3)
    assert (batch.info.height, batch.info.width) == size
    assert [int(frame.mean().round()) for frame in batch.frames_thwc_u8] == pytest.approx(
        [40 * i for i in range(6)], abs=2
    )


def corners() -> Frame:
    """A picture that no rotation or mirroring leaves as it is."""
    frame = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    frame[: HEIGHT // 2, : WIDTH // 2] = 250
    frame[: HEIGHT // 2, WIDTH // 2 :] = 170
    frame[HEIGHT // 2 :, : WIDTH // 2] = 90
    return frame


@pytest.mark.parametrize("degrees", [0, 90, 180, -90])
def test_rotation_is_applied(tmp_path: Path, degrees: int) -> None:
    path = tmp_path / "phone.mp4"
    write_video(path, [corners()] * 5, rotation_degrees=degrees)
    expected = np.rot90(corners(), degrees // 90)
    batch = take(path, 3)
    assert (batch.info.height, batch.info.width) == expected.shape[:2]
    assert np.abs(batch.frames_thwc_u8[1].astype(int) - expected).mean() < 6


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_mirrored_orientations(tmp_path: Path, degrees: int) -> None:
    path = tmp_path / "mirrored.mp4"
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.set_display_rotation(degrees, hflip=True)
        for _ in range(3):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(corners(), format="rgb24")))
        out.mux(stream.encode(None))
    expected = np.fliplr(np.rot90(corners(), degrees // 90))
    got = take(path, 1).frames_thwc_u8[0]
    assert got.shape == expected.shape
    assert np.abs(got.astype(int) - expected).mean() < 6


def test_patched_track_matrix_as_a_phone_writes_it(tmp_path: Path) -> None:
    """The 90-degree clockwise matrix, written into the track header by hand."""
    path = tmp_path / "plain.mp4"
    write_video(path, [corners()] * 3)
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4 + 40
    one = 0x10000
    assert struct.unpack(">9i", data[at : at + 36])[0] == one
    data[at : at + 36] = struct.pack(">9i", 0, one, 0, -one, 0, 0, HEIGHT * one, 0, 0x40000000)
    got = take(bytes(data), 1).frames_thwc_u8[0]
    assert np.abs(got.astype(int) - np.rot90(corners(), -1)).mean() < 6


@pytest.mark.parametrize("name", ["late.mp4", "late.mkv", "late.ts"])
def test_start_time_offset(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    times = [37.0 + i / FPS for i in range(FRAMES)]
    write_video(path, numbered(FRAMES), pts_seconds=times, gop_size=12, codec_options={"bf": "2"})
    batch = take(path)
    assert numbers_of(batch.frames_thwc_u8) == spread(FRAMES, 8)
    assert batch.pts_seconds[0] == 0
    assert batch.info.duration_seconds == pytest.approx(FRAMES / FPS, abs=0.05)


def test_edit_list_hides_the_start(tmp_path: Path) -> None:
    """An edit that begins 50 frames in, away from a keyframe: frames before it are never shown."""
    path = write(tmp_path / "edited.mp4", codec_options={"bf": "0"})
    data = bytearray(path.read_bytes())
    at = data.index(b"elst") + 4
    duration, media_time = struct.unpack_from(">Ii", data, at + 8)
    ticks_per_frame = struct.unpack_from(">I", data, data.index(b"mdhd") + 16)[0] // FPS
    scale = struct.unpack_from(">I", data, data.index(b"mvhd") + 16)[0]
    struct.pack_into(">Ii", data, at + 8, duration - 50 * scale // FPS, media_time + 50 * ticks_per_frame)
    path.write_bytes(data)
    everything = decode_everything(path)
    assert (number_of(everything[0][1]), len(everything)) == (50, FRAMES - 50)
    batch = take(path)
    assert numbers_of(batch.frames_thwc_u8) == [50 + i for i in spread(FRAMES - 50, 8)]
    assert batch.pts_seconds[0] == 0


@pytest.mark.parametrize("name", ["sound.mp4", "sound.mkv", "sound.ts"])
@pytest.mark.parametrize("sound_first", [True, False])
def test_sound_does_not_matter(tmp_path: Path, name: str, sound_first: bool) -> None:
    """Not its place among the tracks, nor that it goes on for longer than the picture."""
    path = tmp_path / name
    write_with_sound(path, 50, sound_seconds=9, sound_first=sound_first)
    batch = take(path)
    assert numbers_of(batch.frames_thwc_u8) == spread(50, 8)
    assert batch.info.duration_seconds == pytest.approx(50 / FPS, abs=0.05)


def test_avi_without_an_index(tmp_path: Path) -> None:
    data = write(tmp_path / "plain.avi", codec="mpeg4").read_bytes()
    bare = data[: data.index(b"idx1")]
    bare = bare[:4] + struct.pack("<I", len(bare) - 8) + bare[8:]
    assert numbers_of(take(bare).frames_thwc_u8) == spread(FRAMES, 8)


def test_resolution_that_changes_midway(tmp_path: Path) -> None:
    parts = []
    for height, width in ((48, 64), (96, 128)):
        path = tmp_path / f"{height}.ts"
        write_video(path, numbered(FRAMES, height, width), codec="mpeg2video", fps=FPS, gop_size=12)
        parts.append(path.read_bytes())
    whole = b"".join(parts)
    plain = take(whole, 6).frames_thwc_u8
    assert plain.shape == (6, 48, 64, 3)
    resized = take(whole, 6, resize=FrameResize(shortest_edge=32)).frames_thwc_u8
    assert resized.shape[1] == 32


def test_resize_equals_resizing_afterwards(tmp_path: Path) -> None:
    path = write(tmp_path / "plain.mp4")
    resize = FrameResize(shortest_edge=40, crop=(40, 40))
    small, full = take(path, resize=resize), take(path)
    for ours, frame in zip(small.frames_thwc_u8, full.frames_thwc_u8, strict=True):
        assert np.array_equal(ours, apply_resize(frame, resize))
    assert (small.info.width, small.info.height) == (WIDTH, HEIGHT)


TILING = Tiling(32, ((32, 64), (64, 32), (64, 64), (96, 32)))
SQUARE = FrameResize(size=(32, 32))


@pytest.mark.parametrize(("frames", "shown"), [(FRAMES, 5), (3, 8)], ids=["each once", "some repeat"])
def test_views_equal_splitting_afterwards(tmp_path: Path, frames: int, shown: int) -> None:
    path = write(tmp_path / "plain.mp4", frames)
    full, views = take(path, shown), take(path, shown, resize=SQUARE, tiling=TILING)
    per_frame = views_per_picture((HEIGHT, WIDTH), TILING)
    assert (views.views_per_frame, views.num_pictures) == (per_frame, shown)
    assert views.num_frames == per_frame * shown > shown
    expected = np.concatenate([split_views(frame, SQUARE, TILING) for frame in full.frames_thwc_u8])
    assert np.array_equal(views.frames_thwc_u8, expected)
    assert views.pts_seconds == tuple(np.repeat(full.pts_seconds, per_frame).tolist())
    assert views.info == full.info


def test_views_of_a_turned_video_go_by_how_it_is_shown(tmp_path: Path) -> None:
    path = tmp_path / "phone.mp4"
    tiling = Tiling(32, ((32, 96), (64, 32)))
    write_video(path, [corners()] * 3, rotation_degrees=90)
    (frame,) = take(path, 1).frames_thwc_u8
    assert frame.shape == (WIDTH, HEIGHT, 3)
    views = take(path, 1, resize=SQUARE, tiling=tiling)
    assert views.views_per_frame == 3
    assert np.array_equal(views.frames_thwc_u8, split_views(frame, SQUARE, tiling))


def test_views_of_a_resolution_that_changes_midway(tmp_path: Path) -> None:
    """Frames take the first one's size, and are cut like it, although their own would be cut otherwise."""
    parts = []
    for height, width in ((48, 64), (128, 48)):
        path = tmp_path / f"{height}.ts"
        write_video(path, numbered(FRAMES, height, width), codec="mpeg2video", fps=FPS, gop_size=12)
        parts.append(path.read_bytes())
    whole = b"".join(parts)
    views = take(whole, 6, resize=SQUARE, tiling=TILING)
    frames = take(whole, 6).frames_thwc_u8
    assert frames.shape == (6, 48, 64, 3)
    assert views.views_per_frame == views_per_picture((48, 64), TILING) != views_per_picture((128, 48), TILING)
    expected = np.concatenate([split_views(frame, SQUARE, TILING) for frame in frames])
    assert np.array_equal(views.frames_thwc_u8, expected)


def test_views_of_two_sizes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match="tiles of 32x32"):
        take(write(tmp_path / "plain.mp4", 3), resize=FrameResize(size=(32, 30)), tiling=TILING)


def test_path_bytes_and_file_objects_are_the_same(tmp_path: Path) -> None:
    path = write(tmp_path / "plain.mp4")
    expected = take(path).frames_thwc_u8
    data = path.read_bytes()
    with path.open("rb") as file:
        file.seek(100)
        assert np.array_equal(take(file).frames_thwc_u8, expected)
        assert not file.closed
    for source in (str(path), data, io.BytesIO(data)):
        assert np.array_equal(take(source).frames_thwc_u8, expected)


class Pipe(io.RawIOBase):
    """A stream that cannot seek."""

    def __init__(self, data: bytes) -> None:
        self._rest = io.BytesIO(data)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return self._rest.readinto(buffer)


def test_stream_that_cannot_seek(tmp_path: Path) -> None:
    path = write(tmp_path / "plain.mp4")
    assert numbers_of(take(Pipe(path.read_bytes())).frames_thwc_u8) == spread(FRAMES, 8)


def test_progress_counts_up(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    take(write(tmp_path / "plain.mp4"), 3, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(1, 3), (2, 3), (3, 3)]


def test_several_threads_give_the_same_pixels(tmp_path: Path) -> None:
    path = write(tmp_path / "plain.mp4")
    assert np.array_equal(take(path, threads=2).frames_thwc_u8, take(path).frames_thwc_u8)


class CountingFile(io.BytesIO):
    """Says how much was read."""

    read_bytes = 0

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        self.read_bytes += len(data)
        return data


@pytest.mark.parametrize("name", ["long.mp4", "long.mkv", "long.ts", "long.avi", "long.flv"])
def test_a_long_video_is_sought_not_read(tmp_path: Path, name: str) -> None:
    """With keyframes as far apart, eight frames take a small part of a long file's bytes."""
    noise = np.random.default_rng(0).integers(0, 256, (120, 160, 3), dtype=np.uint8)
    frames = (np.roll(noise, 3 * index, axis=1) for index in range(1500))
    codec = "mpeg4" if name.endswith("avi") else "flv" if name.endswith("flv") else "libx264"
    preset = {"preset": "ultrafast"} if codec == "libx264" else {}
    path = tmp_path / name
    write_video(path, frames, codec=codec, fps=Fraction(5), gop_size=10, bit_rate=4_000_000, codec_options=preset)
    file = CountingFile(path.read_bytes())
    take(file)
    share = file.read_bytes / len(file.getvalue())
    # This FLV holds no map of its keyframes: it must be read (not decoded) once.
    assert share < (1.3 if name.endswith("flv") else 0.5), f"{share:.2f} of {len(file.getvalue())} bytes"
