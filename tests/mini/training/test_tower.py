from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import CLIPVisionModel

from fastervlm_video.mini import MiniSize
from fastervlm_video.mini.render import object_coverage
from fastervlm_video.mini.training.loop import Report, Schedule
from fastervlm_video.mini.training.tower import TowerObjective, add_position_waves, drop_cls_updates, label_frames
from fastervlm_video.mini.training.train_tower import objects_found, train_tower
from fastervlm_video.vision import VisionTower
from tests.mini.kit import draw, every
from tests.mini.training.kit import TIMES, TINY, preprocessing, random_tower, rendered_corpus, vision_config

DEEP = replace(TINY, vision_layers=5)
USED = 3  # of 0 to 4: the last but one
BATCH = 400


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def clip(size: MiniSize = TINY) -> CLIPVisionModel:
    torch.manual_seed(0)
    model = CLIPVisionModel(deepcopy(vision_config(size)))
    model.eval()
    return model


def attention_updates(model: CLIPVisionModel, pixels: Tensor) -> list[Tensor]:
    """What each layer's attention adds, [B, 1+N, C] each, as the layer gets it."""
    updates: list[Tensor] = []

    def record(module: nn.Module, _: object, output: tuple[Tensor, ...]) -> None:
        updates.append(output[0].detach())

    hooks = [cast("Any", layer).self_attn.register_forward_hook(record) for layer in model.encoder.layers]
    torch.manual_seed(1)
    with torch.no_grad():
        model(pixels)
    for hook in hooks:
        hook.remove()
    return updates


def pixels(batch: int) -> Tensor:
    return torch.randn(batch, 3, TINY.image_size, TINY.image_size, generator=torch.Generator().manual_seed(0))


def test_labels_say_what_each_frame_shows() -> None:
    scenes, rng = draw(0, 40), np.random.default_rng(0)
    times = rng.random(40, np.float32)
    labels = label_frames(scenes, times, (4, 4))
    centres, coverage = scenes.positions(times[:, None])[:, :, 0], object_coverage(scenes, times[:, None], (4, 4))
    assert torch.equal(labels.coverage, torch.from_numpy(coverage[:, :, 0]))
    for b, n in np.ndindex(40, 3):
        there = n < scenes.count[b] and times[b] >= scenes.onset[b, n]
        assert bool(labels.visible[b, n]) == there
        assert int(labels.color[b, n]) == scenes.color[b, n]
        assert int(labels.shape[b, n]) == scenes.shape[b, n]
        x, y = centres[b, n].tolist()
        assert labels.column[b, n] == (0 if x < 1 / 3 else 1 if x < 2 / 3 else 2)
        assert labels.row[b, n] == (0 if y < 1 / 3 else 1 if y < 2 / 3 else 2)
    assert labels.visible.any()
    assert not labels.visible.all()


def test_cls_is_left_out_in_training_at_random_but_never_in_the_used_layer() -> None:
    model, images = clip(DEEP), pixels(BATCH)
    before = attention_updates(model, images)
    drop_cls_updates(model, USED)
    after = attention_updates(model.train(), images)
    shares = [float((update[:, 0] == 0).all(dim=-1).float().mean()) for update in after]
    assert shares[:USED] == pytest.approx([0.8] * USED, abs=0.08)  # four standard deviations
    assert shares[USED] == 0
    assert shares[USED + 1] == pytest.approx(0.5, abs=0.1)
    assert not any((update[:, 1:] == 0).all(dim=-1).any() for update in after)
    # In the first layer nothing is different yet: who is not left out is updated as before.
    kept = (after[0][:, 0] != 0).any(dim=-1)
    assert torch.equal(after[0][kept], before[0][kept])
    assert torch.equal(after[0][:, 1:], before[0][:, 1:])


def test_outside_training_nothing_is_left_out() -> None:
    model, images = clip(DEEP), pixels(4)
    with torch.no_grad():
        expected = model(images, output_hidden_states=True)
        drop_cls_updates(model, USED)
        found = model(images, output_hidden_states=True)
    for ours, theirs in zip(found.hidden_states, expected.hidden_states, strict=True):
        assert torch.equal(ours, theirs)
    assert torch.equal(found.pooler_output, expected.pooler_output)


def test_positions_begin_as_waves_over_the_grid() -> None:
    model = clip()
    weight = model.embeddings.position_embedding.weight
    before = weight.detach().clone()
    add_position_waves(model, (4, 4))
    added = (weight.detach() - before).double()
    assert (added[0] == 0).all()  # [CLS] has no place
    distance = torch.cdist(added[1:], added[1:]) + 1e3 * torch.eye(16)
    rows, columns = torch.arange(16) // 4, torch.arange(16) % 4
    for patch, nearest in enumerate(distance.argmin(dim=1).tolist()):
        assert abs(rows[patch] - rows[nearest]) + abs(columns[patch] - columns[nearest]) == 1


def test_learning_what_frames_show(tmp_path: Path) -> None:
    """A few steps on a few scenes: the loss falls, and the heads learn to tell the colours."""
    corpus, reports = rendered_corpus(0, 16), list[Report]()
    arguments: dict[str, Any] = {"batch": 16, "seed": 3, "report": reports.append}
    schedule = Schedule(steps=150, learning_rate=3e-3, warmup=10)

    def trained(state: str) -> CLIPVisionModel:
        return train_tower(corpus, vision_config(), -2, preprocessing(), schedule, state=tmp_path / state, **arguments)

    model = trained("state.pt")
    first, *_, last = (report.values for report in reports)
    assert last["loss"] < 0.8 * first["loss"]
    assert last["present"] > first["present"]
    assert set(last) == {"loss", "present", "shape", "row", "column", "patch_shape"}
    assert not model.training
    again = trained("state.pt")  # from the finished state
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(model.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize("shown", [True, False], ids=["objects", "nothing"])
def test_the_objective_gives_finite_gradients_whatever_a_frame_shows(shown: bool) -> None:
    scenes = draw(0, 6)
    scenes = scenes if shown else replace(scenes, count=np.zeros_like(scenes.count))
    torch.manual_seed(0)
    objective, used = TowerObjective(vision_config(), (4, 4)), torch.randn(6, 17, TINY.vision_width)
    labels = label_frames(scenes, np.ones(6, np.float32), (4, 4))
    loss, _ = objective(used[:, 0], used, labels)
    loss.backward()
    gradients = [parameter.grad for parameter in objective.parameters()]
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)


class Knowing:
    """A tower that scores patches by what covers them, or the other way round."""

    grid = (4, 4)

    def __init__(self, coverage: Tensor, sign: int) -> None:
        self._videos = iter(coverage * sign)

    def score(self, frames: Tensor) -> Any:
        return type("Scored", (), {"cls_attention": next(self._videos)})


def knowing(corpus: Any, sign: int) -> VisionTower:
    coverage = object_coverage(corpus.scenes, every(corpus.scenes, TIMES), (4, 4)).max(axis=1)
    return cast("VisionTower", Knowing(torch.from_numpy(coverage), sign))


def test_objects_are_found_where_the_tower_looks() -> None:
    corpus = rendered_corpus(1, 12)

    def found(tower: VisionTower, keep: int) -> float:
        return objects_found(tower, preprocessing(), corpus, keep)

    assert found(random_tower(), 16) == 1
    assert found(knowing(corpus, 1), 12) == 1
    assert found(knowing(corpus, -1), 1) < 0.2
    assert found(random_tower(), 1) < found(random_tower(), 8) < 1
