"""A model on disk or on the hub: opened once, and either half loaded from it without the other."""

import hashlib
import json
from collections.abc import Hashable, Mapping
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoTokenizer, GenerationConfig, PreTrainedConfig, PreTrainedTokenizerBase

from fastervlm_video.config import Medium, ModelOptions
from fastervlm_video.errors import CheckpointError
from fastervlm_video.models.base import LanguageHalf, ModelAdapter
from fastervlm_video.models.blueprint import CONFIG_ERRORS, Blueprint
from fastervlm_video.models.locate import locate
from fastervlm_video.models.placement import AUTO, resolve_device, resolve_dtype
from fastervlm_video.models.weights import Weights, read_json
from fastervlm_video.vision.encoder import VisionEncoder
from fastervlm_video.vision.layout import ViewLayout
from fastervlm_video.vision.preprocess import Preprocessing

__all__ = ["Checkpoint"]

_FINGERPRINT_VERSION = 1


class Checkpoint:
    """A Hugging Face checkpoint folder whose architecture, config and preprocessing are known to be supported.

    Opening reads small files only. Use :meth:`open`.

    Attributes:
        name: the hub's repository id, or the folder's name.
        folder: where its files are.
        config: the checkpoint's config; not to be changed.
        adapter: what knows the architecture.
        weights: where each tensor is.
    """

    def __init__(
        self,
        *,
        name: str,
        folder: Path,
        config: PreTrainedConfig,
        adapter: ModelAdapter,
        weights: Weights,
        preprocessing: Mapping[Medium, Preprocessing],
    ) -> None:
        self.name = name
        self.folder = folder
        self.config = config
        self.adapter = adapter
        self.weights = weights
        self._preprocessing = preprocessing
        self._fingerprints: dict[str, str] = {}

    @classmethod
    def open(
        cls, model: str | Path, revision: str | None = None, *, options: ModelOptions | None = None
    ) -> "Checkpoint":
        """Open a local folder, or download a repository of the hub (once; it is kept in the hub's cache).

        Code in checkpoints is never run, and only safetensors weights are read.

        Args:
            model: a folder, or a repository id such as ``LanguageBind/Video-LLaVA-7B-hf``.
            revision: branch, tag or commit, for the hub only.
            options: what may be chosen about its architecture.

        Raises:
            CheckpointError: it cannot be found, or is of a kind that is not supported.
        """
        name, folder = locate(model, revision)
        blueprint = Blueprint.read(folder, options)
        return cls(
            name=name,
            folder=folder,
            config=blueprint.config,
            adapter=blueprint.adapter,
            weights=Weights.open(folder),
            preprocessing=blueprint.preprocessing,
        )

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of a frame's patch grid."""
        return self.adapter.grid

    @property
    def patches_per_frame(self) -> int:
        """Patches in one frame before pruning."""
        return self.grid[0] * self.grid[1]

    @property
    def vision_width(self) -> int:
        """The tower's hidden size."""
        return self.adapter.vision_width

    @property
    def context_length(self) -> int:
        """Most positions of the language model, prompt and answer together."""
        return self.adapter.context_length

    def preprocessing(self, medium: Medium = Medium.VIDEO) -> Preprocessing:
        """What happens to frames before the tower."""
        return self._preprocessing[medium]

    def layout(self, medium: Medium = Medium.VIDEO) -> ViewLayout:
        """How views make up pictures, and tokens a prompt."""
        return self.adapter.layout(medium, self._preprocessing[medium])

    def placeholder(self, medium: Medium = Medium.VIDEO) -> str:
        """The token that stands for a picture or a video in a prompt.

        Raises:
            CheckpointError: there is no tokenizer that can be loaded, or it has no such token.
        """
        identifier = self.adapter.placeholder_id(medium)
        token = self.tokenizer.convert_ids_to_tokens([identifier])[0]
        if token is None:
            raise CheckpointError(f"{self.folder}: the tokenizer has no token {identifier}, the config's for {medium}s")
        return str(token)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The checkpoint's tokenizer, with the checkpoint's chat template.

        Raises:
            CheckpointError: there is none that can be loaded.
        """
        try:
            tokenizer = AutoTokenizer.from_pretrained(self.folder, local_files_only=True, trust_remote_code=False)
        except (*CONFIG_ERRORS, ImportError) as error:
            raise CheckpointError(f"{self.folder} holds no usable tokenizer: {error}") from error
        legacy_template = self.folder / "chat_template.json"
        if tokenizer.chat_template is None and legacy_template.is_file():
            tokenizer.chat_template = read_json(legacy_template).get("chat_template")
        assert isinstance(tokenizer, PreTrainedTokenizerBase)
        return tokenizer

    def tower_fingerprint(self, medium: Medium = Medium.VIDEO) -> str:
        """SHA-256 over the settings and the bytes of every tensor that features are computed from.

        Equal for equal towers of one architecture, whatever their tensors are called and however they are spread
        over files; different for the same weights in another dtype. A tower is read once, but not built.

        Raises:
            CheckpointError: its tensors are missing, unexpected, damaged or of the wrong shape.
        """
        tower = self.adapter.tower(medium)
        if tower not in self._fingerprints:
            names = {key: name for name, key in self.adapter.tower_keys(self.weights, tower).items()}
            content = {
                "version": _FINGERPRINT_VERSION,
                "model_type": self.adapter.model_type,
                "settings": dict(self.adapter.tower_identity()),
                "tensors": {names[key]: _digest(tensor) for key, tensor in self.weights.read(names)},
            }
            self._fingerprints[tower] = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
        return self._fingerprints[tower]

    def vision_of(self, medium: Medium) -> Hashable:
        """What is equal for media that one vision half serves: the tower, and what happens to frames before it."""
        return self.adapter.tower(medium), self.preprocessing(medium)

    def load_vision(
        self,
        device: str | torch.device = AUTO,
        dtype: str | torch.dtype = AUTO,
        *,
        medium: Medium = Medium.VIDEO,
        compile_tower: bool = False,
    ) -> VisionEncoder:
        """The vision half: a tower up to the layer whose output is used; no other tensor is read.

        Args:
            device: ``auto`` is the GPU if there is one.
            dtype: ``auto`` is float32 on a CPU and bfloat16 on a GPU.
            medium: whose tower; the same one may serve both.
            compile_tower: compile the tower, see :class:`~fastervlm_video.vision.VisionEncoder`.

        Raises:
            CheckpointError: its tensors are missing, unexpected or of the wrong shape.
        """
        placed = resolve_device(device)
        tower = self.adapter.load_tower(self.weights, self.adapter.tower(medium), placed, resolve_dtype(dtype, placed))
        return VisionEncoder(
            tower, self.preprocessing(medium), self.tower_fingerprint(medium), compile_tower=compile_tower
        )

    def load_language(self, device: str | torch.device = AUTO, dtype: str | torch.dtype = AUTO) -> LanguageHalf:
        """The language half: projector and language model; the tower is read for its fingerprint only.

        Args:
            device: ``auto`` is the GPU if there is one.
            dtype: ``auto`` is float32 on a CPU and bfloat16 on a GPU.

        Raises:
            CheckpointError: its tensors are missing, unexpected or of the wrong shape.
        """
        placed = resolve_device(device)
        parts = self.adapter.load_language(self.weights, placed, resolve_dtype(dtype, placed))
        if (self.folder / "generation_config.json").is_file():
            parts.language_model.generation_config = GenerationConfig.from_pretrained(self.folder)
        return LanguageHalf(
            language_model=parts.language_model,
            projector=parts.projector,
            vision_width=self.vision_width,
            context_length=self.context_length,
            fingerprint=self.tower_fingerprint(),
            separator=parts.separator,
        )

    def __repr__(self) -> str:
        return f"Checkpoint({self.name}, {self.adapter.model_type}, {self.folder})"


def _digest(tensor: Tensor) -> str:
    digest = hashlib.sha256(f"{tensor.dtype} {list(tensor.shape)}\n".encode())
    digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
