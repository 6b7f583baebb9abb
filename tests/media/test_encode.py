import itertools
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import pytest

from fastervlm_video.errors import InvalidRequestError
from fastervlm_video.media import write_video
from tests.media.videos import decode_everything, numbered, numbers_of


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    write_video(tmp_path / "out.mp4", numbered(30), fps=10, gop_size=5)
    everything = decode_everything(tmp_path / "out.mp4")
    assert numbers_of([pixels for _, pixels in everything]) == list(range(30))
    assert [seconds for seconds, _ in everything] == pytest.approx([i / 10 for i in range(30)])
    with av.open(str(tmp_path / "out.mp4")) as container:
        keys = [index for index, frame in enumerate(container.decode(video=0)) if frame.key_frame]
    assert all(b - a <= 5 for a, b in itertools.pairwise([*keys, 30]))


def test_container_and_options_are_passed_on(tmp_path: Path) -> None:
    path = tmp_path / "no_extension"
    options = {"movflags": "faststart"}
    write_video(
        path, numbered(5), container="mp4", container_options=options, codec_options={"crf": "30"}, bit_rate=10_000
    )
    data = path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")


def test_times_are_kept(tmp_path: Path) -> None:
    times = [0.0, 0.5, 0.6, 3.0]
    write_video(tmp_path / "vfr.mp4", numbered(4), pts_seconds=times)
    assert [seconds for seconds, _ in decode_everything(tmp_path / "vfr.mp4")] == pytest.approx(times, abs=1e-4)


@pytest.mark.parametrize(
    ("frames", "options", "words"),
    [
        ([], {}, "at least one frame"),
        ([np.zeros((8, 8, 3), np.uint8)], {"codec": "nonesuch"}, "nonesuch"),
        ([np.zeros((8, 8, 3), np.uint8)], {"codec": "aac"}, "not a video encoder"),
        ([np.zeros((7, 7, 3), np.uint8)], {}, "libx264 in yuv420p"),
        ([np.zeros((8, 8, 3), np.uint8)] * 2, {"pts_seconds": [0.0]}, "cannot write"),
    ],
    ids=["none", "codec", "sound", "odd", "times"],
)
def test_what_cannot_be_written(
    tmp_path: Path, frames: list[npt.NDArray[np.uint8]], options: dict[str, Any], words: str
) -> None:
    with pytest.raises(InvalidRequestError, match=words):
        write_video(tmp_path / "out.mp4", frames, **options)
