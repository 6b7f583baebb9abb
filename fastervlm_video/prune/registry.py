"""Pruning methods by name: this package's, those of plug-ins, and whatever else is registered."""

from fastervlm_video.errors import InvalidRequestError
from fastervlm_video.plugins import plugins
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


def register(method: PruneMethod, *, replace: bool = False) -> PruneMethod:
    """Make a method known under its name, and return it.

    A module, or a notebook's cell, may be run again: a method whose function is the same one, defined anew, takes the
    place of the old one. Cached tokens go by the name alone: give changed code another one, or ask with an empty cache.

    Args:
        method: to be known.
        replace: let it take the place of any other method of that name.

    Raises:
        ValueError: the name is taken by another method.
    """
    known = _METHODS.setdefault(method.name, method)
    if known is not method and not replace and not _is_defined_anew(known, method):
        raise ValueError(
            f"a pruning method named {method.name!r} is registered already: choose another name, or replace=True"
        )
    _METHODS[method.name] = method
    return method


def get_method(name: str) -> PruneMethod:
    """The method called ``name``, which may be an installed plug-in's.

    Raises:
        InvalidRequestError: there is none.
    """
    if name not in _METHODS:
        plugins()
    method = _METHODS.get(name)
    if method is None:
        raise InvalidRequestError(f"unknown pruning method {name!r}: choose one of {', '.join(method_names())}")
    return method


def method_names() -> tuple[str, ...]:
    """Names of all registered methods, those of installed plug-ins included, sorted."""
    plugins()
    return tuple(sorted(_METHODS))


def _is_defined_anew(known: PruneMethod, method: PruneMethod) -> bool:
    old, new = known.select, method.select
    places = [(getattr(one, "__module__", None), getattr(one, "__qualname__", None)) for one in (old, new)]
    return old is not new and places[0] == places[1] and None not in places[0]


for _method in (CLS_ATTENTION, CLS_DPP, DIVPRUNE, EVS, RANDOM, UNIFORM_GRID, VISIONZIP, VISPRUNER):
    register(_method)
