"""Pruning methods by name."""

from fastervlm_video.errors import InvalidRequestError
from fastervlm_video.prune.base import PruneMethod
from fastervlm_video.prune.baselines import RANDOM, UNIFORM_GRID
from fastervlm_video.prune.cls_attention import CLS_ATTENTION
from fastervlm_video.prune.cls_dpp import CLS_DPP
from fastervlm_video.prune.divprune import DIVPRUNE
from fastervlm_video.prune.evs import EVS
from fastervlm_video.prune.visionzip import VISIONZIP
from fastervlm_video.prune.vispruner import VISPRUNER

__all__ = ["get_method", "method_names", "register"]

_METHODS: dict[str, PruneMethod] = {}


def register(method: PruneMethod) -> PruneMethod:
    """Make a method known under its name, and return it.

    Raises:
        ValueError: the name is taken by another method.
    """
    if _METHODS.setdefault(method.name, method) is not method:
        raise ValueError(f"a pruning method named {method.name!r} is registered already")
    return method


def get_method(name: str) -> PruneMethod:
    """The method called ``name``.

    Raises:
        InvalidRequestError: there is none.
    """
    method = _METHODS.get(name)
    if method is None:
        raise InvalidRequestError(f"unknown pruning method {name!r}: choose one of {', '.join(method_names())}")
    return method


def method_names() -> tuple[str, ...]:
    """Names of all registered methods, sorted."""
    return tuple(sorted(_METHODS))


for _method in (CLS_ATTENTION, CLS_DPP, DIVPRUNE, EVS, RANDOM, UNIFORM_GRID, VISIONZIP, VISPRUNER):
    register(_method)
