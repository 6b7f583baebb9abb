"""Video-LLaVA (arXiv 2311.10122) as in Hugging Face transformers: a CLIP tower, a two-layer projector, Llama.

The same tensor has had several names. Published checkpoints are of 2024; later versions of transformers
moved modules about, and save under either scheme::

    published                                   also met                               ours
    video_tower.vision_model.encoder.…          [model.]video_tower.[vision_model.]…   encoder.…        (tower)
    language_model.model.layers.…               model.language_model.layers.…          model.layers.…   (language model)
    language_model.lm_head.weight               lm_head.weight                         lm_head.weight   (language model)
    multi_modal_projector.linear_1.…            model.multi_modal_projector.…          linear_1.…       (projector)
    image_tower.…                               model.image_tower.…                    not used for videos
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from threading import Lock

import torch
from transformers import AutoModelForCausalLM, CLIPVisionConfig, CLIPVisionModel, PreTrainedConfig, VideoLlavaConfig
from transformers.initialization import no_init_weights
from transformers.models.video_llava.modeling_video_llava import VideoLlavaMultiModalProjector

from fastervlm_video.errors import CheckpointError
from fastervlm_video.models.base import LanguageParts
from fastervlm_video.models.weights import Weights, check_names, check_shapes, load_strictly
from fastervlm_video.vision.tower import VisionTower, tower_depth

__all__ = ["VideoLlavaAdapter"]

_TOWER, _PROJECTOR, _LANGUAGE, _UNUSED = "vision tower", "projector", "language model", "image tower"
_LAYOUTS = (
    (re.compile(r"^(?:model\.)?video_tower\.(?:vision_model\.)?"), _TOWER, ""),
    (re.compile(r"^(?:model\.)?image_tower\."), _UNUSED, ""),
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


class VideoLlavaAdapter:
    """See :class:`~fastervlm_video.models.base.ModelAdapter`.

    Args:
        config: copied; the caller's is never changed.

    Raises:
        CheckpointError: a variant that is not supported: another tower than CLIP, frames or patches that are
            not square, features joined from several layers, quantized weights.
    """

    model_type = "video_llava"

    def __init__(self, config: PreTrainedConfig) -> None:
        config = deepcopy(config)
        if not isinstance(config, VideoLlavaConfig) or not isinstance(config.vision_config, CLIPVisionConfig):
            tower = getattr(getattr(config, "vision_config", None), "model_type", None)
            raise CheckpointError(
                f"unsupported vision tower {tower!r}: Video-LLaVA's tower must be a CLIP vision model"
            )
        if not isinstance(config.text_config, PreTrainedConfig):
            raise CheckpointError("the config has no text_config")
        if getattr(config, "quantization_config", None) is not None:
            raise CheckpointError("quantized checkpoints are not supported: use the original weights")
        self._config, self._vision, self._text = config, config.vision_config, config.text_config
        side, patch = self._vision.image_size, self._vision.patch_size
        if not isinstance(side, int) or not isinstance(patch, int) or not 1 <= patch <= side:
            raise CheckpointError(f"frames and patches must be squares, got image_size={side}, patch_size={patch}")
        self.image_size = side
        self.grid = (side // patch, side // patch)
        self._depth = tower_depth(config.vision_feature_layer, self._vision.num_hidden_layers)

    @property
    def vision_width(self) -> int:
        """The tower's hidden size."""
        return self._vision.hidden_size

    @property
    def context_length(self) -> int:
        """The language model's positions."""
        return int(self._text.max_position_embeddings)

    @property
    def video_token_id(self) -> int:
        """The id of ``<video>``."""
        return self._config.video_token_index

    @property
    def tower_identity(self) -> Mapping[str, object]:
        """The tower's settings; of its layers only how many run, however the config counts them."""
        return {name: getattr(self._vision, name) for name in _TOWER_SETTINGS} | {"depth": self._depth}

    def tower_keys(self, weights: Weights) -> Mapping[str, str]:
        """The tensors up to the needed layer, after checking the whole tower's names and the used shapes."""
        with torch.device("meta"):
            whole = CLIPVisionModel(deepcopy(self._vision))
        expected = {name: tuple(tensor.shape) for name, tensor in whole.state_dict().items()}
        required = {name for name in expected if _is_used(name, self._depth)}
        present = _parts(weights)[_TOWER]
        check_names(_TOWER, present=present, required=required, known=expected)
        used = {name: present[name] for name in sorted(required)}
        shapes = weights.shapes(used.values())
        check_shapes(_TOWER, expected, {name: shapes[key] for name, key in used.items()})
        return used

    def load_tower(self, weights: Weights, device: torch.device, dtype: torch.dtype) -> VisionTower:
        """A CLIP tower with as many layers as are needed."""
        keys = self.tower_keys(weights)
        vision = deepcopy(self._vision)
        vision.num_hidden_layers = self._depth
        with _uninitialised(device):
            model = CLIPVisionModel._from_config(vision, dtype=dtype, attn_implementation="sdpa")
        tower = VisionTower(model, self._depth)
        load_strictly(_TOWER, tower, keys, weights)
        return tower

    def load_language(self, weights: Weights, device: torch.device, dtype: torch.dtype) -> LanguageParts:
        """The causal language model of ``text_config``, and the projector."""
        text = deepcopy(self._text)
        text.tie_word_embeddings = self._config.tie_word_embeddings
        with _uninitialised(device):
            language_model = AutoModelForCausalLM.from_config(text, dtype=dtype, attn_implementation="sdpa")
            projector = VideoLlavaMultiModalProjector(self._config).to(dtype)
        language_model.tie_weights()
        parts = _parts(weights)
        load_strictly(_LANGUAGE, language_model, parts[_LANGUAGE], weights)
        load_strictly(_PROJECTOR, projector, parts[_PROJECTOR], weights)
        return LanguageParts(language_model.requires_grad_(False).eval(), projector.requires_grad_(False).eval())


def _is_used(name: str, depth: int) -> bool:
    layer = _LAYER.match(name)
    return int(layer[1]) < depth if layer else not name.startswith("post_layernorm.")


def _parts(weights: Weights) -> dict[str, dict[str, str]]:
    """Per part of the model: name in our modules to name in the checkpoint.

    Raises:
        CheckpointError: a tensor belongs to no part, or one is there twice under two names.
    """
    parts: dict[str, dict[str, str]] = {_TOWER: {}, _PROJECTOR: {}, _LANGUAGE: {}, _UNUSED: {}}
    for key in weights.files:
        if _COMPUTED_BUFFERS.search(key):
            continue
        part, name = _locate(key)
        other = parts[part].setdefault(name, key)
        if other != key:
            raise CheckpointError(f"the checkpoint holds one tensor of its {part} twice, as {other} and {key}")
    return parts


def _locate(key: str) -> tuple[str, str]:
    for pattern, part, prefix in _LAYOUTS:
        match = pattern.match(key)
        if match:
            return part, prefix + key[match.end() :]
    raise CheckpointError(f"the checkpoint holds {key}, which is no part of a Video-LLaVA model")
