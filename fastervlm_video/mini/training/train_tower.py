"""Runs phase 1 of the training, and measures whether [CLS] looks at the objects."""

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel

from fastervlm_video.mini.render import frame_times, object_coverage
from fastervlm_video.mini.training.clips import NUM_FRAMES, Corpus
from fastervlm_video.mini.training.loop import Report, Schedule, run_steps, step_generator
from fastervlm_video.mini.training.optim import build_optimizers
from fastervlm_video.mini.training.tower import TowerObjective, add_position_waves, drop_cls_updates, label_frames
from fastervlm_video.vision import Preprocessing, VisionTower
from fastervlm_video.vision.tower import tower_depth

__all__ = ["objects_found", "train_tower"]

_PHASE = 1
_CPU = torch.device("cpu")
_FOUND = 0.2  # an object counts as found if a kept patch is covered by it to this share


def train_tower(
    corpus: Corpus,
    config: CLIPVisionConfig,
    feature_layer: int,
    preprocessing: Preprocessing,
    schedule: Schedule,
    *,
    batch: int,
    seed: int,
    state: Path,
    report: Callable[[Report], None],
) -> CLIPVisionModel:
    """Train a tower on single frames.

    Args:
        corpus: videos to take frames from.
        config: of the tower.
        feature_layer: which hidden state will be used, as in ``vision_feature_layer``.
        preprocessing: of frames.
        schedule: length and learning rate.
        batch: frames per step.
        seed: of everything.
        state: file to resume from.
        report: called every few steps.
    """
    depth = tower_depth(feature_layer, config.num_hidden_layers)
    model, objective = _build(config, depth, seed)
    module = nn.ModuleDict({"tower": model, "objective": objective})
    times = frame_times(NUM_FRAMES)

    def step_of(step: int) -> tuple[Tensor, dict[str, float]]:
        rng = step_generator(seed, _PHASE, step)
        video = np.sort(rng.integers(0, len(corpus), batch))
        frame = rng.integers(0, NUM_FRAMES, (2, batch)).max(axis=0)  # late frames show more
        pixels = preprocessing.normalise(torch.from_numpy(corpus.frames_u8[video, frame]), _CPU, torch.float32)
        pixels = pixels.contiguous()  # the convolution's backward pass is many times slower with channels last
        labels = label_frames(corpus.scenes[video], times[frame], objective.grid)
        output = model(pixels, output_hidden_states=True)
        loss, told = objective(output.pooler_output, output.hidden_states[depth], labels)
        return loss, told

    optimizers = build_optimizers(
        module.named_parameters(), learning_rate=schedule.learning_rate, weight_decay=schedule.weight_decay
    )
    run_steps("tower", module.train(), optimizers, schedule, step_of, state=state, report=report)
    model.eval()
    return model


def _build(config: CLIPVisionConfig, depth: int, seed: int) -> tuple[CLIPVisionModel, TowerObjective]:
    assert isinstance(config.image_size, int)  # CLIP has nothing else
    assert isinstance(config.patch_size, int)
    side = config.image_size // config.patch_size
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = CLIPVisionModel._from_config(deepcopy(config), attn_implementation="sdpa")
        add_position_waves(model, (side, side))
        objective = TowerObjective(config, (side, side))
    drop_cls_updates(model, depth - 1)
    return model, objective


@torch.inference_mode()
def objects_found(tower: VisionTower, preprocessing: Preprocessing, corpus: Corpus, keep: int) -> float:
    """Share of the visible objects of which [CLS]'s ``keep`` favourite patches of the frame show a part."""
    shape = (len(corpus), NUM_FRAMES)
    times: npt.NDArray[np.float32] = np.broadcast_to(frame_times(NUM_FRAMES), shape).copy()
    covers = object_coverage(corpus.scenes, times, tower.grid) > _FOUND
    found = np.zeros(covers.shape[:3], bool)
    for index in range(len(corpus)):
        frames = torch.from_numpy(np.array(corpus.frames_u8[index]))
        scores = tower.score(preprocessing.normalise(frames, _CPU, torch.float32)).cls_attention
        top = scores.topk(keep, dim=-1).indices.numpy()
        found[index] = np.take_along_axis(covers[index], top[None], axis=2).any(axis=2)
    return float(found[covers.any(axis=3)].mean())
