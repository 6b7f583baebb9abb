"""HEIC and AVIF: pictures that libav takes for videos, each tile of a large one for a video of its own."""

import io
import struct

import av
import numpy as np
import pytest
from PIL import Image, features

from fastervlm_video.config import FrameSampling, Medium
from fastervlm_video.errors import NoVideoStreamError, UnsupportedMediaError
from fastervlm_video.media import SNIFF_BYTES, decode_picture, decode_video, sniff_medium
from tests.media.stills import drawing, encoded

SIDE = 64
LEFT, RIGHT = (Image.new("RGB", (SIDE, SIDE), colour) for colour in ("red", "blue"))

needs_avif = pytest.mark.skipif(not features.check("avif"), reason="this PIL cannot write AVIF")


def box(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I4s", 8 + len(body), kind) + body


def full_box(kind: bytes, body: bytes, version: int = 0) -> bytes:
    return box(kind, struct.pack(">I", version << 24) + body)


def inside(data: bytes, *path: bytes) -> bytes:
    """The body of a box within boxes."""
    for name in path:
        at = 0
        while struct.unpack_from(">4s", data, at + 4)[0] != name:
            at += struct.unpack_from(">I", data, at)[0]
        data = data[at + 8 : at + struct.unpack_from(">I", data, at)[0]]
        data = data[4:] if name == b"meta" else data
    return data


def two_tiles(brand: bytes) -> bytes:
    """An AVIF picture, red on the left and blue on the right, as cameras write large ones: PIL makes no tiles."""
    tiles = [encoded(side, "AVIF") for side in (LEFT, RIGHT)]
    grid = struct.pack(">BBBBHH", 0, 0, 0, 1, 2 * SIDE, SIDE)  # one row of two
    parts = [grid, *(inside(tile, b"mdat") for tile in tiles)]
    entries = [(1, b"grid"), (2, b"av01"), (3, b"av01")]
    sizes = [full_box(b"ispe", struct.pack(">II", width, SIDE)) for width in (2 * SIDE, SIDE)]
    codec = box(b"av1C", inside(tiles[0], b"meta", b"iprp", b"ipco", b"av1C"))
    of_items = struct.pack(">IHBB", 3, 1, 1, 1) + b"".join(struct.pack(">HBBB", n, 2, 2, 0x83) for n in (2, 3))

    def meta(start: int) -> bytes:
        places = b"".join(
            struct.pack(">HHHII", number, 0, 1, start + sum(map(len, parts[: number - 1])), len(parts[number - 1]))
            for number, _ in entries
        )
        infos = (full_box(b"infe", struct.pack(">HH4sB", number, 0, kind, 0), version=2) for number, kind in entries)
        return full_box(
            b"meta",
            full_box(b"hdlr", bytes(4) + b"pict" + bytes(13))
            + full_box(b"pitm", struct.pack(">H", 1))
            + full_box(b"iloc", struct.pack(">BBH", 0x44, 0, len(entries)) + places)
            + full_box(b"iinf", struct.pack(">H", len(entries)) + b"".join(infos))
            + full_box(b"iref", box(b"dimg", struct.pack(">HHHH", 1, 2, 2, 3)))
            + box(b"iprp", box(b"ipco", b"".join(sizes) + codec) + full_box(b"ipma", of_items)),
        )

    head = box(b"ftyp", brand + bytes(4) + b"mif1avif")
    return head + meta(len(head) + len(meta(0)) + 8) + box(b"mdat", b"".join(parts))


def refuse(data: bytes) -> None:
    assert sniff_medium(data[:SNIFF_BYTES]) is Medium.IMAGE
    with pytest.raises(UnsupportedMediaError, match="HEIC and AVIF pictures are not supported; send JPEG, PNG or WebP"):
        decode_picture(data)
    with pytest.raises(UnsupportedMediaError, match="HEIC and AVIF pictures are not supported; send JPEG, PNG or WebP"):
        decode_video(data, FrameSampling(1))


@pytest.mark.parametrize("brand", [b"heic", b"heix", b"hevc", b"mif1", b"msf1", b"avif", b"avis"])
def test_refused_by_brand_before_anything_is_parsed(brand: bytes) -> None:
    refuse(box(b"ftyp", brand + bytes(4) + brand))


@pytest.mark.parametrize("brand", [b"isom", b"mp42", b"qt  ", b"avc1", b"iso5", b"hvc1"])
def test_videos_are_not_taken_for_pictures(brand: bytes) -> None:
    assert sniff_medium(box(b"ftyp", brand + bytes(4) + b"mp42")) is Medium.VIDEO


@needs_avif
@pytest.mark.parametrize("more", [[], [drawing().transpose(Image.Transpose.ROTATE_180)]])
def test_pictures_and_animations_that_pil_writes(more: list[Image.Image]) -> None:
    refuse(encoded(drawing(), "AVIF", save_all=bool(more), append_images=more, duration=500))


@needs_avif
def test_a_picture_in_tiles() -> None:
    data = two_tiles(b"avif")
    with Image.open(io.BytesIO(data)) as picture:
        across = np.asarray(picture.convert("RGB"), int)[SIDE // 2, [5, SIDE + 5]]
    assert np.abs(across - [(255, 0, 0), (0, 0, 255)]).max() < 10
    refuse(data)


@needs_avif
def test_a_tile_is_no_track_whatever_the_file_calls_itself() -> None:
    data = two_tiles(b"isom")
    with av.open(io.BytesIO(data)) as container:
        assert len(container.streams.video) == 2  # libav does see "video streams"
    with pytest.raises(NoVideoStreamError, match="or a tile"):
        decode_video(data, FrameSampling(1))
