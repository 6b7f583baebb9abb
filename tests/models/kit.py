"""Ways to spoil a checkpoint, shared by the tests of this folder."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from fastervlm_video.models import Checkpoint, LanguageHalf
from fastervlm_video.vision import VisionEncoder
from tests.checkpoints import WEIGHTS

torch.set_num_threads(1)

LAYER = "video_tower.encoder.layers"
DEPTH = 3  # -2 of 4 layers
Change = Callable[[dict[str, Tensor]], dict[str, Tensor]]
Edit = Callable[[dict[str, Any]], None]


def edit_json(path: Path, edit: Edit) -> None:
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


def without(*prefixes: str) -> Change:
    return lambda tensors: {name: t for name, t in tensors.items() if not name.startswith(prefixes)}


def changed(name: str, change: Callable[[Tensor], Tensor]) -> Change:
    def apply(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return tensors | {name: change(tensors[name])}

    return apply


def shard_by_tensor(folder: Path) -> dict[str, Path]:
    """One file per tensor, so that a missing file is a tensor that nobody may read."""
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    files = {name: f"model-{i:05}.safetensors" for i, name in enumerate(sorted(tensors))}
    for name, file in files.items():
        save_file({name: tensors[name]}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))
    return {name: folder / file for name, file in files.items()}


def loads_vision(checkpoint: Checkpoint) -> VisionEncoder:
    return checkpoint.load_vision("cpu")


def loads_language(checkpoint: Checkpoint) -> LanguageHalf:
    return checkpoint.load_language("cpu")


def set_vision(**values: object) -> Edit:
    return lambda config: config["vision_config"].update(values)


def drop(*names: str) -> Callable[[Path], None]:
    def unlink(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return unlink
