"""Whose request it is: the dependency that every route under ``/v1`` has."""

from collections.abc import Awaitable, Callable
from typing import Annotated

from fastapi import Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from services.tenants import Keyring, Tenant

__all__ = ["authentication", "tenant_of"]

_BEARER = HTTPBearer(scheme_name="API key", description="Needed if the server was given API keys.", auto_error=False)


def authentication(keyring: Keyring) -> Callable[..., Awaitable[None]]:
    """A FastAPI dependency that finds out the tenant before a route reads anything of the request's body.

    Args:
        keyring: knows the keys.
    """

    async def authenticate(
        request: Request, credentials: Annotated[HTTPAuthorizationCredentials | None, Security(_BEARER)]
    ) -> None:
        request.state.tenant = keyring.tenant(credentials.credentials if credentials else None)

    return authenticate


def tenant_of(request: Request) -> Tenant:
    """The tenant that :func:`authentication` found. A route without it fails, and lets nobody in."""
    tenant = request.state.tenant
    assert isinstance(tenant, Tenant)
    return tenant
