"""Stages without a cluster around them, and files to ask about."""

import io
from collections.abc import Iterator
from contextlib import contextmanager

from PIL import Image

from services.encoder import Encoder
from services.settings import Settings
from tests.checkpoints import random_frames


@contextmanager
def lone_encoder(settings: Settings) -> Iterator[Encoder]:
    """An Encoder for the length of the block."""
    stage = Encoder(settings)
    try:
        yield stage
    finally:
        stage._cache.close()


def picture_bytes(kind: str = "PNG", *, height: int = 50, width: int = 120, seed: int = 0) -> bytes:
    """A file of coloured noise."""
    file = io.BytesIO()
    Image.fromarray(random_frames(1, height, width, seed)[0]).save(file, kind)
    return file.getvalue()
