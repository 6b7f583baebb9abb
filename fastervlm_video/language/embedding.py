"""From a prompt to the language model's input."""

import torch
from torch import Tensor

from fastervlm_video.errors import InvalidRequestError
from fastervlm_video.language.prompt import Prompt
from fastervlm_video.models.base import LanguageHalf

__all__ = ["embed_prompt", "project"]


def project(half: LanguageHalf, visual: Tensor, separators: tuple[int, ...] = ()) -> Tensor:
    """Visual tokens as the language model's input, on its device and in its dtype.

    Args:
        half: projector and, where there are separators, their embedding.
        visual: tower features [n, C].
        separators: at which of the n + len(separators) visual tokens the model's separator stands; ascending.

    Returns:
        [n + len(separators), H].

    Raises:
        InvalidRequestError: the model has no separator.
    """
    embedding = half.language_model.get_input_embeddings().weight
    assert isinstance(embedding, Tensor)
    weight = next(half.projector.parameters(), embedding)
    projected: Tensor = half.projector(visual.to(weight.device, weight.dtype))
    projected = projected.to(embedding.device, embedding.dtype)
    if not separators:
        return projected
    if half.separator is None:
        raise InvalidRequestError(f"the model has no separator, but {len(separators)} visual tokens shall be one")
    between = torch.zeros(len(projected) + len(separators), dtype=torch.bool)
    between[list(separators)] = True
    between = between.to(projected.device)
    rows = projected.new_empty(len(between), projected.shape[1])
    rows[between] = half.separator.to(projected)
    rows[~between] = projected
    return rows


def embed_prompt(half: LanguageHalf, prompt: Prompt, visual: Tensor, separators: tuple[int, ...] = ()) -> Tensor:
    """A prompt as the language model's input, [len(prompt), H]; only kept tokens are projected. See :func:`project`."""
    embedding = half.language_model.get_input_embeddings()
    device = embedding.weight.device
    assert isinstance(device, torch.device)
    ids = torch.tensor(prompt.token_ids([-1] * prompt.num_visual), dtype=torch.long, device=device)
    embedded: Tensor = embedding(ids.clamp(min=0))
    return embedded.index_put((ids < 0,), project(half, visual, separators))
