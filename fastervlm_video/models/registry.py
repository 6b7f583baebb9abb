"""Architectures by ``config.model_type``: whatever stands in :mod:`fastervlm_video.models.architectures`."""

import importlib
import pkgutil
from functools import cache

from transformers import PreTrainedConfig

from fastervlm_video.config import ModelOptions
from fastervlm_video.errors import CheckpointError
from fastervlm_video.models import architectures
from fastervlm_video.models.base import ModelAdapter
from fastervlm_video.models.family import LlavaFamilyAdapter

__all__ = ["adapter_for", "adapters", "require_supported", "supported_model_types"]


@cache
def adapters() -> dict[str, type[LlavaFamilyAdapter]]:
    """All architectures by ``config.model_type``, sorted."""
    names = sorted(module.name for module in pkgutil.iter_modules(architectures.__path__))
    found = [importlib.import_module(f"{architectures.__name__}.{name}").ADAPTER for name in names]
    return {adapter.model_type: adapter for adapter in sorted(found, key=lambda adapter: str(adapter.model_type))}


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
