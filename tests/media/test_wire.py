"""The parent trusts nothing that a child says."""

import dataclasses
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastervlm_video.config import FrameResize, FrameSampling, MediaLimits, Medium, Tiling
from fastervlm_video.errors import CorruptMediaError, FasterVLMError, MediaError, MediaLimitError, StorageFullError
from fastervlm_video.media import FrameBatch, VideoInfo, _wire

INFO = VideoInfo(2.0, 64, 48, "mov", "h264")
JOB = _wire.Job(FrameSampling(2), MediaLimits(), FrameResize(shortest_edge=8, crop=(8, 8)))


TILING = Tiling(8, ((8, 16), (16, 8), (16, 16)))
SQUARE = FrameResize(size=(8, 8))
PICTURE = VideoInfo(0.0, 90, 20, "png", "png")
PICTURE_JOB = _wire.Job(FrameSampling(2), MediaLimits(), SQUARE, Medium.IMAGE, TILING)
VIEWS = 3  # the whole, and two tiles beside each other


def header(**changes: Any) -> bytes:
    batch = FrameBatch(np.zeros((2, 8, 8, 3), np.uint8), (0.0, 1.0), INFO)
    return json.dumps({**_wire.reply_header(batch), **changes}).encode()


def test_an_honest_reply() -> None:
    reply = _wire.parse_reply(header(), JOB)
    assert (reply.shape, reply.pts_seconds, reply.info) == ((2, 8, 8, 3), (0.0, 1.0), INFO)
    assert reply.views_per_frame == 1


def picture_header(**changes: Any) -> bytes:
    batch = FrameBatch(np.zeros((VIEWS, 8, 8, 3), np.uint8), (0.0,) * VIEWS, PICTURE, VIEWS)
    return json.dumps({**_wire.reply_header(batch), **changes}).encode()


def test_an_honest_reply_about_a_picture() -> None:
    reply = _wire.parse_reply(picture_header(), PICTURE_JOB)
    assert reply == _wire.Reply((VIEWS, 8, 8, 3), (0.0,) * VIEWS, PICTURE, VIEWS)


def test_an_honest_reply_about_a_video_in_views() -> None:
    job = dataclasses.replace(PICTURE_JOB, medium=Medium.VIDEO)
    views = 5  # 64x48 is cut into four
    batch = FrameBatch(np.zeros((2 * views, 8, 8, 3), np.uint8), (0.0,) * views + (1.5,) * views, INFO, views)
    fields = _wire.reply_header(batch)
    assert fields["pts_seconds"] == (0.0, 1.5)
    reply = _wire.parse_reply(json.dumps(fields).encode(), job)
    assert reply == _wire.Reply((2 * views, 8, 8, 3), batch.pts_seconds, INFO, views)


def test_a_picture_without_views_has_its_own_size() -> None:
    job = _wire.Job(FrameSampling(2), MediaLimits(), None, Medium.IMAGE)
    assert _wire.parse_reply(picture_header(shape=[1, 20, 90, 3]), job).shape == (1, 20, 90, 3)
    with pytest.raises(CorruptMediaError, match="nonsense"):
        _wire.parse_reply(picture_header(shape=[1, 90, 20, 3]), job)


def of_picture(**changes: Any) -> dict[str, Any]:
    return {"info": {**dataclasses.asdict(PICTURE), **changes}}


@pytest.mark.parametrize(
    "changes",
    [
        {"shape": [1, 8, 8, 3]},
        {"shape": [2 * VIEWS, 8, 8, 3]},
        {"shape": [VIEWS, 8, 9, 3]},
        {"pts_seconds": [1.0]},
        {"pts_seconds": [0.0] * VIEWS},
        {"pts_seconds": []},
        {"pts_seconds": 0.0},
        of_picture(width=20, height=20),  # it would be cut otherwise
        of_picture(width=0),
        of_picture(width=-90, height=-20),
        of_picture(width=90.0),
        of_picture(width=True, height=True),
        of_picture(width=10**200),
        of_picture(width=9 * 10**6, height=2 * 10**6),
        of_picture(duration_seconds=1.0),
        of_picture(duration_seconds="0"),
        of_picture(duration_seconds=10**400),
        of_picture(container="jpeg"),
        of_picture(container="tiff", codec="tiff"),
        of_picture(codec=None),
        {"info": dataclasses.asdict(INFO)},
    ],
)
def test_a_dishonest_reply_about_a_picture_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(CorruptMediaError, match="nonsense"):
        _wire.parse_reply(picture_header(**changes), PICTURE_JOB)


