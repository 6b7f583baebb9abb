"""Stages without a cluster around them, and files to ask about."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from PIL import Image
from ray.serve import context
from ray.serve._private.common import DeploymentID, ReplicaID
from ray.serve._private.config import DeploymentConfig

from services.encoder import Encoder
from services.settings import Settings
from tests.checkpoints import random_frames


@contextmanager
def lone_encoder(settings: Settings) -> Iterator[Encoder]:
    """An Encoder that takes itself for a replica.

    Its batch queue, one for the class, belongs to the event loop that first uses it: let that be the session's.
    """
    pretend: Any = context
    # serve.batch looks up its deployment's queue length; it is otherwise plain asyncio.
    pretend._set_internal_replica_context(
        replica_id=ReplicaID("r", DeploymentID("Encoder")),
        servable_object=None,
        _deployment_config=DeploymentConfig(max_ongoing_requests=settings.encoder.max_ongoing_requests),
        rank=None,
        world_size=1,
    )
    stage = Encoder(settings)
    try:
        yield stage
    finally:
        stage._cache.close()
        pretend._INTERNAL_REPLICA_CONTEXT = None


def picture_bytes(kind: str = "PNG", *, height: int = 50, width: int = 120, seed: int = 0) -> bytes:
    """A file of coloured noise."""
    file = io.BytesIO()
    Image.fromarray(random_frames(1, height, width, seed)[0]).save(file, kind)
    return file.getvalue()
