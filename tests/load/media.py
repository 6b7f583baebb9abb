"""Videos and pictures for load tests: a few are made, and as many as are needed are made different from them."""

import itertools
import os
import tempfile
import zlib
from io import BytesIO
from pathlib import Path

from PIL import Image

from fastervlm_video.media import write_video
from fastervlm_video.mini import random_scene, render_scene

__all__ = ["Media", "make_picture", "make_video", "unlike_any_picture", "unlike_any_video"]

_FPS = 12
_SECONDS = 3
_HEIGHT, _WIDTH = 144, 192
_IEND = b"\x00\x00\x00\x00IEND"


def make_video(seed: int) -> bytes:
    """An MP4 of a few seconds, of things that move."""
    frames = render_scene(random_scene(seed), num_frames=_FPS * _SECONDS, height=_HEIGHT, width=_WIDTH)
    with tempfile.TemporaryDirectory(prefix="fastervlm-load-") as folder:
        path = Path(folder) / "clip.mp4"
        write_video(path, frames, fps=_FPS)
        return path.read_bytes()


def make_picture(seed: int) -> bytes:
    """A PNG."""
    pixels = render_scene(random_scene(seed), num_frames=1, height=_HEIGHT, width=_WIDTH)[0]
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def unlike_any_video(video: bytes) -> bytes:
    """The same video to who watches it, and another one by its bytes: an MP4 may end in a box that nobody reads."""
    nonce = os.urandom(16)
    return video + (8 + len(nonce)).to_bytes(4, "big") + b"free" + nonce


def unlike_any_picture(picture: bytes) -> bytes:
    """The same for a PNG: a line of text before its end."""
    body = b"tEXtComment\x00" + os.urandom(8).hex().encode()
    chunk = (len(body) - 4).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big")
    head, mark, tail = picture.rpartition(_IEND)
    return head + chunk + mark + tail


class Media:
    """A supply of both.

    Making one takes far longer than asking about it, and would stop all users of the process meanwhile.

    Args:
        count: videos, and pictures, that look different.
    """

    def __init__(self, count: int = 3) -> None:
        self.videos = [make_video(seed) for seed in range(count)]
        self.pictures = [make_picture(seed) for seed in range(count)]
        self._videos, self._pictures = itertools.cycle(self.videos), itertools.cycle(self.pictures)

    def new_video(self) -> bytes:
        """One that the service has not seen."""
        return unlike_any_video(next(self._videos))

    def new_picture(self) -> bytes:
        """One that the service has not seen."""
        return unlike_any_picture(next(self._pictures))
