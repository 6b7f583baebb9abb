"""Architectures by ``config.model_type``."""

from transformers import PreTrainedConfig

from fastervlm_video.config import ModelOptions
from fastervlm_video.errors import CheckpointError
from fastervlm_video.models.architectures import adapters
from fastervlm_video.models.base import ModelAdapter

__all__ = ["adapter_for", "require_supported", "supported_model_types"]


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
