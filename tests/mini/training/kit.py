"""Tiny models and data for tests of the training."""

import json
from copy import deepcopy
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaModel, VideoLlavaForConditionalGeneration

from fastervlm_video.mini import MiniSize, render_scenes
from fastervlm_video.mini.checkpoint import image_processor, mini_config
from fastervlm_video.mini.render import frame_times
from fastervlm_video.mini.scenes import COLORS, SHAPES
from fastervlm_video.mini.training.clips import NUM_FRAMES, Corpus
from fastervlm_video.mini.training.features import FeatureSet
from fastervlm_video.vision import Preprocessing, VisionTower
from fastervlm_video.vision.tower import tower_depth
from tests.mini.kit import draw, every

REPOSITORY = Path(__file__).parents[3]
TIMES = frame_times(NUM_FRAMES)

TINY = MiniSize(
    image_size=56,
    patch_size=14,
    vision_width=32,
    vision_layers=3,
    vision_heads=2,
    text_width=32,
    text_layers=2,
    text_heads=2,
)


def preprocessing(size: MiniSize = TINY) -> Preprocessing:
    return Preprocessing.from_config(json.loads(image_processor(size).to_json_string()))


def vision_config(size: MiniSize = TINY) -> CLIPVisionConfig:
    config = mini_config(size).vision_config
    assert isinstance(config, CLIPVisionConfig)
    return config


def random_tower(size: MiniSize = TINY, seed: int = 0) -> VisionTower:
    torch.manual_seed(seed)
    clip = CLIPVisionModel(deepcopy(vision_config(size)))
    return VisionTower(clip.eval(), tower_depth(size.feature_layer, size.vision_layers))


def random_model(size: MiniSize = TINY, seed: int = 0) -> VideoLlavaForConditionalGeneration:
    """Its attention is made sharp, so that it matters who sees whom, and where."""
    torch.manual_seed(seed)
    model = VideoLlavaForConditionalGeneration(mini_config(size))
    model.eval()
    with torch.no_grad():
        for name, parameter in language_of(model).named_parameters():
            if "q_proj" in name or "k_proj" in name:
                parameter.mul_(6)
    return model


def language_of(model: VideoLlavaForConditionalGeneration) -> LlamaModel:
    language = model.model.language_model
    assert isinstance(language, LlamaModel)
    return language


def rendered_corpus(seed: int, count: int, size: MiniSize = TINY) -> Corpus:
    """Frames as they were drawn: without a codec in between."""
    scenes = draw(seed, count)
    side = size.image_size
    return Corpus(scenes, render_scenes(scenes, every(scenes, TIMES), height=side, width=side))


def telling_features(seed: int, count: int, width: int = TINY.vision_width) -> FeatureSet:
    """As from a perfect tower: a patch for each object that is to be seen, with its colour, shape and place."""
    scenes = draw(seed, count)
    times = every(scenes, TIMES)
    visible, centres = scenes.visible(times), scenes.positions(times)
    looks = np.concatenate([np.eye(len(COLORS))[scenes.color], np.eye(len(SHAPES))[scenes.shape]], axis=-1)
    told = np.concatenate([np.repeat(looks[:, :, None], NUM_FRAMES, axis=2), 4 * centres - 2], axis=-1)
    patches = (told * visible[..., None]).transpose(0, 2, 1, 3)  # [N, 8, objects, what is told]
    features = np.random.default_rng(seed).normal(0, 0.1, (*patches.shape[:2], patches.shape[2] + 1, width))
    features[:, :, : patches.shape[2], : patches.shape[3]] += 2 * patches
    return FeatureSet(scenes, features.astype(np.float16))


def alone(model: LlamaModel, video: Tensor, ids: Tensor, positions: Tensor | None = None) -> Tensor:
    """Hugging Face's states of a single question's tokens [S, C], behind the embeddings [P, C] of a video."""
    embedded = torch.cat([video, model.embed_tokens(ids)])[None]
    # With an explicit mask, Hugging Face does not take uneven positions for the seams of packed sequences.
    mask = torch.ones(embedded.shape[:2], dtype=torch.int64)
    given = None if positions is None else positions[None]
    states = model(inputs_embeds=embedded, attention_mask=mask, position_ids=given, use_cache=False).last_hidden_state
    assert isinstance(states, Tensor)
    return states[0, len(video) :]
