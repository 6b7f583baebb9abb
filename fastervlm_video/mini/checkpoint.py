"""The mini model: a small Video-LLaVA in the Hugging Face layout, its architecture and nothing less.

The trained one comes with the package, see :mod:`fastervlm_video.mini.training`. With random weights, of any size,
it is what the tests are made of.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import (
    CLIPVisionConfig,
    GenerationConfig,
    LlamaConfig,
    VideoLlavaConfig,
    VideoLlavaForConditionalGeneration,
    VideoLlavaImageProcessor,
)

from fastervlm_video.mini.vocabulary import BOS, EOS, IMAGE, PAD, VIDEO, build_tokenizer

__all__ = [
    "MINI_NAME",
    "MiniSize",
    "image_processor",
    "mini_config",
    "save_mini_checkpoint",
    "write_checkpoint",
]

MINI_NAME = "fastervlm-video/mini"


@dataclass(frozen=True, slots=True)
class MiniSize:
    """Dimensions of the mini model; every one may be changed, nothing else in the project knows them.

    Attributes:
        image_size: side of a frame in pixels.
        patch_size: side of a patch in pixels.
        vision_width: tower's hidden size.
        vision_layers: tower's layers, the unused last ones included.
        vision_heads: tower's attention heads.
        text_width: language model's hidden size.
        text_layers: language model's layers.
        text_heads: language model's attention heads.
        context_length: language model's positions.
        feature_layer: which hidden state of the tower is used, counted as in ``vision_feature_layer``.
    """

    image_size: int = 112
    patch_size: int = 14
    vision_width: int = 128
    vision_layers: int = 4
    vision_heads: int = 4
    text_width: int = 128
    text_layers: int = 6
    text_heads: int = 4
    context_length: int = 2048
    feature_layer: int = -2


def mini_config(size: MiniSize) -> VideoLlavaConfig:
    """The model's config at these dimensions, with the vocabulary of :mod:`fastervlm_video.mini.vocabulary`."""
    tokenizer = build_tokenizer()
    token_id = tokenizer.get_vocab()
    vision = CLIPVisionConfig(
        image_size=size.image_size,
        patch_size=size.patch_size,
        hidden_size=size.vision_width,
        intermediate_size=4 * size.vision_width,
        num_hidden_layers=size.vision_layers,
        num_attention_heads=size.vision_heads,
        hidden_act="gelu",
    )
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=size.text_width,
        intermediate_size=3 * size.text_width,
        num_hidden_layers=size.text_layers,
        num_attention_heads=size.text_heads,
        num_key_value_heads=size.text_heads,
        max_position_embeddings=size.context_length,
        initializer_range=0.08,
        pad_token_id=token_id[PAD],
        bos_token_id=token_id[BOS],
        eos_token_id=token_id[EOS],
    )
    patches = (size.image_size // size.patch_size) ** 2
    return VideoLlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=token_id[IMAGE],
        video_token_index=token_id[VIDEO],
        vision_feature_layer=size.feature_layer,
        image_seq_length=patches,
        video_seq_length=patches,
    )


def save_mini_checkpoint(folder: Path, *, size: MiniSize | None = None, seed: int = 0) -> Path:
    """Make a seeded random Video-LLaVA, untrained, and save it as a Hugging Face checkpoint folder.

    Args:
        folder: where to; made if it does not exist.
        size: dimensions; the defaults take about 8 MB on disk and milliseconds per frame.
        seed: of the weights; equal seeds give equal files.

    Returns:
        ``folder``.
    """
    size = size or MiniSize()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = VideoLlavaForConditionalGeneration(mini_config(size))
    return write_checkpoint(model, folder, size)


def write_checkpoint(model: VideoLlavaForConditionalGeneration, folder: Path, size: MiniSize) -> Path:
    """Save a mini model with its tokenizer and processors, as a Hugging Face checkpoint folder.

    Returns:
        ``folder``.
    """
    tokenizer = build_tokenizer()
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    preprocessor = image_processor(size)
    preprocessor.save_pretrained(folder)
    _write_processor_files(folder, size, json.loads(preprocessor.to_json_string()))
    return folder


def image_processor(size: MiniSize) -> VideoLlavaImageProcessor:
    """Resizing, cropping and normalising as Video-LLaVA's, at the mini model's size."""
    return VideoLlavaImageProcessor(
        size={"shortest_edge": size.image_size}, crop_size={"height": size.image_size, "width": size.image_size}
    )


def _write_processor_files(folder: Path, size: MiniSize, preprocessor: dict[str, object]) -> None:
    """Written by hand: Hugging Face's own classes for these two files need torchvision."""
    video = {k: v for k, v in preprocessor.items() if k != "image_processor_type"}
    video["video_processor_type"] = "VideoLlavaVideoProcessor"
    (folder / "video_preprocessor_config.json").write_text(json.dumps(video, indent=2) + "\n")
    processor = {
        "processor_class": "VideoLlavaProcessor",
        "patch_size": size.patch_size,
        "vision_feature_select_strategy": "default",
        "image_token": IMAGE,
        "video_token": VIDEO,
        "num_additional_image_tokens": 1,
    }
    (folder / "processor_config.json").write_text(json.dumps(processor, indent=2) + "\n")
