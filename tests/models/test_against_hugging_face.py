"""Our two halves, put together, against ``VideoLlavaForConditionalGeneration`` on the same frames."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor
from transformers import VideoLlavaForConditionalGeneration, VideoLlavaImageProcessor

from fastervlm_video.config import Medium, PruneSpec
from fastervlm_video.models import Checkpoint, LanguageHalf
from fastervlm_video.vision import EncodeJob, VisualTokens
from tests.checkpoints import (
    LAYOUTS,
    SMALL,
    copy_checkpoint,
    frame_batch,
    random_frames,
    renamed,
    rewrite,
    save_random_checkpoint,
)

torch.set_num_threads(1)

FRAMES = 3
QUESTION = "USER: <video>\nwhat color is the circle ? ASSISTANT:"
GREEDY = {"max_new_tokens": 12, "min_new_tokens": 12, "do_sample": False}


@dataclass(frozen=True)
class Case:
    """A checkpoint, Hugging Face's model of it, and frames."""

    folder: Path
    frames: npt.NDArray[np.uint8]
    pixels: Tensor

    def hugging_face(self, folder: Path | None = None) -> Any:
        load: Any = VideoLlavaForConditionalGeneration.from_pretrained
        model, info = load(
            folder or self.folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
        )
        assert not info["missing_keys"]
        assert model.config.vision_config._attn_implementation == "eager"
        return model.eval()

    def encode(self, checkpoint: Checkpoint, spec: PruneSpec) -> VisualTokens:
        (tokens,) = checkpoint.load_vision("cpu").encode([EncodeJob(frame_batch(self.frames), spec)])
        return tokens


def make_case(folder: Path, feature_layer: int = -2) -> Case:
    size = replace(SMALL, feature_layer=feature_layer)
    save_random_checkpoint(folder, size)
    frames = random_frames(FRAMES, size.image_size, size.image_size)
    processed = VideoLlavaImageProcessor.from_pretrained(folder)(list(frames), return_tensors="pt")
    return Case(folder, frames, processed["pixel_values_images"])


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return make_case(tmp_path_factory.mktemp("oracle") / "checkpoint")


def prompt_ids(checkpoint: Checkpoint, visual_tokens: int) -> Tensor:
    """int64 [1, S]: the prompt with ``<video>`` repeated, as Hugging Face's processor would have it."""
    ids = checkpoint.tokenizer(QUESTION)["input_ids"]
    at = ids.index(checkpoint.adapter.placeholder_id(Medium.VIDEO))
    return torch.tensor([ids[:at] + [checkpoint.adapter.placeholder_id(Medium.VIDEO)] * visual_tokens + ids[at + 1 :]])


@torch.no_grad()
def our_embeddings(half: LanguageHalf, ids: Tensor, video_token_id: int, tokens: VisualTokens) -> Tensor:
    embeddings = half.language_model.get_input_embeddings()(ids)
    assert isinstance(embeddings, Tensor)
    embeddings[ids == video_token_id] = half.projector(tokens.sequence())
    return embeddings


@torch.no_grad()
def check_equal_answers(case: Case, checkpoint: Checkpoint, model: Any) -> None:
    tokens = case.encode(checkpoint, PruneSpec(keep_ratio=1.0, keep_cls=True))
    half = checkpoint.load_language("cpu")
    language_model: Any = half.language_model
    ids = prompt_ids(checkpoint, tokens.tokens_kept)
    assert tokens.tokens_kept == FRAMES * (1 + checkpoint.patches_per_frame)
    embeddings = our_embeddings(half, ids, checkpoint.adapter.placeholder_id(Medium.VIDEO), tokens)

    expected = model(input_ids=ids, pixel_values_videos=case.pixels[None]).logits
    logits = language_model(inputs_embeds=embeddings).logits
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-4)

    mask = torch.ones_like(ids)
    theirs = model.generate(input_ids=ids, attention_mask=mask, pixel_values_videos=case.pixels[None], **GREEDY)
    ours = language_model.generate(inputs_embeds=embeddings, attention_mask=mask, **GREEDY)
    answer = theirs[0, ids.shape[1] :].tolist()
    assert ours[0].tolist() == answer
    assert checkpoint.tokenizer.decode(ours[0]) == checkpoint.tokenizer.decode(answer)
    assert len(set(answer)) > 1, "an answer that repeats one token compares little"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_with_everything_kept_answers_are_equal_in_every_layout(case: Case, layout: str, tmp_path: Path) -> None:
    folder = rewrite(copy_checkpoint(case.folder, tmp_path / "renamed"), renamed(LAYOUTS[layout]))
    check_equal_answers(case, Checkpoint.open(folder), case.hugging_face(folder))