@pytest.mark.parametrize("resize", [FrameResize(shortest_edge=300), FrameResize(size=(8, 9))])
def test_a_size_from_which_no_frames_could_have_come_is_refused(resize: FrameResize) -> None:
    """Resized it would be too large, or its views would not match: an honest child says so instead."""
    job = dataclasses.replace(PICTURE_JOB, resize=resize, tiling=TILING if resize.size else None)
    with pytest.raises(CorruptMediaError, match="nonsense"):
        _wire.parse_reply(picture_header(**of_picture(width=10**6, height=1)), job)


@pytest.mark.parametrize(
    "job",
    [
        JOB,
        _wire.Job(FrameSampling(), MediaLimits(), None),
        _wire.Job(FrameSampling(), MediaLimits(), FrameResize(size=(3, 4))),
        PICTURE_JOB,
    ],
)
def test_jobs_survive_the_wire(job: _wire.Job) -> None:
    assert _wire.parse_job(_wire.pack(dataclasses.asdict(job))[_wire.LENGTH.size :]) == job


@pytest.mark.parametrize(
    "changes",
    [
        {"shape": [3, 8, 8, 3]},
        {"shape": [2, 9, 8, 3]},
        {"shape": [2, 8, 8, 4]},
        {"shape": [2, -8, -8, 3]},
        {"shape": [2, 8.0, 8, 3]},
        {"shape": [2, 8, 8]},
        {"shape": "2883"},
        {"shape": None},
        {"pts_seconds": [0.0]},
        {"pts_seconds": [0.0, float("nan")]},
        {"pts_seconds": [0.0, "1"]},
        {"info": None},
        {"info": {}},
        {"info": {**dataclasses.asdict(INFO), "width": "wide"}},
        {"info": {**dataclasses.asdict(INFO), "width": float("inf")}},
        {"info": {**dataclasses.asdict(INFO), "duration_seconds": float("nan")}},
    ],
)
def test_a_dishonest_reply_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(CorruptMediaError, match="nonsense"):
        _wire.parse_reply(header(**changes), JOB)


def test_a_reply_that_would_fill_the_memory_is_refused() -> None:
    job = _wire.Job(FrameSampling(64), MediaLimits(memory_bytes=10**9), None)
    with pytest.raises(CorruptMediaError, match="nonsense"):
        _wire.parse_reply(header(shape=[64, 4320, 8192, 3], pts_seconds=[0.0] * 64), job)


@given(body=st.binary(max_size=200))
def test_any_bytes_are_a_typed_error(body: bytes) -> None:
    for job in (JOB, PICTURE_JOB):
        with pytest.raises(CorruptMediaError):
            _wire.parse_reply(body, job)


def errors_of(root: type[FasterVLMError]) -> list[type[FasterVLMError]]:
    return [root, *(error for child in root.__subclasses__() for error in errors_of(child))]


@pytest.mark.parametrize("kind", errors_of(MediaError))
def test_media_errors_are_rebuilt_by_their_code(kind: type[FasterVLMError]) -> None:
    with pytest.raises(kind, match="what it said") as caught:
        _wire.parse_reply(json.dumps(_wire.error_header(kind("what it said"))).encode(), JOB)
    assert type(caught.value) is kind


def test_a_child_can_only_blame_the_video() -> None:
    with pytest.raises(CorruptMediaError):
        _wire.parse_reply(json.dumps(_wire.error_header(StorageFullError("all full"))).encode(), JOB)


def test_a_childs_words_are_cut_and_cleaned() -> None:
    body = json.dumps({"code": "media_limit_exceeded", "message": "\x1b[2J\n" + "x" * 10_000}).encode()
    with pytest.raises(MediaLimitError) as caught:
        _wire.parse_reply(body, JOB)
    assert len(str(caught.value)) == 2000
    assert str(caught.value).startswith("?[2J?xxx")
