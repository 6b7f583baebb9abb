"""Small checkpoints with every tensor random, in all the layouts that are met, and frames to feed them."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    CLIPImageProcessor,
    GenerationConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessor,
    PreTrainedModel,
)

from fastervlm_video.media.frames import FrameBatch, VideoInfo
from fastervlm_video.mini.checkpoint import MiniSize, mini_config, save_mini_checkpoint
from fastervlm_video.mini.vocabulary import build_tokenizer

WEIGHTS = "model.safetensors"

SMALL = MiniSize(
    image_size=32,
    patch_size=8,
    vision_width=24,
    vision_layers=4,
    vision_heads=3,
    text_width=32,
    text_layers=2,
    text_heads=2,
    context_length=512,
)


def perturb(name: str, tensor: Tensor, generator: torch.Generator) -> Tensor:
    """A tensor no longer as initialised: biases are not 0, norms not 1, attention not flat."""
    noise = torch.randn(tensor.shape, generator=generator)
    if tensor.ndim == 1:
        return tensor + 0.2 * noise
    sharpened = 6.0 if re.search(r"(video|image|vision)_tower.*[qk]_proj|^encoder.*[qk]_proj", name) else 1.0
    return sharpened * tensor + 0.02 * noise


@torch.no_grad()
def randomise(module: nn.Module, seed: int) -> None:
    """Perturb every parameter of a tower."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        parameter.copy_(perturb(name, parameter, generator))


def save_random_checkpoint(folder: Path, size: MiniSize = SMALL, seed: int = 0) -> Path:
    """A mini checkpoint in which no tensor has the value that leaving it out would give it."""
    save_mini_checkpoint(folder, size=size, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    rewrite(folder, lambda tensors: {name: perturb(name, tensors[name], generator) for name in sorted(tensors)})
    return folder


PINPOINTS = [[32, 64], [64, 32], [64, 64], [96, 32], [32, 96]]
"""LLaVA-NeXT's, at the size of :data:`SMALL`."""


def save_random_llava(folder: Path, size: MiniSize = SMALL, seed: int = 0) -> Path:
    """A LLaVA-1.5 of the same dimensions, as Hugging Face saves it, every tensor random."""
    mini = mini_config(size)
    config = LlavaConfig(
        vision_config=mini.vision_config,
        text_config=mini.text_config,
        image_token_index=mini.image_token_index,
        vision_feature_layer=size.feature_layer,
        image_seq_length=(size.image_size // size.patch_size) ** 2,
    )
    edge, crop = {"shortest_edge": size.image_size}, {"height": size.image_size, "width": size.image_size}
    return _save_with_processors(
        LlavaForConditionalGeneration(config), CLIPImageProcessor(size=edge, crop_size=crop), folder, seed
    )


def save_random_llava_next(folder: Path, size: MiniSize = SMALL, seed: int = 0) -> Path:
    """A LLaVA-NeXT of the same dimensions, as Hugging Face saves it, every tensor random."""
    mini = mini_config(size)
    config = LlavaNextConfig(
        vision_config=mini.vision_config,
        text_config=mini.text_config,
        image_token_index=mini.image_token_index,
        vision_feature_layer=size.feature_layer,
        image_grid_pinpoints=PINPOINTS,
        image_seq_length=(size.image_size // size.patch_size) ** 2,
    )
    edge, crop = {"shortest_edge": size.image_size}, {"height": size.image_size, "width": size.image_size}
    processor = LlavaNextImageProcessor(size=edge, crop_size=crop, image_grid_pinpoints=PINPOINTS)
    return _save_with_processors(LlavaNextForConditionalGeneration(config), processor, folder, seed)


def _save_with_processors(model: PreTrainedModel, processor: object, folder: Path, seed: int) -> Path:
    tokenizer = build_tokenizer()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(perturb(name, torch.randn(parameter.shape, generator=generator) * 0.1, generator))
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    processor.save_pretrained(folder)  # type: ignore[attr-defined]  # a Hugging Face processor
    return folder


def rewrite(folder: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> Path:
    """Replace the tensors of an unsharded checkpoint."""
    path = folder / WEIGHTS
    changed = {name: tensor.contiguous() for name, tensor in change(load_file(path)).items()}
    save_file(changed, path, metadata={"format": "pt"})
    return folder


def copy_checkpoint(source: Path, target: Path) -> Path:
    """The same checkpoint elsewhere."""
    shutil.copytree(source, target)
    return target


def renamed(pairs: list[tuple[str, str]]) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    """A change for :func:`rewrite`: the first pattern that matches a name's beginning is replaced."""

    def rename(name: str) -> str:
        for pattern, replacement in pairs:
            new, count = re.subn(f"^{pattern}", replacement, name)
            if count:
                return new
        return name

    return lambda tensors: {rename(name): tensor for name, tensor in tensors.items()}


LAYOUTS: dict[str, list[tuple[str, str]]] = {
    "as saved": [],
    "published": [(r"(video|image|vision)_tower\.", r"\1_tower.vision_model.")],
    "model first": [
        (r"language_model\.lm_head\.", "lm_head."),
        (r"language_model\.model\.", "model.language_model."),
        (r"(video|image|vision)_tower\.", r"model.\1_tower."),
        (r"image_newline$", "model.image_newline"),
        (r"multi_modal_projector\.", "model.multi_modal_projector."),
    ],
    "model first, vision_model": [
        (r"language_model\.lm_head\.", "lm_head."),
        (r"language_model\.model\.", "model.language_model."),
        (r"(video|image|vision)_tower\.", r"model.\1_tower.vision_model."),
        (r"image_newline$", "model.image_newline"),
        (r"multi_modal_projector\.", "model.multi_modal_projector."),
    ],
}


def random_frames(count: int, height: int, width: int, seed: int = 0) -> npt.NDArray[np.uint8]:
    """uint8 [count, height, width, 3]: coloured noise over gradients, so that patches differ."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 256, (count, 4, 4, 3)).repeat(-(-height // 4), 1).repeat(-(-width // 4), 2)
    noise = generator.integers(-60, 61, (count, height, width, 3))
    frames: npt.NDArray[np.uint8] = np.clip(coarse[:, :height, :width] + noise, 0, 255).astype(np.uint8)
    return frames


def frame_batch(frames: npt.NDArray[np.uint8]) -> FrameBatch:
    """Frames one second apart."""
    count, height, width, _ = frames.shape
    info = VideoInfo(duration_seconds=float(count), width=width, height=height, container="test", codec="rawvideo")
    return FrameBatch(frames, tuple(float(i) for i in range(count)), info)