def test_with_everything_kept_answers_are_equal_from_shards(case: Case, tmp_path: Path) -> None:
    folder = copy_checkpoint(case.folder, tmp_path / "sharded")
    (folder / "model.safetensors").unlink()
    model = case.hugging_face()
    model.save_pretrained(folder, max_shard_size="50KB")
    assert len(list(folder.glob("*.safetensors"))) > 3
    check_equal_answers(case, Checkpoint.open(folder), model)


@pytest.mark.parametrize("feature_layer", [-1, -3, 1, 3])
def test_with_everything_kept_answers_are_equal_for_other_layers(feature_layer: int, tmp_path: Path) -> None:
    case = make_case(tmp_path / "checkpoint", feature_layer)
    check_equal_answers(case, Checkpoint.open(case.folder), case.hugging_face())


@torch.no_grad()
def hugging_face_pruned(model: Any, pixels: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Their own tower, attention, projector: indices in raster order [T, k] and embeddings [T * k, H]."""
    tower = model.model.video_tower
    assert tower.config._attn_implementation == "eager"
    output = tower(pixels, output_attentions=True, output_hidden_states=True)
    attention = output.attentions[-2]
    assert attention is not None
    indices = attention.mean(1)[:, 0, 1:].topk(k).indices.sort().values
    features = output.hidden_states[-2][:, 1:]
    gathered = features.gather(1, indices[..., None].expand(-1, -1, features.shape[-1]))
    return indices, model.model.multi_modal_projector(gathered).flatten(0, 1)


@pytest.mark.parametrize("k", [1, 2, 8, 16])
@torch.no_grad()
def test_pruned_logits_are_those_of_hugging_faces_parts(case: Case, k: int) -> None:
    checkpoint, model = Checkpoint.open(case.folder), case.hugging_face()
    indices, visual = hugging_face_pruned(model, case.pixels, k)
    ids = prompt_ids(checkpoint, FRAMES * k)
    their_embeddings = model.get_input_embeddings()(ids)
    their_embeddings[ids == checkpoint.adapter.placeholder_id(Medium.VIDEO)] = visual
    expected = model.lm_head(model.model.language_model(inputs_embeds=their_embeddings).last_hidden_state)

    tokens = case.encode(checkpoint, PruneSpec(keep_tokens=k))
    half = checkpoint.load_language("cpu")
    embeddings = our_embeddings(half, ids, checkpoint.adapter.placeholder_id(Medium.VIDEO), tokens)

    raster = tokens.indices[tokens.raster_order()].view(FRAMES, k)
    assert torch.equal(raster.long(), indices)
    torch.testing.assert_close(half.language_model(inputs_embeds=embeddings).logits, expected, rtol=0, atol=1e-4)


def test_pruning_changes_the_answer_of_this_model(case: Case) -> None:
    """The comparisons above would hold for a model that does not look at its video at all."""
    checkpoint = Checkpoint.open(case.folder)
    half = checkpoint.load_language("cpu")
    ids = prompt_ids(checkpoint, FRAMES * 4)
    last = []
    for method in ("cls_attention", "random"):
        tokens = case.encode(checkpoint, PruneSpec(method=method, keep_tokens=4))
        embeddings = our_embeddings(half, ids, checkpoint.adapter.placeholder_id(Medium.VIDEO), tokens)
        with torch.no_grad():
            last.append(half.language_model(inputs_embeds=embeddings).logits[0, -1])
    assert (last[0] - last[1]).abs().max() > 1e-2
