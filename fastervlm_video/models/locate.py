"""Where a model's files are: in a folder here, or on the hub."""

from pathlib import Path

from huggingface_hub import snapshot_download

from fastervlm_video.errors import CheckpointError

__all__ = ["locate"]

# No pickles, no code: what is not named here is not downloaded.
_SMALL_FILES = ("*.json", "*.jinja", "tokenizer.model")
_WEIGHTS = ("*.safetensors",)


def locate(model: str | Path, revision: str | None = None, *, weights: bool = True) -> tuple[str, Path]:
    """Name and local folder of a model, downloaded if need be.

    Args:
        model: a folder, or a repository id of the hub.
        revision: branch, tag or commit, for the hub only.
        weights: whether the weights are needed, too; configs and tokenizer are a few megabytes.

    Raises:
        CheckpointError: there is no such folder, and nothing can be fetched.
    """
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder.resolve().name, folder
    text = str(model)
    if isinstance(model, Path) or text.startswith(("/", ".", "~")) or text.count("/") > 1:
        raise CheckpointError(f"no model folder at {text}")
    wanted = [*_SMALL_FILES, *(_WEIGHTS if weights else ())]
    try:
        downloaded = snapshot_download(text, revision=revision, allow_patterns=wanted)
    except Exception as error:  # the hub client's and its HTTP library's errors have no common root
        raise CheckpointError(
            f"{text!r} is no folder here and cannot be fetched from the hub: {error}. Check the name, the revision "
            "and the network, or give a folder that holds the checkpoint"
        ) from error
    return text, Path(downloaded)
