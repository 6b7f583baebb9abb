"""What a checkpoint's small files say of it: its architecture, and how pictures are made ready for it. No weights."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, PreTrainedConfig

from fastervlm_video.config import Medium, ModelOptions
from fastervlm_video.errors import CheckpointError
from fastervlm_video.models.base import ModelAdapter
from fastervlm_video.models.registry import adapter_for, require_supported
from fastervlm_video.models.weights import read_json
from fastervlm_video.vision.layout import ViewLayout
from fastervlm_video.vision.preprocess import Preprocessing

__all__ = ["CONFIG_ERRORS", "Blueprint"]

CONFIG_ERRORS = (OSError, ValueError, TypeError, KeyError, AttributeError, StrictDataclassError)
"""What transformers raises where a checkpoint's small files make no sense to it."""

_OF_VIDEOS, _OF_PICTURES = "video_preprocessor_config.json", "preprocessor_config.json"
_PREPROCESSING = {
    Medium.VIDEO: ("video_processor", _OF_VIDEOS, _OF_PICTURES, "image_processor"),
    Medium.IMAGE: ("image_processor", _OF_PICTURES, "video_processor", _OF_VIDEOS),
}


@dataclass(frozen=True, slots=True, eq=False)
class Blueprint:
    """An architecture at one config, and its preprocessing by medium.

    Attributes:
        config: not to be changed.
        adapter: what knows the architecture.
        preprocessing: what happens before the tower that sees a medium.
    """

    config: PreTrainedConfig
    adapter: ModelAdapter
    preprocessing: Mapping[Medium, Preprocessing]

    @classmethod
    def read(cls, folder: Path, options: ModelOptions | None = None) -> Self:
        """Of a checkpoint's folder.

        Raises:
            CheckpointError: the files are missing or make no sense, or the architecture, or this variant of it,
                is not supported.
        """
        require_supported(read_json(folder / "config.json").get("model_type"))
        try:
            config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        except CONFIG_ERRORS as error:
            raise CheckpointError(f"{folder / 'config.json'} is not a usable config: {error}") from error
        adapter = adapter_for(config, options)
        return cls(config, adapter, {medium: _read_preprocessing(folder, adapter, medium) for medium in Medium})

    @classmethod
    def of_config(cls, config: PreTrainedConfig, options: ModelOptions | None = None) -> Self:
        """Of a config alone, with CLIP's usual preprocessing.

        Raises:
            CheckpointError: the architecture, or this variant of it, is not supported.
        """
        adapter = adapter_for(config, options)
        side = adapter.image_size
        usual = {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}
        return cls(config, adapter, {medium: adapter.preprocessing(usual, medium) for medium in Medium})

    def layout(self, medium: Medium = Medium.VIDEO) -> ViewLayout:
        """How views make up pictures, and tokens a prompt."""
        return self.adapter.layout(medium, self.preprocessing[medium])


def _read_preprocessing(folder: Path, adapter: ModelAdapter, medium: Medium) -> Preprocessing:
    """The adapter's reading of the config for a medium, which must end in views of the tower's size."""
    preprocessing = adapter.preprocessing(_find_preprocessing(folder, medium), medium)
    size = (adapter.image_size, adapter.image_size)
    if preprocessing.output_size != size:
        raise CheckpointError(
            f"{folder}: the preprocessor config makes frames of {preprocessing.output_size} (height, width), "
            f"the tower takes {size}"
        )
    return preprocessing


def _find_preprocessing(folder: Path, medium: Medium) -> dict[str, Any]:
    """In the order of preference of Hugging Face's processors for the medium; what is nested is in another file."""
    nested = read_json(folder / "processor_config.json") if (folder / "processor_config.json").is_file() else {}
    for place in _PREPROCESSING[medium]:
        if place.endswith(".json"):
            if (folder / place).is_file():
                return read_json(folder / place)
        elif isinstance(nested.get(place), dict):
            return dict(nested[place])
    raise CheckpointError(f"{folder} holds no preprocessor_config.json, so how to treat frames is not known")
