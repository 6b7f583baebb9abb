"""The HTTP routes. Thin: reading a request, calling what does the work, shaping the response."""

from fastapi import APIRouter, Depends

from services.auth import authentication
from services.file_routes import add_file_routes
from services.question_routes import add_question_routes
from services.service import VideoService
from services.state_routes import add_model_routes, add_state_routes

__all__ = ["build_router"]


def build_router(service: VideoService) -> APIRouter:
    """All routes of the API. Those under ``/v1`` belong to tenants, the others to whoever runs the service."""
    of_tenants = APIRouter(dependencies=[Depends(authentication(service.keyring))])
    add_question_routes(of_tenants, service)
    add_file_routes(of_tenants, service)
    add_model_routes(of_tenants, service)
    router = APIRouter()
    router.include_router(of_tenants)
    add_state_routes(router, service)
    return router
