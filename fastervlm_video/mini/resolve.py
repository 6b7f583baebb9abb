"""From what a user calls a model to where it is."""

from dataclasses import dataclass
from pathlib import Path

from fastervlm_video.errors import CheckpointError
from fastervlm_video.mini.checkpoint import MINI_NAME

__all__ = ["MINI_ALIAS", "ResolvedModel", "resolve_model"]

MINI_ALIAS = "mini"
_WEIGHTS = Path(__file__).parent / "weights"


@dataclass(frozen=True, slots=True)
class ResolvedModel:
    """A model that was asked for.

    Attributes:
        location: a folder, or a Hugging Face id.
        name: what answers call it.
    """

    location: str | Path
    name: str


def resolve_model(model: str | Path) -> ResolvedModel:
    """Find a model by what a user calls it.

    Args:
        model: ``mini`` (comes with the package), a folder, or a Hugging Face id.

    Raises:
        CheckpointError: the mini model is asked for, and was not installed with the package.
    """
    if str(model) not in {MINI_ALIAS, MINI_NAME}:
        return ResolvedModel(model, str(model))
    if not (_WEIGHTS / "config.json").is_file():
        raise CheckpointError(
            f"the mini model's files are not in {_WEIGHTS}: install the package again, or make them with "
            "'fastervlm-video train-mini'"
        )
    return ResolvedModel(_WEIGHTS, MINI_NAME)
