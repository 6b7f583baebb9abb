"""What the rest of the project knows of an architecture: its two halves, and nothing of its name."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from fastervlm_video.config import Medium
from fastervlm_video.errors import CheckpointError
from fastervlm_video.models.weights import Weights
from fastervlm_video.vision.layout import ViewLayout
from fastervlm_video.vision.preprocess import Preprocessing
from fastervlm_video.vision.tower import VisionTower

__all__ = ["LanguageHalf", "LanguageParts", "ModelAdapter"]


@dataclass(frozen=True, slots=True, eq=False)
class LanguageParts:
    """What an adapter loads for the language half.

    Attributes:
        language_model: a causal language model; ``forward(inputs_embeds=...)`` gives logits.
        projector: tower features [..., C] to language-model embeddings [..., H].
        separator: floating [H], the learnt embedding that stands between rows of a picture, if the architecture has
            one; on the language model's device.
    """

    language_model: PreTrainedModel
    projector: nn.Module
    separator: Tensor | None = None


@dataclass(frozen=True, slots=True, eq=False)
class LanguageHalf:
    """Projector and language model of a checkpoint, without its vision tower.

    Attributes:
        language_model: a causal language model; ``forward(inputs_embeds=...)`` gives logits.
        projector: tower features [..., C] to language-model embeddings [..., H].
        vision_width: C, what the projector takes.
        context_length: most positions, prompt and answer together.
        fingerprint: identity of the towers whose features the projector was trained on.
        separator: floating [H], the learnt embedding that stands between rows of a picture, if the architecture has
            one; on the language model's device.

    Raises:
        CheckpointError: the separator is not as wide as the language model's embeddings.
    """

    language_model: PreTrainedModel
    projector: nn.Module
    vision_width: int
    context_length: int
    fingerprint: str
    separator: Tensor | None = None

    def __post_init__(self) -> None:
        if self.separator is None:
            return
        embedding = self.language_model.get_input_embeddings().weight
        assert isinstance(embedding, Tensor)
        width = embedding.shape[-1]
        if self.separator.shape != (width,):
            raise CheckpointError(f"the separator must be [{width}], got {list(self.separator.shape)}")


class ModelAdapter(Protocol):
    """One architecture at one config: where the halves' tensors are, and how the halves are built."""

    @property
    def model_type(self) -> str:
        """``config.model_type`` of the checkpoints it is for."""

    @property
    def image_size(self) -> int:
        """Side in pixels of the square views that the towers take."""

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of a view's patch grid."""

    @property
    def vision_width(self) -> int:
        """The towers' hidden size."""

    @property
    def context_length(self) -> int:
        """The language model's positions."""

    def placeholder_id(self, medium: Medium) -> int:
        """The token that stands for a picture or a video in a tokenized prompt."""

    def frames_are_pictures(self, medium: Medium) -> bool:
        """Whether each frame is a picture of its own in the prompt; otherwise they stand behind one placeholder."""

    def preprocessing(self, config: Mapping[str, Any], medium: Medium) -> Preprocessing:
        """What the checkpoint's preprocessor config, parsed, prescribes.

        Raises:
            CheckpointError: a step that is not supported.
        """

    def layout(self, medium: Medium, preprocessing: Preprocessing) -> ViewLayout:
        """How views make up pictures, and tokens a prompt."""

    def tower(self, medium: Medium) -> str:
        """Which of the checkpoint's towers sees it."""

    def tower_identity(self) -> Mapping[str, object]:
        """Every setting that changes the towers' output, as plain JSON values."""

    def tower_keys(self, weights: Weights, tower: str) -> Mapping[str, str]:
        """The tensors that a truncated tower uses: name in the tower to name in the checkpoint.

        Raises:
            CheckpointError: tensors are missing, unexpected or of the wrong shape.
        """

    def load_tower(self, weights: Weights, tower: str, device: torch.device, dtype: torch.dtype) -> VisionTower:
        """Build a truncated tower and load its tensors, and no others.

        Raises:
            CheckpointError: tensors are missing, unexpected or of the wrong shape.
        """

    def load_language(self, weights: Weights, device: torch.device, dtype: torch.dtype) -> LanguageParts:
        """Build projector and language model and load their tensors, and no others.

        Raises:
            CheckpointError: tensors are missing, unexpected or of the wrong shape.
        """
