"""The Api stage: HTTP in front of the others."""

import asyncio
import functools
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

import ray
from fastapi import FastAPI
from fastapi_offline import FastAPIOffline
from ray import serve
from ray.serve.handle import DeploymentHandle

import fastervlm_video
from fastervlm_video.cache import video_key
from fastervlm_video.config import Medium
from fastervlm_video.plan import ModelFacts
from services.admission import Admission
from services.answering import Answering
from services.body_limit import DEFAULT_SMALL_LIMIT_BYTES, BodyLimitMiddleware
from services.handles import Stages
from services.http_errors import install_error_handlers
from services.live import LiveConfig
from services.logs import join_replica_log
from services.metrics import CacheReporter
from services.middleware import AdmissionMiddleware
from services.paths import FILES_PATH, INLINE_PATHS, QUESTION_PATHS, UPLOAD_PATHS
from services.readiness import ReadinessProbe
from services.request_log import RequestMeterMiddleware
from services.requests import FileIntake
from services.routes import build_router
from services.service import VideoService
from services.settings import Settings
from services.stores import open_blob_store, open_service_cache

__all__ = ["Api", "create_http_app"]

logger = logging.getLogger(__name__)

_DESCRIPTION = """
Ask questions about videos and pictures. A video is turned **once** into a small set of visual tokens, chosen in each
frame by the vision encoder's own [CLS] attention (FasterVLM), and cached; any number of questions are then answered
from them. A picture is treated as a frame of its own.
"""


_SWEEP_SECONDS = 600.0


@asynccontextmanager
async def _lifespan(service: VideoService, _: FastAPI) -> AsyncIterator[None]:
    """Remove expired uploads now and then, for as long as the application runs."""
    sweeping = asyncio.create_task(_sweep(service))
    try:
        yield
    finally:
        sweeping.cancel()
        await asyncio.gather(sweeping, return_exceptions=True)


async def _sweep(service: VideoService) -> None:
    while True:
        try:
            for expired in await asyncio.to_thread(service.blobs.sweep):
                key = video_key(expired.digest, salt=service.settings.tenant(expired.owner).salt)
                await asyncio.to_thread(service.cache.delete_video, key)
        except Exception:  # whatever it is, it must not end the sweeping
            logger.exception("expired uploads were not removed")
        await asyncio.sleep(_SWEEP_SECONDS)


def _warn_of_local_stores(settings: Settings) -> None:
    """Say so where the defaults, which are for one machine, meet a cluster."""
    nodes = sum(bool(node["Alive"]) for node in cast("Any", ray).nodes())
    local = [name for name, value in (("REDIS_URL", settings.redis_url), ("BLOB_URL", settings.blob_url)) if not value]
    if nodes > 1 and local:
        names = " and ".join(f"FASTERVLM_{name}" for name in local)
        logger.warning("this cluster has %d nodes, but without %s each of them keeps its own store", nodes, names)


def create_http_app(service: VideoService) -> FastAPI:
    """The FastAPI application around a service. Middleware added last is outermost."""
    app = FastAPIOffline(  # the API pages load nothing from other hosts
        lifespan=functools.partial(_lifespan, service),
        title="FasterVLM video",
        version=fastervlm_video.__version__,
        description=_DESCRIPTION,
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
    )
    app.include_router(build_router(service))
    install_error_handlers(app)
    settings = service.settings
    app.add_middleware(
        BodyLimitMiddleware,
        upload_limit_bytes=settings.max_upload_bytes,
        upload_paths=UPLOAD_PATHS,
        inline_limit_bytes=settings.inline_limit_bytes,
        inline_paths=INLINE_PATHS,
    )
    questions, uploads = Admission(settings.max_in_flight_requests), Admission(settings.max_concurrent_uploads)
    app.add_middleware(AdmissionMiddleware, admission=questions, paths=QUESTION_PATHS)
    app.add_middleware(AdmissionMiddleware, admission=uploads, paths=[FILES_PATH])
    app.add_middleware(
        AdmissionMiddleware, admission=uploads, paths=INLINE_PATHS, larger_than_bytes=DEFAULT_SMALL_LIMIT_BYTES
    )
    app.add_middleware(RequestMeterMiddleware)
    return app


class Api:
    """HTTP, validation and admission; calls the stages and streams answers.

    Args:
        settings: of the service.
        decoder: handle of the Decoder.
        encoder: handle of the Encoder.
        generator: handle of the Generator.
    """

    def __init__(
        self,
        settings: Settings,
        decoder: DeploymentHandle[Any],
        encoder: DeploymentHandle[Any],
        generator: DeploymentHandle[Any],
    ) -> None:
        join_replica_log()
        options = settings.model_options()
        facts = ModelFacts.open(settings.model, revision=settings.revision, options=options)
        for medium in Medium:  # the towers are hashed here, not in a request
            logger.info("serving %s, %ss by the tower %s", facts.name, medium, facts.fingerprint(medium)[:12])
        _warn_of_local_stores(settings)
        cache, blobs = open_service_cache(settings), open_blob_store(settings)
        CacheReporter(cache).start()
        self._service = VideoService(
            settings=settings,
            live=LiveConfig.from_settings(settings),
            facts=facts,
            cache=cache,
            blobs=blobs,
            intake=FileIntake(settings, blobs),
            answering=Answering(facts, cache, Stages(decoder, encoder, generator), options=options),
            readiness=ReadinessProbe(
                serve.get_replica_context().app_name,
                {name.capitalize(): settings.stage(name).min_replicas for name in ("decoder", "encoder", "generator")},
            ),
            keyring=settings.keyring(),
            started_at=int(time.time()),
        )

    def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Take over new defaults and bounds; called by Serve at start and whenever they change.

        Raises:
            ValidationError: a value is out of range; the old values stay.
        """
        self._service.live = LiveConfig.model_validate(user_config)

    def __serve_build_asgi_app__(self) -> FastAPI:
        """The ASGI application of this replica; called by Serve after the constructor."""
        return create_http_app(self._service)
