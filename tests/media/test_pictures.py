"""Real files of every kind; Hugging Face's ``load_image`` says which pixels they hold."""

import io
import os
import struct
import time
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fastervlm_video.config import FrameResize, MediaLimits, Medium, Tiling
from fastervlm_video.errors import (
    CorruptMediaError,
    InvalidRequestError,
    MediaLimitError,
    UnsupportedMediaError,
    VideoNotFoundError,
)
from fastervlm_video.media import (
    VideoInfo,
    apply_resize,
    decode_picture,
    sniff_medium,
    split_views,
    views_per_picture,
    write_video,
)
from fastervlm_video.media.pictures import SNIFF_BYTES
from tests.media.stills import HEIGHT, WIDTH, drawing, encoded, every_kind, hugging_face, turned
from tests.media.videos import numbered

KINDS = every_kind()
TILING = Tiling(16, ((16, 32), (32, 16), (32, 32)))
SQUARE = FrameResize(size=(16, 16))

pytestmark = pytest.mark.filterwarnings("error")


@pytest.mark.parametrize("name", KINDS)
def test_pixels_are_those_of_hugging_face(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PIL's, about the oracle's way with palettes
        expected = hugging_face(KINDS[name])
    batch = decode_picture(KINDS[name])
    kind = name.split(maxsplit=1)[0]
    assert np.array_equal(batch.frames_thwc_u8, expected[None])
    assert batch.info == VideoInfo(0.0, WIDTH, HEIGHT, kind, kind)
    assert (batch.pts_seconds, batch.views_per_frame, batch.num_pictures) == ((0.0,), 1, 1)
    assert batch.frames_thwc_u8.flags.c_contiguous


@pytest.mark.parametrize("kind", ["jpeg", "png", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_applied(kind: str, orientation: int) -> None:
    data = turned(kind.upper(), orientation)
    batch = decode_picture(data)
    assert np.array_equal(batch.frames_thwc_u8[0], hugging_face(data))
    lying = orientation <= 4
    assert (batch.info.width, batch.info.height) == ((WIDTH, HEIGHT) if lying else (HEIGHT, WIDTH))


def test_an_orientation_that_there_is_not_is_none() -> None:
    assert np.array_equal(decode_picture(turned("PNG", 77)).frames_thwc_u8[0], np.asarray(drawing()))


def test_an_interlaced_png() -> None:
    """PIL writes none, so the seven passes of Adam7 are made here."""
    pixels = np.asarray(drawing())
    passes = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
    rows = b"".join(
        b"\0" + row.tobytes() for top, left, down, right in passes for row in pixels[top::down, left::right]
    )
    data = png(WIDTH, HEIGHT, zlib.compress(rows), interlaced=True)
    with Image.open(io.BytesIO(data)) as image:
        assert image.info["interlace"] == 1
    assert np.array_equal(decode_picture(data).frames_thwc_u8[0], pixels)


def test_the_first_of_several_frames_is_shown() -> None:
    for name in ("png animated", "webp animated", "jpeg several"):
        shown = decode_picture(KINDS[name]).frames_thwc_u8[0]
        assert np.abs(shown.astype(int) - np.asarray(drawing())).mean() < 12, name


@pytest.mark.parametrize("orientation", [1, 6])
def test_views_are_those_of_the_picture_as_shown(orientation: int) -> None:
    data = turned("PNG", orientation)
    picture = hugging_face(data)
    batch = decode_picture(data, resize=SQUARE, tiling=TILING)
    assert np.array_equal(batch.frames_thwc_u8, split_views(picture, SQUARE, TILING))
    count = views_per_picture(picture.shape[:2], TILING)
    assert (batch.views_per_frame, batch.num_pictures, batch.num_frames) == (count, 1, count)
    assert batch.pts_seconds == (0.0,) * count


def test_resize_without_tiles() -> None:
    resize = FrameResize(shortest_edge=20, crop=(20, 20))
    batch = decode_picture(KINDS["png"], resize=resize)
    assert np.array_equal(batch.frames_thwc_u8, apply_resize(np.asarray(drawing()), resize)[None])


def test_a_whole_that_is_no_tile_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="tiles of 16x16"):
        decode_picture(KINDS["png"], resize=FrameResize(size=(16, 17)), tiling=TILING)


def test_path_bytes_and_file_objects_are_the_same(tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    path.write_bytes(KINDS["png"])
    expected = np.asarray(drawing())[None]
    with path.open("rb") as file:
        file.seek(20)
        assert np.array_equal(decode_picture(file).frames_thwc_u8, expected)
        assert not file.closed
    for source in (str(path), path, KINDS["png"]):
        assert np.array_equal(decode_picture(source).frames_thwc_u8, expected)


@pytest.mark.parametrize("name", ["jpeg", "png", "webp"])
def test_a_pipe_is_read_to_its_end(name: str) -> None:
    reading, writing = os.pipe()
    os.write(writing, KINDS[name])
    os.close(writing)
    with os.fdopen(reading, "rb", buffering=0) as file:
        assert np.array_equal(decode_picture(file).frames_thwc_u8, decode_picture(KINDS[name]).frames_thwc_u8)


# -- what is no picture, or a damaged one ---------------------------------------------------------------


@pytest.mark.parametrize("name", KINDS)
def test_pictures_are_told_by_their_first_bytes(name: str) -> None:
    assert sniff_medium(KINDS[name]) is Medium.IMAGE
    assert sniff_medium(KINDS[name][:SNIFF_BYTES]) is Medium.IMAGE


@pytest.mark.parametrize("head", [b"", b"\xff\xd8", b"\x89PNG", b"RIFF\0\0\0\0AVI LIST", b"RIFF\0\0\0\0WEB", b"GIF89a"])
def test_all_else_is_a_video(head: bytes) -> None:
    assert sniff_medium(head) is Medium.VIDEO
    if head:
        with pytest.raises(UnsupportedMediaError, match="JPEG, PNG and WebP"):
            decode_picture(head)


@pytest.mark.parametrize(("name", "codec"), [("a.mp4", "libx264"), ("a.avi", "mpeg4"), ("a.gif", "gif")])
def test_videos_are_not_pictures(tmp_path: Path, name: str, codec: str) -> None:
    path = tmp_path / name
    write_video(path, numbered(3), codec=codec, pix_fmt="rgb8" if codec == "gif" else "yuv420p")
    assert sniff_medium(path.read_bytes()[:SNIFF_BYTES]) is Medium.VIDEO
    with pytest.raises(UnsupportedMediaError):
        decode_picture(path)


@pytest.mark.parametrize("kind", ["BMP", "TIFF", "PPM", "GIF", "ICO"])
def test_other_pictures_that_pil_could_read_are_refused(kind: str) -> None:
    with pytest.raises(UnsupportedMediaError):
        decode_picture(encoded(drawing(), kind))


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedMediaError, match="the file is empty"):
        decode_picture(b"")
    with pytest.raises(VideoNotFoundError, match=r"nothing\.png"):
        decode_picture(tmp_path / "nothing.png")


@pytest.mark.parametrize("name", ["jpeg", "jpeg progressive", "png", "png palette", "webp", "webp lossless"])
def test_a_truncated_file_is_damaged_wherever_it_was_cut(name: str) -> None:
    """Unless Hugging Face, too, reads all that it shows: the last bytes of a PNG or JPEG hold no pixels."""
    data = KINDS[name]
    damaged = 0
    for cut in sorted({SNIFF_BYTES, 16, 25, 29, 30, *range(40, len(data), max(1, len(data) // 40)), len(data) - 1}):
        try:
            expected = hugging_face(data[:cut])
        except (OSError, SyntaxError, ValueError, EOFError):
            damaged += 1
            with pytest.raises(CorruptMediaError, match="picture"):
                decode_picture(data[:cut])
        else:
            assert np.array_equal(decode_picture(data[:cut]).frames_thwc_u8[0], expected)
    assert damaged > 30


@pytest.mark.parametrize(
    "head", [b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF\x40\0\0\0WEBP", b"RIFF\x40\0\0\0WEBPVP8L"]
)
def test_garbage_behind_the_right_magic_is_damaged(head: bytes) -> None:
    for seed in range(20):
        with pytest.raises(CorruptMediaError):
            decode_picture(head + np.random.default_rng(seed).bytes(400))
    with pytest.raises(CorruptMediaError):
        decode_picture(head)


def test_a_source_that_fails_while_it_is_read() -> None:
    class Failing(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            if self.tell() > 100:
                raise OSError("the disk is gone")
            return super().read(size)

    with pytest.raises(CorruptMediaError, match="the disk is gone"):
        decode_picture(Failing(KINDS["png"]))


# -- what is too large ----------------------------------------------------------------------------------


def png(width: int, height: int, data: bytes, *, interlaced: bool = False) -> bytes:
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, int(interlaced))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def jpeg_of_size(width: int, height: int) -> bytes:
    """A small JPEG whose header claims another size."""
    data = bytearray(KINDS["jpeg"])
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = struct.pack(">HH", height, width)
    return bytes(data)


def webp_of_size(name: str, width: int, height: int) -> bytes:
    """A small WebP whose first chunk claims another size."""
    data = bytearray(KINDS[name])
    if data[12:16] == b"VP8X":
        data[24:27], data[27:30] = (side.to_bytes(4, "little")[:3] for side in (width - 1, height - 1))
    elif data[12:16] == b"VP8L":
        keep = int.from_bytes(data[21:25], "little") & 0xF0000000
        data[21:25] = (keep | (height - 1) << 14 | (width - 1)).to_bytes(4, "little")
    else:
        data[26:30] = struct.pack("<HH", width, height)
    return bytes(data)


BOMBS = {
    "png": (png(60_000, 60_000, zlib.compress(bytes(1000))), "60000x60000"),
    "jpeg": (jpeg_of_size(65_000, 65_000), "65000x65000"),
    "webp": (webp_of_size("webp", 16_000, 16_001), "16000x16001"),
    "webp lossless": (webp_of_size("webp lossless", 16_001, 16_000), "16001x16000"),
    "webp extended": (webp_of_size("webp animated", 99_000, 16_000), "99000x16000"),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_by_its_header(name: str) -> None:
    data, size = BOMBS[name]
    assert len(data) < 10_000
    started = time.monotonic()
    with pytest.raises(MediaLimitError, match=f"{size} has more than the {8192 * 4320} pixels"):
        decode_picture(data)
    assert time.monotonic() - started < 1


def test_the_limit_is_ours_and_not_pils(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a warning nor a refusal at what PIL finds suspicious, and a refusal of what it does not."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", HEIGHT * WIDTH - 1)
    for name in ("jpeg", "png", "webp"):
        assert decode_picture(KINDS[name]).num_frames == 1
        with pytest.raises(MediaLimitError, match=f"{WIDTH}x{HEIGHT} has more than the {HEIGHT * WIDTH - 1} pixels"):
            decode_picture(KINDS[name], limits=MediaLimits(max_pixels_per_frame=HEIGHT * WIDTH - 1))
        assert decode_picture(KINDS[name], limits=MediaLimits(max_pixels_per_frame=HEIGHT * WIDTH)).num_frames == 1


def test_too_many_bytes() -> None:
    data = KINDS["png"]
    with pytest.raises(MediaLimitError, match=f"the file has {len(data)} bytes, more than the 100 allowed"):
        decode_picture(data, limits=MediaLimits(max_bytes=100))


def test_too_little_memory_is_a_limit() -> None:
    class Full(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            if self.tell() > 100:
                raise MemoryError
            return super().read(size)

    with pytest.raises(MediaLimitError, match="more memory than"):
        decode_picture(Full(KINDS["png"]))


@pytest.mark.parametrize("source", [42.0, None])
def test_not_a_source_at_all(source: Any) -> None:
    with pytest.raises(InvalidRequestError, match=rf"video or picture is a path.*{type(source).__name__}"):
        decode_picture(source)
