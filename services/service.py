"""What the routes work with."""

from dataclasses import dataclass

from fastervlm_video.cache import TokenCache
from fastervlm_video.plan import ModelFacts
from services.answering import Answering
from services.blobs import BlobStore
from services.live import LiveConfig
from services.readiness import ReadinessProbe
from services.requests import FileIntake
from services.settings import Settings
from services.tenants import Keyring

__all__ = ["VideoService"]


@dataclass(slots=True, eq=False)
class VideoService:
    """One per Api replica.

    Attributes:
        settings: fixed while the replica lives.
        live: what may change meanwhile.
        facts: of the served checkpoint.
        cache: of kept tokens.
        blobs: uploaded videos and pictures.
        intake: brings files into ``blobs``.
        answering: calls the stages.
        readiness: knows whether they can be called.
        keyring: knows whose API key is whose.
        started_at: seconds since 1970.
    """

    settings: Settings
    live: LiveConfig
    facts: ModelFacts
    cache: TokenCache
    blobs: BlobStore
    intake: FileIntake
    answering: Answering
    readiness: ReadinessProbe
    keyring: Keyring
    started_at: int
