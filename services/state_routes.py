"""What is served, and whether it can be."""

from typing import Any

from fastapi import APIRouter, Response

from fastervlm_video.config import Medium
from fastervlm_video.prune import get_method, method_names
from services.http_errors import error_responses
from services.inquiry import require_served
from services.schemas import Health, ModelList, ModelObject, Readiness
from services.service import VideoService
from services.views import max_views

__all__ = ["add_model_routes", "add_state_routes"]

_TAGS: list[Any] = ["state"]


def add_model_routes(router: APIRouter, service: VideoService) -> None:
    """``/v1/models``."""

    @router.get("/v1/models", tags=_TAGS, summary="What is served", responses=error_responses(401))
    async def models() -> ModelList:
        """The served model, its geometry, and the defaults of a request."""
        return ModelList(data=[_model_object(service)])

    @router.get("/v1/models/{id:path}", tags=_TAGS, summary="One model", responses=error_responses(401, 404))
    async def model(id: str) -> ModelObject:  # noqa: A002 - the API's name for it
        """The same by its id, which may contain slashes."""
        require_served(id, service.facts.name)
        return _model_object(service)


def add_state_routes(router: APIRouter, service: VideoService) -> None:
    """``/healthz`` and ``/readyz``, which ask for no API key."""

    @router.get("/healthz", tags=_TAGS, summary="Alive")
    async def healthz() -> Health:
        """Answers as long as the process does."""
        return Health()

    @router.get("/readyz", tags=_TAGS, summary="Ready", responses={503: {"model": Readiness}})
    async def readyz(response: Response) -> Readiness:
        """200 when every stage is healthy, or scaled to zero and able to start; otherwise 503."""
        found = await service.readiness.states()
        response.status_code = 200 if found.ready else 503
        return Readiness(status="ready" if found.ready else "not_ready", stages=found.states)


def _model_object(service: VideoService) -> ModelObject:
    facts, live = service.facts, service.live
    return ModelObject(
        id=facts.name,
        created=service.started_at,
        owned_by="fastervlm-video",
        context_length=facts.context_length,
        patches_per_frame=facts.patches_per_frame,
        media=[medium.value for medium in Medium],
        max_views_per_picture=max_views(facts),
        methods=[name for name in method_names() if get_method(name).fixed_total],
        default_method=live.default_method,
        default_keep_ratio=live.default_keep_ratio,
        default_num_frames=live.default_num_frames,
    )
