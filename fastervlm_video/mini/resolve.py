"""From what a user calls a model to where it is."""

from dataclasses import dataclass
from pathlib import Path

from fastervlm_video.mini.checkpoint import MINI_NAME, ensure_mini_checkpoint

__all__ = ["MINI_ALIAS", "ResolvedModel", "resolve_model"]

MINI_ALIAS = "mini"


@dataclass(frozen=True, slots=True)
class ResolvedModel:
    """A model that was asked for.

    Attributes:
        location: a folder, or a Hugging Face id.
        name: what answers call it.
        trained: whether its answers can mean anything.
    """

    location: str | Path
    name: str
    trained: bool


def resolve_model(model: str | Path, cache_dir: Path | None = None) -> ResolvedModel:
    """Find a model by what a user calls it.

    Args:
        model: ``mini`` (made on first use), a folder, or a Hugging Face id.
        cache_dir: where the mini model is kept; None is ``~/.cache/fastervlm-video``.
    """
    if str(model) in {MINI_ALIAS, MINI_NAME}:
        folder = ensure_mini_checkpoint(cache_dir or Path.home() / ".cache" / "fastervlm-video")
        return ResolvedModel(folder, MINI_NAME, trained=False)
    return ResolvedModel(model, str(model), trained=True)
