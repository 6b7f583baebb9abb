"""What the rest of the project knows of an architecture: its two halves, and nothing of its name."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from fastervlm_video.errors import CheckpointError
from fastervlm_video.models.weights import Weights
from fastervlm_video.vision.tower import VisionTower

__all__ = ["LanguageHalf", "LanguageParts", "ModelAdapter"]


@dataclass(frozen=True, slots=True, eq=False)
class LanguageParts:
    """What an adapter loads for the language half.

    Attributes:
        language_model: a causal language model; ``forward(inputs_embeds=...)`` gives logits.
        projector: tower features [..., C] to language-model embeddings [..., H].
        separator: [H], the embedding of the learnt token that stands among visual ones (LLaVA-NeXT's
            ``image_newline``), on the language model's device; None if there is none.
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
        fingerprint: identity of the tower whose features the projector was trained on; token sets of
            any other tower are refused.
        separator: [H], the embedding of the learnt token that stands among visual ones (LLaVA-NeXT's
            ``image_newline``), on the language model's device; None if there is none.

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
        """Side in pixels of the square frames that the tower takes."""

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of a frame's patch grid."""

    @property
    def vision_width(self) -> int:
        """The tower's hidden size."""

    @property
    def context_length(self) -> int:
        """The language model's positions."""

    @property
    def video_token_id(self) -> int:
        """The token that stands for the video in a tokenized prompt."""

    @property
    def tower_identity(self) -> Mapping[str, object]:
        """Every setting that changes the tower's output, as plain JSON values."""

    def tower_keys(self, weights: Weights) -> Mapping[str, str]:
        """The tensors that the truncated tower uses: name in the tower to name in the checkpoint.

        Raises:
            CheckpointError: tensors are missing, unexpected or of the wrong shape.
        """

    def load_tower(self, weights: Weights, device: torch.device, dtype: torch.dtype) -> VisionTower:
        """Build the truncated tower and load its tensors, and no others.

        Raises:
            CheckpointError: tensors are missing, unexpected or of the wrong shape.
        """

    def load_language(self, weights: Weights, device: torch.device, dtype: torch.dtype) -> LanguageParts:
        """Build projector and language model and load their tensors, and no others.

        Raises:
            CheckpointError: tensors are missing, unexpected or of the wrong shape.
        """
