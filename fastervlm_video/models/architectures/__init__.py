"""One module per architecture. A module that defines ``ADAPTER`` is all there is to adding one.

``ADAPTER`` is a class like :class:`~fastervlm_video.models.family.LlavaFamilyAdapter`, which most architectures can
inherit from; nothing else in the project names an architecture.
"""

import importlib
import pkgutil
from functools import cache

from fastervlm_video.models.family import LlavaFamilyAdapter

__all__ = ["adapters"]


@cache
def adapters() -> dict[str, type[LlavaFamilyAdapter]]:
    """All architectures by ``config.model_type``, sorted."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__))
    found = [importlib.import_module(f"{__name__}.{name}").ADAPTER for name in names]
    return {adapter.model_type: adapter for adapter in sorted(found, key=lambda adapter: str(adapter.model_type))}
