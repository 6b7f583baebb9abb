"""The parent trusts nothing that a child says."""

import dataclasses
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastervlm_video.config import FrameResize, FrameSampling, MediaLimits
from fastervlm_video.errors import CorruptMediaError, FasterVLMError, MediaError, MediaLimitError, StorageFullError
from fastervlm_video.media import FrameBatch, VideoInfo, _wire

INFO = VideoInfo(2.0, 64, 48, "mov", "h264")
JOB = _wire.Job(FrameSampling(2), MediaLimits(), FrameResize(shortest_edge=8, crop=(8, 8)))


def header(**changes: Any) -> bytes:
    batch = FrameBatch(np.zeros((2, 8, 8, 3), np.uint8), (0.0, 1.0), INFO)
    return json.dumps({**_wire.reply_header(batch), **changes}).encode()


def test_an_honest_reply() -> None:
    reply = _wire.parse_reply(header(), JOB)
    assert (reply.shape, reply.pts_seconds, reply.info) == ((2, 8, 8, 3), (0.0, 1.0), INFO)


@pytest.mark.parametrize(
    "job",
    [
        JOB,
        _wire.Job(FrameSampling(), MediaLimits(), None),
        _wire.Job(FrameSampling(), MediaLimits(), FrameResize(size=(3, 4))),
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
    with pytest.raises(CorruptMediaError):
        _wire.parse_reply(body, JOB)


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
