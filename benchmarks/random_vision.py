"""What the vision benchmarks work on: CLIP towers with random weights, and videos of noise. No script of its own."""

import numpy as np
from transformers import CLIPVisionConfig, CLIPVisionModel

from fastervlm_video.media import FrameBatch, VideoInfo

__all__ = ["IMAGE", "noise_video", "random_clip"]

IMAGE = 224


def random_clip(*, width: int, layers: int, heads: int, patch: int) -> CLIPVisionModel:
    """Hugging Face's model with SDPA attention, for frames of 224 px; its MLP is four times as wide."""
    config = CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        image_size=IMAGE,
        patch_size=patch,
    )
    model: CLIPVisionModel = CLIPVisionModel._from_config(config, attn_implementation="sdpa").eval()
    return model


def noise_video(frames: int, *, seed: int = 0) -> FrameBatch:
    """Frames of 224 px, as decoding would hand them on: what is shown changes no cost."""
    pixels = np.random.default_rng(seed).integers(0, 256, (frames, IMAGE, IMAGE, 3), np.uint8)
    info = VideoInfo(float(frames), IMAGE, IMAGE, "benchmark", "rawvideo")
    return FrameBatch(pixels, tuple(map(float, range(frames))), info)
