"""The tower against Hugging Face's own, run in full with eager attention."""

from copy import deepcopy
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModel

from fastervlm_video.errors import CheckpointError
from fastervlm_video.prune import CLS_ATTENTION, PruneInputs
from fastervlm_video.vision import VisionTower, tower_depth
from tests.checkpoints import randomise

torch.set_num_threads(1)


@dataclass(frozen=True)
class Size:
    image: int
    patch: int
    width: int
    heads: int
    layers: int
    act: str = "quick_gelu"

    def config(self) -> CLIPVisionConfig:
        return CLIPVisionConfig(
            image_size=self.image,
            patch_size=self.patch,
            hidden_size=self.width,
            intermediate_size=2 * self.width + 8,
            num_attention_heads=self.heads,
            num_hidden_layers=self.layers,
            hidden_act=self.act,
        )


SIZES = [
    Size(32, 8, 24, 3, 4),
    Size(30, 7, 16, 1, 3, "gelu"),  # 4 x 4 patches and a rest of 2 pixels
    Size(64, 8, 48, 6, 5),
    Size(8, 8, 8, 2, 2),  # a single patch
]
FEATURE_LAYERS = [-1, -2, -3, 1, 2]
CASES = [
    pytest.param(size, layer, seed, id=f"{size.image}px-{size.layers}layers-{layer}")
    for seed, size in enumerate(SIZES)
    for layer in FEATURE_LAYERS
    if -size.layers <= layer <= size.layers
]


def build(config: CLIPVisionConfig, attention: str, state: dict[str, Tensor] | None = None) -> CLIPVisionModel:
    model = CLIPVisionModel._from_config(deepcopy(config), attn_implementation=attention)
    if state is not None:
        model.load_state_dict(state)
    assert isinstance(model, CLIPVisionModel)
    model.eval()
    return model


@dataclass(frozen=True)
class Oracle:
    features: Tensor
    scores: Tensor

    @classmethod
    @torch.no_grad()
    def run(cls, model: CLIPVisionModel, pixels: Tensor, feature_layer: int) -> "Oracle":
        assert model.config._attn_implementation == "eager"
        output = model(pixels, output_attentions=True, output_hidden_states=True)
        # hidden_states has the layers' input at 0, so the layer that produces hidden_states[i] is i - 1.
        layer = feature_layer - 1 if feature_layer > 0 else feature_layer
        attention = output.attentions[layer]
        assert attention is not None
        assert attention.shape[-1] == attention.shape[-2] == output.hidden_states[0].shape[1]
        return cls(output.hidden_states[feature_layer], attention.mean(1)[:, 0, 1:])


@pytest.mark.parametrize(("size", "feature_layer", "seed"), CASES)
def test_features_scores_and_kept_indices_are_hugging_faces(size: Size, feature_layer: int, seed: int) -> None:
    config = size.config()
    torch.manual_seed(seed)
    reference = build(config, "eager")
    randomise(reference, seed)
    tower = VisionTower(build(config, "sdpa", reference.state_dict()), tower_depth(feature_layer, size.layers))
    pixels = torch.randn(3, 3, size.image, size.image)
    oracle = Oracle.run(reference, pixels, feature_layer)

    output = tower(pixels)

    torch.testing.assert_close(output.features, oracle.features, rtol=0, atol=1e-5)
    torch.testing.assert_close(output.cls_attention, oracle.scores, rtol=0, atol=1e-6)
    ranked = np.argsort(-oracle.scores.numpy(), axis=1, kind="stable")
    patches = ranked.shape[1]
    for k in range(1, patches + 1):
        chosen = CLS_ATTENTION.select(
            PruneInputs(k, tower.grid, pts_seconds=(0.0, 1.0, 2.0), cls_attention=output.cls_attention)
        )
        np.testing.assert_array_equal(chosen.indices.reshape(3, k).numpy(), ranked[:, :k])


def test_the_oracle_tells_layers_apart() -> None:
    """The comparison above would be worth nothing if neighbouring layers ranked the patches alike."""
    model = build(SIZES[0].config(), "eager")
    randomise(model, 0)
    pixels = torch.randn(2, 3, 32, 32)
    ranks = [Oracle.run(model, pixels, layer).scores.argsort(1).tolist() for layer in (-1, -2, -3)]
    assert ranks[0] != ranks[1] != ranks[2] != ranks[0]


def test_finishing_some_rows_gives_those_rows() -> None:
    model = build(SIZES[2].config(), "sdpa")
    randomise(model, 1)
    tower = VisionTower(model, 4)
    scored = tower.score(torch.randn(2, 3, 64, 64))
    rows = torch.stack([torch.randperm(65)[:9], torch.randperm(65)[:9]])
    full = tower.finish(scored)
    expected = torch.stack([full[frame, rows[frame]] for frame in range(2)])
    torch.testing.assert_close(tower.finish(scored, rows), expected, rtol=0, atol=1e-5)


def test_finishing_some_rows_does_no_work_for_others() -> None:
    tower = VisionTower(build(SIZES[0].config(), "sdpa"), 3)
    seen: list[int] = []
    for name in ("self_attn.q_proj", "self_attn.out_proj", "mlp"):
        module = tower.get_submodule(f"encoder.layers.2.{name}")
        module.register_forward_hook(lambda _module, _inputs, output: seen.append(output.shape[1]))
    scored = tower.score(torch.randn(1, 3, 32, 32))
    tower.finish(scored, torch.tensor([[0, 4, 5]]))
    assert seen == [1, 3, 3, 3]


def test_only_the_used_part_is_held() -> None:
    model = build(SIZES[0].config(), "sdpa")
    names = {name for name, _ in VisionTower(model, 2).named_parameters()}
    assert {name.split(".")[2] for name in names if name.startswith("encoder")} == {"0", "1"}
    assert not any(name.startswith("post_layernorm") for name in names)
    assert names < {name for name, _ in model.named_parameters()}


def test_later_layers_and_attention_matrices_are_never_computed() -> None:
    model = build(SIZES[0].config(), "sdpa")

    def forbidden(*_args: object) -> None:
        raise AssertionError("a layer ran that is not needed")

    for module in (*model.encoder.layers[2:], model.post_layernorm):
        module.register_forward_hook(forbidden)
    output = VisionTower(model, 2)(torch.randn(1, 3, 32, 32))
    assert output.features.shape == (1, 17, 24)
    assert output.keys.shape == (1, 3, 17, 8)
    assert not output.features.requires_grad


@pytest.mark.parametrize(
    ("feature_layer", "layers", "depth"), [(-2, 24, 23), (-1, 24, 24), (24, 24, 24), (1, 24, 1), (-24, 24, 1)]
)
def test_depth(feature_layer: int, layers: int, depth: int) -> None:
    assert tower_depth(feature_layer, layers) == depth


@pytest.mark.parametrize("feature_layer", [0, 25, -25, -26, [-2, -1]])
def test_depths_that_do_not_exist(feature_layer: int | list[int]) -> None:
    with pytest.raises(CheckpointError, match="vision_feature_layer="):
        tower_depth(feature_layer, 24)


def test_only_sdpa_is_taken() -> None:
    with pytest.raises(CheckpointError, match="SDPA attention, got 'eager'"):
        VisionTower(build(SIZES[0].config(), "eager"), 2)


def test_more_layers_than_there_are() -> None:
    with pytest.raises(CheckpointError, match="has 4 layers, 5 are needed"):
        VisionTower(build(SIZES[0].config(), "sdpa"), 5)
