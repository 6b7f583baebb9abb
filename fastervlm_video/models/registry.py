"""Architectures by ``config.model_type``: what stands in :mod:`fastervlm_video.models.architectures`, and plug-ins'."""

import importlib
import logging
import pkgutil
from functools import cache

from transformers import PreTrainedConfig

from fastervlm_video.config import ModelOptions
from fastervlm_video.errors import CheckpointError
from fastervlm_video.models import architectures
from fastervlm_video.models.base import ModelAdapter
from fastervlm_video.models.family import LlavaFamilyAdapter
from fastervlm_video.plugins import plugins

__all__ = ["adapter_for", "adapters", "require_supported", "supported_model_types"]

logger = logging.getLogger(__name__)


@cache
def adapters() -> dict[str, type[LlavaFamilyAdapter]]:
    """All architectures by ``config.model_type``, sorted; those of installed plug-ins included."""
    names = sorted(module.name for module in pkgutil.iter_modules(architectures.__path__))
    modules = [importlib.import_module(f"{architectures.__name__}.{name}") for name in names]
    found: dict[str, type[LlavaFamilyAdapter]] = {}
    for module in (*modules, *plugins()):
        adapter = getattr(module, "ADAPTER", None)
        if adapter is not None and found.setdefault(adapter.model_type, adapter) is not adapter:
            logger.error("%s is left out: there is an architecture %r already", module.__name__, adapter.model_type)
    return dict(sorted(found.items()))


def adapter_for(config: PreTrainedConfig, options: ModelOptions | None = None) -> ModelAdapter:
    """The adapter of a config's architecture.

    Raises:
        CheckpointError: the architecture, or this variant of it, is not supported.
    """
    require_supported(config.model_type)
    return adapters()[config.model_type](config, options)


def require_supported(model_type: object) -> None:
    """Refuse what there is no adapter for; asked before a config is built, as that may fail less clearly.

    Args:
        model_type: whatever stands in the checkpoint's ``config.json``.

    Raises:
        CheckpointError: the architecture is not supported.
    """
    if model_type not in supported_model_types():
        raise CheckpointError(
            f"unsupported model_type {model_type!r}: supported are {', '.join(supported_model_types())}"
        )


def supported_model_types() -> tuple[str, ...]:
    """All ``model_type`` values there is an adapter for, sorted."""
    return tuple(adapters())
