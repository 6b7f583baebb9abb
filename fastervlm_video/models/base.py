"""What the rest of the project knows of an architecture: its two halves, and nothing of its name."""

from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel

__all__ = ["LanguageHalf"]


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
    """

    language_model: PreTrainedModel
    projector: nn.Module
    vision_width: int
    context_length: int
    fingerprint: str
