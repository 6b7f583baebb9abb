"""Damaged videos and pictures, through the sandbox: frames or an error of ours, and never the parent's end."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastervlm_video.config import FrameResize, FrameSampling, MediaLimits, Medium, Tiling
from fastervlm_video.errors import MediaError
from fastervlm_video.media import SandboxedDecoder, write_video
from tests.media.stills import HEIGHT, WIDTH, drawing, every_kind
from tests.media.videos import numbered

LIMITS = MediaLimits(timeout_seconds=5, memory_bytes=2 * 1024**3)
NAMES = {"a.mp4": "libx264", "b.mkv": "libvpx", "c.avi": "mpeg4", "d.ts": "mpeg2video", "e.gif": "gif"}
PICTURES = every_kind()
TILING = Tiling(16, ((16, 32), (32, 16), (32, 32)))


@pytest.fixture(scope="module")
def decoder() -> Iterator[SandboxedDecoder]:
    with SandboxedDecoder() as opened:
        yield opened


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("fuzz")
    for name, codec in NAMES.items():
        write_video(folder / name, numbered(20), codec=codec, pix_fmt="rgb8" if codec == "gif" else "yuv420p", fps=25)
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


@settings(max_examples=25, deadline=None)
@given(name=st.sampled_from(sorted(NAMES)), data=st.data())
def test_damage_is_survived(
    decoder: SandboxedDecoder, videos: dict[str, bytes], name: str, data: st.DataObject
) -> None:
    damaged = damage(videos[name], data)
    resize = FrameResize(shortest_edge=16, crop=(16, 16))
    with contextlib.suppress(MediaError):  # any other exception fails the test
        batch = decoder.decode(damaged, FrameSampling(3), limits=LIMITS, resize=resize)
        assert batch.frames_thwc_u8.shape == (3, 16, 16, 3)


@settings(max_examples=20, deadline=None)
@given(name=st.sampled_from(sorted(PICTURES)), data=st.data())
def test_damage_to_a_picture_is_survived_and_the_next_one_is_whole(
    decoder: SandboxedDecoder, name: str, data: st.DataObject
) -> None:
    damaged = damage(PICTURES[name], data)
    resize = FrameResize(size=(16, 16))
    with contextlib.suppress(MediaError):
        batch = decoder.decode(
            damaged, FrameSampling(3), limits=LIMITS, resize=resize, medium=Medium.IMAGE, tiling=TILING
        )
        assert batch.frames_thwc_u8.shape == (batch.views_per_frame, 16, 16, 3)
    whole = decoder.decode(PICTURES["png"], FrameSampling(3), limits=LIMITS, medium=Medium.IMAGE)
    assert whole.frames_thwc_u8.shape == (1, HEIGHT, WIDTH, 3)
    assert np.array_equal(whole.frames_thwc_u8[0], np.asarray(drawing()))


def damage(good: bytes, data: st.DataObject) -> bytes:
    """The beginning of a file, with some bytes changed."""
    whole = np.frombuffer(good, np.uint8).copy()
    cut = data.draw(st.integers(1, len(whole)) | st.just(len(whole)), label="cut")
    flips = data.draw(st.lists(st.tuples(st.integers(0, cut - 1), st.integers(1, 255)), max_size=30), label="flips")
    for place, mask in flips:
        whole[place] ^= mask
    return whole[:cut].tobytes()
