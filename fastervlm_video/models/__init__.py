"""One adapter per architecture: how to find, load and lay out its two halves."""

from fastervlm_video.models.base import LanguageHalf, LanguageParts, ModelAdapter
from fastervlm_video.models.blueprint import Blueprint
from fastervlm_video.models.checkpoint import Checkpoint
from fastervlm_video.models.locate import locate
from fastervlm_video.models.placement import resolve_device, resolve_dtype
from fastervlm_video.models.registry import adapter_for, adapters, supported_model_types
from fastervlm_video.models.weights import Weights

__all__ = [
    "Blueprint",
    "Checkpoint",
    "LanguageHalf",
    "LanguageParts",
    "ModelAdapter",
    "Weights",
    "adapter_for",
    "adapters",
    "locate",
    "resolve_device",
    "resolve_dtype",
    "supported_model_types",
]
