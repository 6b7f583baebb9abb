import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastervlm_video.config import Medium
from fastervlm_video.errors import InvalidRequestError, PayloadTooLargeError
from services.inline import base64_chars, decode_data_url, is_data_url

HEAD = "data:video/mp4;base64,"


def encoded(content: bytes) -> str:
    return base64.b64encode(content).decode()


@given(content=st.binary(min_size=1, max_size=100))
def test_content_comes_back_and_its_length_is_known_before(content: bytes) -> None:
    assert decode_data_url(HEAD + encoded(content), medium=Medium.VIDEO, limit_bytes=len(content)) == content
    assert base64_chars(len(content)) == len(encoded(content))
    with pytest.raises(PayloadTooLargeError, match=f"at most {len(content) - 1} bytes"):
        decode_data_url(HEAD + encoded(content), medium=Medium.VIDEO, limit_bytes=len(content) - 1)


@pytest.mark.parametrize(
    "head",
    [
        "data:video/mp4;base64",
        "DATA:Video/WebM;Base64",
        "data:video/x-matroska;codecs=av01;base64",
        "data:application/octet-stream;base64",
    ],
)
def test_kinds_that_may_be_videos(head: str) -> None:
    assert is_data_url(f"{head},QUJD")
    assert decode_data_url(f"{head},QUJD", medium=Medium.VIDEO, limit_bytes=3) == b"ABC"


@pytest.mark.parametrize(
    "kind", ["image/png", "image/jpeg", "image/jpg", "IMAGE/WebP", "application/octet-stream", "image/png;a=b"]
)
def test_kinds_that_may_be_pictures(kind: str) -> None:
    assert decode_data_url(f"data:{kind};base64,QUJD", medium=Medium.IMAGE, limit_bytes=3) == b"ABC"


@pytest.mark.parametrize("kind", ["video/mp4", "image/gif", "image/svg+xml", "image/pngx", "text/plain"])
def test_other_kinds_are_no_pictures(kind: str) -> None:
    with pytest.raises(InvalidRequestError, match="JPEG, PNG or WebP picture, not") as caught:
        decode_data_url(f"data:{kind};base64,QUJD", medium=Medium.IMAGE, limit_bytes=3)
    assert kind in caught.value.message
    with pytest.raises(InvalidRequestError, match="must begin like data:image/png;base64,"):
        decode_data_url(f"data:{kind},QUJD", medium=Medium.IMAGE, limit_bytes=3)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("data:,QUJD", "must begin like"),
        ("data:video/mp4,QUJD", "must begin like"),
        ("data:video/mp4;base64", "must begin like"),
        ("data:video/mp4;base64;QUJD", "must begin like"),
        (f"data:video/mp4;{'a=b;' * 100}base64,QUJD", "must begin like"),
        ("data:image/png;base64,QUJD", "'image/png'"),
        ("data:text/html;base64,QUJD", "'text/html'"),
        (f"{HEAD}", "empty"),
        (f"{HEAD}QUJ", "3 characters"),
        (f"{HEAD}QUJDR", "5 characters"),
        (f"{HEAD}QUJ!", "base64"),
        (f"{HEAD}Q\nJD", "base64"),
        (f"{HEAD}QUJé", "base64"),
        (f"{HEAD}QU_-", "base64"),
        (f"{HEAD}QQ==QUJD", "base64"),
        (f"{HEAD}====", "base64"),
    ],
)
def test_anything_but_exact_base64_of_a_video_is_refused(url: str, words: str) -> None:
    with pytest.raises(InvalidRequestError, match=words) as caught:
        decode_data_url(url, medium=Medium.VIDEO, limit_bytes=100)
    assert len(caught.value.message) < 300


def test_other_urls_are_none() -> None:
    assert not any(map(is_data_url, ["", "dat", "database:x", "http://x/data:", "file-" + "0" * 64]))
