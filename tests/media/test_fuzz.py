"""Damaged videos, through the sandbox: frames or an error of ours, and never the parent's end."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastervlm_video.config import FrameResize, FrameSampling, MediaLimits
from fastervlm_video.errors import MediaError
from fastervlm_video.media import SandboxedDecoder, write_video
from tests.media.videos import numbered

LIMITS = MediaLimits(timeout_seconds=5, memory_bytes=2 * 1024**3)
NAMES = {"a.mp4": "libx264", "b.mkv": "libvpx", "c.avi": "mpeg4", "d.ts": "mpeg2video", "e.gif": "gif"}


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
    whole = np.frombuffer(videos[name], np.uint8).copy()
    cut = data.draw(st.integers(1, len(whole)) | st.just(len(whole)), label="cut")
    flips = data.draw(st.lists(st.tuples(st.integers(0, cut - 1), st.integers(1, 255)), max_size=30), label="flips")
    for place, mask in flips:
        whole[place] ^= mask
    resize = FrameResize(shortest_edge=16, crop=(16, 16))
    with contextlib.suppress(MediaError):  # any other exception fails the test
        batch = decoder.decode(whole[:cut].tobytes(), FrameSampling(3), limits=LIMITS, resize=resize)
        assert batch.frames_thwc_u8.shape == (3, 16, 16, 3)
