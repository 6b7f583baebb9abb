"""libav with its own reading of edit lists is the oracle: where the list is said not to matter, it must not."""

import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastervlm_video.config import FrameSampling, MediaLimits
from fastervlm_video.media import decode_video, write_video
from fastervlm_video.media.edit_list import shows_everything
from fastervlm_video.media.sources import open_source
from tests.media.videos import FPS, decode_everything, numbered, numbers_of, write_with_sound

FRAMES = 50
B_FRAMES: dict[str, Any] = {"codec_options": {"bf": "3", "b_strategy": "0"}}
WHOLE_SPEED = 0x10000


def is_plain(video: bytes | Path) -> bool:
    with open_source(video, MediaLimits()) as source:
        return shows_everything(source)


def written(folder: Path, name: str = "video.mp4", **options: Any) -> Path:
    write_video(folder / name, numbered(FRAMES), fps=FPS, gop_size=10, **options)
    return folder / name


def entry_of(video: bytes) -> tuple[int, int, int, int]:
    """Where the only entry of the only edit list is, and its duration, start and speed."""
    at = video.index(b"elst") + 12
    return at, *struct.unpack_from(">IiI", video, at)


def edited(video: bytes, duration: int, start: int, speed: int = WHOLE_SPEED) -> bytes:
    at, *_ = entry_of(video)
    return video[:at] + struct.pack(">IiI", duration, start, speed) + video[at + 12 :]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("video.mp4", {"codec_options": {"bf": "0"}}),
        ("b_frames.mp4", B_FRAMES),
        ("faststart.mp4", {"container_options": {"movflags": "faststart"}, **B_FRAMES}),
        ("video.mov", B_FRAMES),
        ("mpeg4.mp4", {"codec": "mpeg4", "codec_options": {"bf": "2"}}),
    ],
)
def test_what_is_written_usually_shows_everything(tmp_path: Path, name: str, options: dict[str, Any]) -> None:
    assert is_plain(written(tmp_path, name, **options))


def test_the_sound_track_has_no_say(tmp_path: Path) -> None:
    write_with_sound(tmp_path / "sound.mp4", FRAMES, sound_seconds=2.0)
    assert is_plain(tmp_path / "sound.mp4")


@pytest.mark.parametrize("movflags", ["frag_keyframe+empty_moov", "negative_cts_offsets"])
def test_unusual_files_give_the_same_frames(tmp_path: Path, movflags: str) -> None:
    path = written(tmp_path, container_options={"movflags": movflags}, **B_FRAMES)
    assert numbers_of(decode_video(path, FrameSampling(FRAMES)).frames_thwc_u8) == list(range(FRAMES))


def test_fragments_are_left_to_libav(tmp_path: Path) -> None:
    path = written(tmp_path, container_options={"movflags": "frag_keyframe+empty_moov"}, **B_FRAMES)
    assert not is_plain(path)


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return written(tmp_path_factory.mktemp("edits"), **B_FRAMES).read_bytes()


def test_a_cut_at_either_end_is_seen(video: bytes, tmp_path: Path) -> None:
    _, duration, start, _ = entry_of(video)
    ticks_per_frame = 512
    for shown, begin, first in ((duration, start + 5 * ticks_per_frame, 5), (duration - 400, start, 0)):
        cut = edited(video, shown, begin)
        assert not is_plain(cut)
        path = tmp_path / "cut.mp4"
        path.write_bytes(cut)
        oracle = [pixels for _, pixels in decode_everything(path)]
        assert len(oracle) < FRAMES
        batch = decode_video(cut, FrameSampling(len(oracle)))
        assert numbers_of(batch.frames_thwc_u8) == numbers_of(oracle)
        assert numbers_of(oracle)[0] == first


@settings(max_examples=150, deadline=None)
@given(
    shorter=st.integers(-2, 60) | st.integers(0, 2000),
    later=st.sampled_from([0, 0, 0, 1, -1, 512, -512, -1024, 2560]),
    speed=st.sampled_from([WHOLE_SPEED, WHOLE_SPEED, WHOLE_SPEED, 0, 2 * WHOLE_SPEED]),
)
def test_a_list_said_not_to_matter_does_not(
    video: bytes, tmp_path_factory: pytest.TempPathFactory, shorter: int, later: int, speed: int
) -> None:
    _, duration, start, _ = entry_of(video)
    changed = edited(video, max(0, duration - shorter), start + later, speed)
    if not is_plain(changed):
        return
    path = tmp_path_factory.getbasetemp() / "changed.mp4"
    path.write_bytes(changed)
    oracle = decode_everything(path)
    batch = decode_video(changed, FrameSampling(len(oracle)))
    assert numbers_of(batch.frames_thwc_u8) == numbers_of([pixels for _, pixels in oracle])
    assert batch.pts_seconds == pytest.approx([seconds for seconds, _ in oracle])


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_damaged_headers_raise_nothing(video: bytes, data: st.DataObject) -> None:
    begin = video.index(b"moov") - 4
    at = data.draw(st.integers(begin, len(video) - 1))
    replaced = data.draw(st.binary(min_size=1, max_size=8))
    assert is_plain(video[:at] + replaced + video[at + len(replaced) :]) in {True, False}
    assert is_plain(video[:at]) in {True, False}


def test_what_is_no_mp4_is_left_to_libav(tmp_path: Path) -> None:
    assert not is_plain(written(tmp_path, "video.mkv"))
    assert not is_plain(b"moov" * 1000)
