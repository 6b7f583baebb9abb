"""From a prompt to the language model's input."""

import torch
from torch import Tensor

from fastervlm_video.language.prompt import Prompt
from fastervlm_video.models.base import LanguageHalf

__all__ = ["embed_prompt", "project"]


def project(half: LanguageHalf, visual: Tensor) -> Tensor:
    """Tower features [n, C] as language-model embeddings [n, H], on the model's device and in its dtype."""
    embedding = half.language_model.get_input_embeddings().weight
    assert isinstance(embedding, Tensor)
    weight = next(half.projector.parameters(), embedding)
    projected: Tensor = half.projector(visual.to(weight.device, weight.dtype))
    return projected.to(embedding.device, embedding.dtype)


def embed_prompt(half: LanguageHalf, prompt: Prompt, visual: Tensor) -> Tensor:
    """A prompt as the language model's input, [len(prompt), H]; only kept tokens are projected."""
    embedding = half.language_model.get_input_embeddings()
    device = embedding.weight.device
    assert isinstance(device, torch.device)

    def text(ids: tuple[int, ...]) -> Tensor:
        embedded: Tensor = embedding(torch.tensor(ids, dtype=torch.long, device=device))
        return embedded

    return torch.cat([text(prompt.ids_before), project(half, visual), text(prompt.ids_after)])
