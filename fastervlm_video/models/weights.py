"""A checkpoint's tensors: found by name, read only when asked for, and loaded strictly.

Only safetensors files are read: they hold tensors and cannot hold code.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from fastervlm_video.errors import CheckpointError

__all__ = ["Weights", "check_names", "check_shapes", "load_strictly", "read_json"]

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
_NAMES_SHOWN = 8


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file's object.

    Raises:
        CheckpointError: it cannot be read or holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} must hold a JSON object, not a {type(content).__name__}")
    return content


@dataclass(frozen=True, slots=True)
class Weights:
    """Names of a checkpoint's tensors and the files that hold them. Files are opened only to read from them.

    Attributes:
        files: tensor name to safetensors file.
    """

    files: Mapping[str, Path]

    @classmethod
    def open(cls, folder: Path) -> "Weights":
        """Find the tensors of a checkpoint folder, in one file or sharded.

        Raises:
            CheckpointError: there are no safetensors, or the index is damaged.
        """
        if (folder / INDEX_FILE).is_file():
            return cls(_read_index(folder))
        single = folder / SINGLE_FILE
        if single.is_file():
            with _opened(single) as file:
                return cls(dict.fromkeys(file.keys(), single))
        pickled = sorted(path.name for path in folder.glob("*.bin"))
        raise CheckpointError(
            f"{folder} holds neither {SINGLE_FILE} nor {INDEX_FILE}"
            + (f", only {pickled}: pickled weights can run code and are not read." if pickled else ".")
            + " Convert the model where you trust it: load it with transformers' from_pretrained and save it with"
            " save_pretrained, which writes safetensors"
        )

    def shapes(self, keys: Iterable[str]) -> dict[str, tuple[int, ...]]:
        """Shapes of the named tensors, from the files' headers.

        Raises:
            CheckpointError: a file is missing or damaged, or a tensor is not floating-point.
        """
        shapes: dict[str, tuple[int, ...]] = {}
        for path, names in self._by_file(keys).items():
            with _opened(path) as file:
                for name in names:
                    header = _header(file, name, path)
                    if not header.get_dtype().startswith(("F", "BF")):
                        raise CheckpointError(
                            f"{name} in {path} is {header.get_dtype()}: quantized checkpoints are not supported"
                        )
                    shapes[name] = tuple(header.get_shape())
        return shapes

    def read(self, keys: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
        """The named tensors, one after the other, as stored, on the CPU; the order is that of the files.

        Raises:
            CheckpointError: a file is missing or damaged.
        """
        for path, names in self._by_file(keys).items():
            with _opened(path) as file:
                for name in names:
                    yield name, _tensor(file, name, path)

    def _by_file(self, keys: Iterable[str]) -> dict[Path, list[str]]:
        grouped: dict[Path, list[str]] = defaultdict(list)
        for key in keys:
            grouped[self.files[key]].append(key)
        return grouped


def _read_index(folder: Path) -> dict[str, Path]:
    path = folder / INDEX_FILE
    weight_map = read_json(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{path} has no weight_map")
    for name in set(weight_map.values()):
        # A downloaded index must not be able to name a file outside its folder.
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
            raise CheckpointError(f"{path} names {name!r}, which is not a safetensors file beside it")
    return {key: folder / name for key, name in weight_map.items()}


def _opened(path: Path) -> Any:  # safetensors has no type for what safe_open returns
    try:
        return safe_open(path, framework="pt", device="cpu")
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} is missing or damaged: {error}") from error


def _header(file: Any, name: str, path: Path) -> Any:
    try:
        return file.get_slice(name)
    except SafetensorError as error:
        raise CheckpointError(f"{path} does not hold {name}, which the index says it does") from error


def _tensor(file: Any, name: str, path: Path) -> Tensor:
    try:
        tensor = file.get_tensor(name)
    except SafetensorError as error:
        raise CheckpointError(f"{name} cannot be read from {path}: {error}") from error
    assert isinstance(tensor, Tensor)
    return tensor


def check_names(part: str, *, present: Iterable[str], required: Iterable[str], known: Iterable[str]) -> None:
    """Refuse tensors that a part of a model lacks or does not know.

    Args:
        part: what to call it in the message.
        present: names in the checkpoint, as the module calls them.
        required: names without which it cannot run.
        known: all names that it may have.

    Raises:
        CheckpointError: some are missing or unexpected; the message names them.
    """
    present, required = set(present), set(required)
    missing, unexpected = sorted(required - present), sorted(present - set(known) - required)
    if missing or unexpected:
        problems = [
            f"{word} {_shown(names)}" for word, names in (("lacks", missing), ("has unknown", unexpected)) if names
        ]
        raise CheckpointError(f"the checkpoint's {part} {' and '.join(problems)}")


def check_shapes(part: str, expected: Mapping[str, tuple[int, ...]], actual: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse tensors whose shapes are not what the config promises.

    Raises:
        CheckpointError: naming them, with both shapes.
    """
    wrong = [
        f"{name} is {list(shape)} and should be {list(expected[name])}"
        for name, shape in sorted(actual.items())
        if shape != expected[name]
    ]
    if wrong:
        raise CheckpointError(f"the checkpoint's {part} does not fit its config: {_shown(wrong)}")


def _shown(names: list[str]) -> str:
    more = len(names) - _NAMES_SHOWN
    return ", ".join(names[:_NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")


@torch.no_grad()
def load_strictly(part: str, module: nn.Module, keys: Mapping[str, str], weights: Weights) -> None:
    """Copy tensors into a module's parameters and persistent buffers, one at a time.

    Whatever the module holds before is overwritten entirely, so it may be uninitialised memory. Parameters that
    are tied need one of their names; if the checkpoint has several, they must agree.

    Args:
        part: what to call the module in messages.
        module: on its device and in its dtype; tensors are converted.
        keys: names in the module to names in the checkpoint.
        weights: where they are read from.

    Raises:
        CheckpointError: tensors are missing, unexpected, of the wrong shape, or tied and different.
    """
    targets = module.state_dict(keep_vars=True)
    aliases: dict[int, list[str]] = defaultdict(list)
    for name, target in targets.items():
        aliases[id(target)].append(name)
    required = [next((name for name in names if name in keys), names[0]) for names in aliases.values()]
    check_names(part, present=keys, required=required, known=targets)
    shapes = weights.shapes(keys.values())
    check_shapes(
        part,
        {name: tuple(target.shape) for name, target in targets.items()},
        {name: shapes[key] for name, key in keys.items()},
    )
    names = {key: name for name, key in keys.items()}
    loaded: set[int] = set()
    for key, tensor in weights.read(keys.values()):
        target = targets[names[key]]
        if id(target) in loaded and not torch.equal(target, tensor.to(target)):
            raise CheckpointError(
                f"the checkpoint's {part} ties {' and '.join(aliases[id(target)])}, but holds different tensors for "
                "them: set tie_word_embeddings to false in its config"
            )
        target.copy_(tensor)
        loaded.add(id(target))
