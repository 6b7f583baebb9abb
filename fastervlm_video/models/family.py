"""What LLaVA's descendants have in common: CLIP towers, a two-layer projector, a causal language model.

An architecture is a subclass of :class:`LlavaFamilyAdapter` in a module of its own, see
:mod:`fastervlm_video.models.architectures`. The same tensor has had several names: published checkpoints are of
2023 and 2024, later versions of transformers moved modules about, and save under either scheme::

    published                                   also met                               ours
    vision_tower.vision_model.encoder.…         [model.]vision_tower.[vision_model.]…  encoder.…        (a tower)
    language_model.model.layers.…               model.language_model.layers.…          model.layers.…   (language model)
    language_model.lm_head.weight               lm_head.weight                         lm_head.weight   (language model)
    multi_modal_projector.linear_1.…            model.multi_modal_projector.…          linear_1.…       (projector)
    image_newline                               model.image_newline                    image_newline    (separator)
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from threading import Lock
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import AutoModelForCausalLM, CLIPVisionConfig, CLIPVisionModel, PreTrainedConfig
from transformers.initialization import no_init_weights

from fastervlm_video.config import Medium, ModelOptions
from fastervlm_video.errors import CheckpointError
from fastervlm_video.models.base import LanguageParts
from fastervlm_video.models.weights import Weights, check_names, check_shapes, load_strictly
from fastervlm_video.vision.layout import PlainLayout, ViewLayout
from fastervlm_video.vision.preprocess import Preprocessing
from fastervlm_video.vision.tower import VisionTower, tower_depth

__all__ = ["CLIP_PROCESSORS", "LlavaFamilyAdapter"]

CLIP_PROCESSORS = frozenset({"CLIPFeatureExtractor", "CLIPImageProcessor"})
"""Names of Hugging Face's processors that do CLIP's steps, without the suffix that tells the backend."""

_PROJECTOR, _LANGUAGE = "projector", "language model"
_LAYOUTS = (
    (re.compile(r"^(?:model\.)?multi_modal_projector\."), _PROJECTOR, ""),
    (re.compile(r"^(?:language_model\.)?lm_head\."), _LANGUAGE, "lm_head."),
    (re.compile(r"^(?:language_model\.model|model\.language_model)\."), _LANGUAGE, "model."),
)
# Saved by older versions, computed from the config by this one.
_COMPUTED_BUFFERS = re.compile(r"\.(?:position_ids|inv_freq)$")
_LAYER = re.compile(r"^encoder\.layers\.(\d+)\.")
_TOWER_SETTINGS = (
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_channels",
    "image_size",
    "patch_size",
    "hidden_act",
    "layer_norm_eps",
)
_INIT_LOCK = Lock()


@contextmanager
def _uninitialised(device: torch.device) -> Iterator[None]:
    """Modules built inside are on ``device``, their parameters unset, their computed buffers right.

    transformers switches initialisation off for the whole process, hence the lock. A few parameters are drawn
    in constructors all the same; that must not move the caller's random numbers.
    """
    gpus = [device] if device.type == "cuda" else []
    with _INIT_LOCK, torch.random.fork_rng(devices=gpus), no_init_weights(), device:
        yield


class LlavaFamilyAdapter:
    """See :class:`~fastervlm_video.models.base.ModelAdapter`. A subclass says what differs, in class attributes.

    Attributes:
        model_type: ``config.model_type`` of its checkpoints.
        title: what people call it.
        example: a published checkpoint's id.
        config_class: of its configs.
        projector_class: built from a config.
        towers: by medium, the name of the tower that sees it.
        pictures_only: whether a video is shown as so many pictures, each with a placeholder of its own.
        processors: names of the image processors whose steps it takes, without the suffix that tells the backend.
        separator_key: name of the learnt separator in checkpoints, if there is one.

    Args:
        config: copied; the caller's is never changed.
        options: what may be chosen about an architecture.

    Raises:
        CheckpointError: a variant that is not supported: another tower than CLIP, frames or patches that are
            not square, features joined from several layers or with [CLS], quantized weights.
    """

    model_type: ClassVar[str]
    title: ClassVar[str]
    example: ClassVar[str]
    config_class: ClassVar[type[PreTrainedConfig]]
    projector_class: ClassVar[type[nn.Module]]
    towers: ClassVar[Mapping[Medium, str]]
    pictures_only: ClassVar[bool]
    processors: ClassVar[frozenset[str]] = CLIP_PROCESSORS
    separator_key: ClassVar[str | None] = None

    def __init__(self, config: PreTrainedConfig, options: ModelOptions | None = None) -> None:
        config, self._options = deepcopy(config), options or ModelOptions()
        vision, text = getattr(config, "vision_config", None), getattr(config, "text_config", None)
        if not isinstance(config, self.config_class) or not isinstance(vision, CLIPVisionConfig):
            tower = getattr(vision, "model_type", None)
            raise CheckpointError(f"unsupported vision tower {tower!r}: {self.title}'s must be a CLIP vision model")
        if not isinstance(text, PreTrainedConfig):
            raise CheckpointError("the config has no text_config")
        if getattr(config, "quantization_config", None) is not None:
            raise CheckpointError("quantized checkpoints are not supported: use the original weights")
        given: Any = config  # its own attributes are the subclass's
        if given.vision_feature_select_strategy != "default":
            raise CheckpointError(
                f"vision_feature_select_strategy={given.vision_feature_select_strategy!r} is not supported: with "
                "'default', [CLS] can be kept by the option keep_cls"
            )
        self._config, self._vision, self._text = given, vision, text
        side, patch = vision.image_size, vision.patch_size
        if not isinstance(side, int) or not isinstance(patch, int) or not 1 <= patch <= side:
            raise CheckpointError(f"frames and patches must be squares, got image_size={side}, patch_size={patch}")
        self.image_size = side
        self.grid = (side // patch, side // patch)
        self._depth = tower_depth(given.vision_feature_layer, vision.num_hidden_layers)

    @property
    def vision_width(self) -> int:
        """The towers' hidden size."""
        return self._vision.hidden_size

    @property
    def context_length(self) -> int:
        """The language model's positions."""
        return int(self._text.max_position_embeddings)

    def placeholder_id(self, medium: Medium) -> int:
        """The id of ``<image>`` or ``<video>``."""
        video = medium is Medium.VIDEO and not self.pictures_only
        return int(self._config.video_token_index if video else self._config.image_token_index)

    def frames_are_pictures(self, medium: Medium) -> bool:
        """Whether each frame is a picture of its own in the prompt; otherwise they stand behind one placeholder."""
        return medium is Medium.IMAGE or self.pictures_only

    def preprocessing(self, config: Mapping[str, Any], medium: Medium) -> Preprocessing:  # noqa: ARG002 - for subclasses
        """CLIP's steps, as the checkpoint's preprocessor config prescribes them."""
        names = ("video_processor_type", "image_processor_type", "feature_extractor_type")
        kind = next((config[name] for name in names if config.get(name)), None)
        if kind is not None and str(kind).removesuffix("Fast").removesuffix("Pil") not in self.processors:
            raise CheckpointError(
                f"unsupported image processor {kind!r} of a {self.title} model: supported are {sorted(self.processors)}"
            )
        return Preprocessing.from_config(config)

    def layout(self, medium: Medium, preprocessing: Preprocessing) -> ViewLayout:  # noqa: ARG002 - for subclasses
        """One view of each picture."""
        return PlainLayout(self.grid)

    def tower(self, medium: Medium) -> str:
        """The name of the tower that sees it."""
        return self.towers[medium]

    def tower_identity(self) -> Mapping[str, object]:
        """The towers' settings; of their layers only how many run, however the config counts them."""
        return {name: getattr(self._vision, name) for name in _TOWER_SETTINGS} | {"depth": self._depth}

    def tower_keys(self, weights: Weights, tower: str) -> Mapping[str, str]:
        """The tensors up to the needed layer, after checking the whole tower's names and the used shapes."""
        with torch.device("meta"):
            whole = CLIPVisionModel(deepcopy(self._vision))
        expected = {name: tuple(tensor.shape) for name, tensor in whole.state_dict().items()}
        required = {name for name in expected if _is_used(name, self._depth)}
        present, title = self._parts(weights)[tower], _spoken(tower)
        check_names(title, present=present, required=required, known=expected)
        used = {name: present[name] for name in sorted(required)}
        shapes = weights.shapes(used.values())
        check_shapes(title, expected, {name: shapes[key] for name, key in used.items()})
        return used

    def load_tower(self, weights: Weights, tower: str, device: torch.device, dtype: torch.dtype) -> VisionTower:
        """A CLIP tower with as many layers as are needed."""
        keys = self.tower_keys(weights, tower)
        vision = deepcopy(self._vision)
        vision.num_hidden_layers = self._depth
        with _uninitialised(device):
            model = CLIPVisionModel._from_config(vision, dtype=dtype, attn_implementation="sdpa")
        loaded = VisionTower(model, self._depth)
        load_strictly(_spoken(tower), loaded, keys, weights)
        return loaded

    def load_language(self, weights: Weights, device: torch.device, dtype: torch.dtype) -> LanguageParts:
        """The causal language model of ``text_config``, the projector, and the separator."""
        text = deepcopy(self._text)
        text.tie_word_embeddings = self._config.tie_word_embeddings
        with _uninitialised(device):
            language_model = AutoModelForCausalLM.from_config(text, dtype=dtype, attn_implementation="sdpa")
            projector = self.projector_class(self._config).to(dtype)
        language_model.tie_weights()
        parts = self._parts(weights)
        load_strictly(_LANGUAGE, language_model, parts[_LANGUAGE], weights)
        load_strictly(_PROJECTOR, projector, parts[_PROJECTOR], weights)
        separator = None
        if self.separator_key is not None:
            holder = nn.Module()
            holder.register_buffer("value", torch.empty(text.hidden_size, device=device, dtype=dtype))
            load_strictly(self.separator_key, holder, parts[self.separator_key], weights)
            separator = holder.get_buffer("value")
        return LanguageParts(
            language_model.requires_grad_(False).eval(), projector.requires_grad_(False).eval(), separator
        )

    def _parts(self, weights: Weights) -> dict[str, dict[str, str]]:
        """Per part of the model: name in our modules to name in the checkpoint.

        Raises:
            CheckpointError: a tensor belongs to no part, or one is there twice under two names.
        """
        known = [_PROJECTOR, _LANGUAGE, *self.towers.values(), *filter(None, [self.separator_key])]
        parts: dict[str, dict[str, str]] = {part: {} for part in known}
        for key in weights.files:
            if _COMPUTED_BUFFERS.search(key):
                continue
            part, name = self._locate(key)
            other = parts[part].setdefault(name, key)
            if other != key:
                raise CheckpointError(
                    f"the checkpoint holds one tensor of its {_spoken(part)} twice, as {other} and {key}"
                )
        return parts

    def _locate(self, key: str) -> tuple[str, str]:
        bare = key.removeprefix("model.")
        if bare == self.separator_key:
            return self.separator_key, "value"
        for tower in self.towers.values():
            if bare.startswith(f"{tower}."):
                return tower, bare.removeprefix(f"{tower}.").removeprefix("vision_model.")
        for pattern, part, prefix in _LAYOUTS:
            match = pattern.match(key)
            if match:
                return part, prefix + key[match.end() :]
        raise CheckpointError(f"the checkpoint holds {key}, which is no part of a {self.title} model")


def _is_used(name: str, depth: int) -> bool:
    layer = _LAYER.match(name)
    return int(layer[1]) < depth if layer else not name.startswith("post_layernorm.")


def _spoken(part: str) -> str:
    return part.replace("_", " ")
