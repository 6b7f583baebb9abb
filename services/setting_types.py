"""Types of settings that are more than a number or a word: how each is written in a variable, and what is refused."""

import ipaddress
import json
from ipaddress import IPv4Network, IPv6Network
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, InstanceOf
from pydantic_settings import NoDecode

from services.tenants import ApiKey, parse_api_keys
from services.url_policy import parse_host_rule

__all__ = ["HostList", "KeyList", "NetworkList", "RedisUrl"]


def _split(value: object) -> object:
    """``a, b`` or ``["a", "b"]`` from the environment."""
    if not isinstance(value, str):
        return value
    if value.lstrip().startswith("["):
        return json.loads(value)
    return [item.strip() for item in value.split(",") if item.strip()]


def _host_rules(value: tuple[str, ...]) -> tuple[str, ...]:
    for text in value:
        parse_host_rule(text)
    return value


def _shared_redis(value: str | None) -> str | None:
    if value is None or value in {"off", "none://"} or value.startswith(("redis://", "rediss://", "unix://")):
        return value
    raise ValueError("must begin with redis://, rediss:// or unix://, or be `off`")


def _networks(value: object) -> object:
    """Networks parsed here, for one plain message instead of pydantic's two about either version of IP."""
    items = _split(value)
    if isinstance(items, list | tuple):
        return tuple(ipaddress.ip_network(item) if isinstance(item, str) else item for item in items)
    return items


def _api_keys(value: object) -> object:
    """``key:tenant`` items as digests, so that no key is ever in a setting."""
    items = _split(value)
    if not isinstance(items, list | tuple):
        return items
    keys = parse_api_keys(item for item in items if isinstance(item, str))
    given = tuple(item for item in items if isinstance(item, ApiKey))
    if isinstance(value, str) and not keys:
        raise ValueError("holds no key; write key:tenant, or leave it unset")
    return given + keys


HostList = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split), AfterValidator(_host_rules)]
KeyList = Annotated[tuple[InstanceOf[ApiKey], ...], NoDecode, BeforeValidator(_api_keys)]
NetworkList = Annotated[
    tuple[InstanceOf[IPv4Network] | InstanceOf[IPv6Network], ...], NoDecode, BeforeValidator(_networks)
]
RedisUrl = Annotated[str | None, AfterValidator(_shared_redis)]
