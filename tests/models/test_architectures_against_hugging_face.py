"""LLaVA-1.5, LLaVA-NeXT and Video-LLaVA, pictures and videos, against Hugging Face's own classes."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import (
    AutoImageProcessor,
    LlavaForConditionalGeneration,
    LlavaNextForConditionalGeneration,
    VideoLlavaForConditionalGeneration,
)

from fastervlm_video.config import ImageLayout, Medium, ModelOptions, PruneSpec
from fastervlm_video.plan import ModelFacts
from tests.checkpoints import (
    LAYOUTS,
    copy_checkpoint,
    renamed,
    rewrite,
    save_random_checkpoint,
    save_random_llava,
    save_random_llava_next,
)
from tests.models.pictures import (
    QUESTION,
    SIZES,
    Ours,
    decoded_picture,
    decoded_video,
    frames_of,
    picture,
    video,
)

torch.set_num_threads(1)

GREEDY = {"max_new_tokens": 12, "min_new_tokens": 12, "do_sample": False}
ALL = PruneSpec(keep_ratio=1.0)
REFERENCE = ModelOptions(image_layout=ImageLayout.REFERENCE)


@dataclass(frozen=True)
class Architecture:
    """How to make one, and how Hugging Face loads it."""

    save: Callable[[Path], Path]
    model_class: Any
    pixels: str = "pixel_values"
    tower: str = "vision_tower"
    repeats: bool = False  # its random weights repeat a token now and then: look at its logits


ARCHITECTURES = {
    "llava": Architecture(save_random_llava, LlavaForConditionalGeneration),
    "llava_next": Architecture(save_random_llava_next, LlavaNextForConditionalGeneration),
    "video_llava": Architecture(
        save_random_checkpoint, VideoLlavaForConditionalGeneration, "pixel_values_images", "image_tower", repeats=True
    ),
}
TILED = "llava_next"


@dataclass(frozen=True)
class HuggingFace:
    """Their model of a checkpoint, and their processing of pictures."""

    architecture: Architecture
    folder: Path
    model: Any

    @classmethod
    def load(cls, architecture: Architecture, folder: Path) -> "HuggingFace":
        model, info = architecture.model_class.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
        )
        assert not info["missing_keys"]
        return cls(architecture, folder, model.eval())

    def inputs(self, images: list[Image.Image]) -> dict[str, Tensor]:
        processed = AutoImageProcessor.from_pretrained(self.folder)(images, return_tensors="pt")
        pixels = processed.get("pixel_values", processed.get("pixel_values_images"))
        named = {self.architecture.pixels: pixels}
        if "image_sizes" in processed:
            named["image_sizes"] = processed["image_sizes"]
        return named

    @torch.no_grad()
    def lengths(self, inputs: dict[str, Tensor]) -> list[int]:
        """Visual tokens of each picture, as their own model packs them."""
        features = self.model.model.get_image_features(**inputs).pooler_output
        return [len(each) for each in features]

    def prompt(self, tokenizer: Any, lengths: list[int], image_token_id: int) -> Tensor:
        """What their processors make: the template, then each placeholder as often as its picture has tokens."""
        content = [{"type": "image"}] * len(lengths) + [{"type": "text", "text": QUESTION}]
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )
        remaining = iter(lengths)
        pieces = text.split("<image>")
        expanded = pieces[0] + "".join("<image>" * next(remaining) + piece for piece in pieces[1:])
        ids = torch.tensor([tokenizer(expanded)["input_ids"]])
        assert int((ids == image_token_id).sum()) == sum(lengths)
        return ids


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("architectures")
    return {name: architecture.save(root / name) for name, architecture in ARCHITECTURES.items()}


@pytest.fixture(scope="module")
def theirs(folders: dict[str, Path]) -> dict[str, HuggingFace]:
    return {name: HuggingFace.load(ARCHITECTURES[name], folder) for name, folder in folders.items()}


def check_equal(facts: ModelFacts, ours: Ours, hugging_face: HuggingFace, images: list[Image.Image]) -> None:
    """The same ids, logits and greedy text, with every token kept."""
    inputs = hugging_face.inputs(images)
    placeholder = facts.checkpoint.adapter.placeholder_id(Medium.IMAGE)
    lengths = hugging_face.lengths(inputs)
    ids = hugging_face.prompt(facts.checkpoint.tokenizer, lengths, placeholder)
    assert list(ours.sequence.runs) == lengths
    assert list(ours.prompt.token_ids([placeholder] * sum(lengths))) == ids[0].tolist()

    half = facts.checkpoint.load_language("cpu")
    language_model: Any = half.language_model
    embeddings = ours.embeddings(half)
    with torch.no_grad():
        expected = hugging_face.model(input_ids=ids, **inputs).logits
        torch.testing.assert_close(language_model(inputs_embeds=embeddings).logits, expected, rtol=0, atol=1e-4)
        mask = torch.ones_like(ids)
        said = hugging_face.model.generate(input_ids=ids, attention_mask=mask, **inputs, **GREEDY)[0, ids.shape[1] :]
        answer = language_model.generate(inputs_embeds=embeddings, attention_mask=mask, **GREEDY)[0]
    assert answer.tolist() == said.tolist()
    assert hugging_face.architecture.repeats or len(set(answer.tolist())) > 1, "a repeated token compares little"


# Video-LLaVA's processor takes a single pixel's three numbers for three channels.
PICTURES = [
    pytest.param(name, size, id=f"{name}-{shape}")
    for name in ARCHITECTURES
    for shape, size in SIZES.items()
    if (name, shape) != ("video_llava", "a pixel")
]


@pytest.mark.parametrize(("name", "size"), PICTURES)
def test_with_everything_kept_a_pictures_answers_are_equal(
    folders: dict[str, Path], theirs: dict[str, HuggingFace], name: str, size: tuple[int, int]
) -> None:
    facts, image = ModelFacts.open(folders[name]), picture(size)
    ours = Ours.of(facts, decoded_picture(facts, image), ALL, Medium.IMAGE)
    check_equal(facts, ours, theirs[name], [image])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_they_are_equal_in_every_layout_of_tensor_names(
    folders: dict[str, Path], name: str, layout: str, tmp_path: Path
) -> None:
    folder = rewrite(copy_checkpoint(folders[name], tmp_path / "renamed"), renamed(LAYOUTS[layout]))
    facts, image = ModelFacts.open(folder), picture(SIZES["odd"], seed=1)
    ours = Ours.of(facts, decoded_picture(facts, image), ALL, Medium.IMAGE)
    check_equal(facts, ours, HuggingFace.load(ARCHITECTURES[name], folder), [image])


@pytest.mark.parametrize("name", ["llava", "llava_next"])
def test_a_video_is_so_many_pictures(
    folders: dict[str, Path], theirs: dict[str, HuggingFace], name: str, tmp_path: Path
) -> None:
    facts, path = ModelFacts.open(folders[name]), video(str(tmp_path))
    ours = Ours.of(facts, decoded_video(facts, path), ALL, Medium.VIDEO)
    check_equal(facts, ours, theirs[name], frames_of(path))


def test_a_picture_of_video_llava_is_seen_by_its_own_tower(folders: dict[str, Path]) -> None:
    facts = ModelFacts.open(folders["video_llava"])
    assert facts.fingerprint(Medium.IMAGE) != facts.fingerprint(Medium.VIDEO)
    for name in ("llava", "llava_next"):
        other = ModelFacts.open(folders[name])
        assert other.fingerprint(Medium.IMAGE) == other.fingerprint(Medium.VIDEO)


@torch.no_grad()
def their_attention(hugging_face: HuggingFace, inputs: dict[str, Tensor]) -> Tensor:
    """float32 [views, N]: eager attention of [CLS], mean over heads, in the layer that makes the used output."""
    tower = getattr(hugging_face.model.model, hugging_face.architecture.tower)
    pixels = inputs[hugging_face.architecture.pixels]
    assert tower.config._attn_implementation == "eager"
    attention = tower(pixels.flatten(0, -4), output_attentions=True).attentions[-2]
    assert attention is not None
    scores: Tensor = attention.mean(1)[:, 0, 1:]
    return scores


def their_order(hugging_face: HuggingFace, inputs: dict[str, Tensor], patches: int) -> list[int]:
    """Their own packing, of numbers instead of features: ``view * patches + patch``, and -1 for a separator."""
    views = inputs["pixel_values"].shape[1]
    numbers = torch.arange(views * patches, dtype=torch.float64).view(views, patches, 1)
    packed, _ = hugging_face.model.model.pack_image_features(
        [numbers], inputs["image_sizes"], "default", image_newline=torch.tensor([-1.0], dtype=torch.float64)
    )
    return [int(number) for number in packed[0][:, 0].tolist()]


def best(scores: Tensor, allowed: list[int], k: int) -> set[int]:
    ranked = sorted(allowed, key=lambda patch: (-float(scores[patch]), patch))
    return set(ranked[:k])


def our_order(ours: Ours, patches: int) -> list[int]:
    """Which token stands where, found again by its features; -1 for a separator."""
    tokens, sequence = ours.tokens, ours.sequence
    views = [view for view, count in enumerate(tokens.counts) for _ in range(count)]
    rows = {
        tuple(feature.tolist()): view * patches + int(index)
        for feature, view, index in zip(tokens.features, views, tokens.indices, strict=True)
    }
    assert len(rows) == len(tokens.features), "features must differ, or nothing is compared"
    features = iter(sequence.features)
    separators = set(sequence.separators)
    return [-1 if at in separators else rows[tuple(next(features).tolist())] for at in range(len(sequence))]


@pytest.mark.parametrize("k", [1, 3, 8, 16])
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_tiles_pruned_in_the_hugging_face_order(
    folders: dict[str, Path], theirs: dict[str, HuggingFace], size: tuple[int, int], k: int
) -> None:
    """Padding is left out first, then k of each view are kept, and every row keeps its separator."""
    facts, image = ModelFacts.open(folders[TILED]), picture(size)
    ours = Ours.of(facts, decoded_picture(facts, image), PruneSpec(keep_tokens=k), Medium.IMAGE)
    inputs = theirs[TILED].inputs([image])
    scores, patches = their_attention(theirs[TILED], inputs), facts.patches_per_frame
    whole = their_order(theirs[TILED], inputs, patches)
    chosen: set[int] = set()
    for view in range(len(scores)):
        allowed = [number - view * patches for number in whole if number // patches == view]
        chosen |= {view * patches + patch for patch in best(scores[view], allowed, k)}
    expected = [number for number in whole if number == -1 or number in chosen]
    assert our_order(ours, patches) == expected
    # The count is known from the size alone.
    assert facts.layout(Medium.IMAGE).count(size, k) == len(expected) == len(ours.sequence)
    assert facts.layout(Medium.IMAGE).fewest(k) <= len(expected)


@pytest.mark.parametrize("k", [1, 3, 16])
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_tiles_pruned_in_the_reference_order(
    folders: dict[str, Path], theirs: dict[str, HuggingFace], size: tuple[int, int], k: int
) -> None:
    """k of each view, padding and all, view after view in raster order, and no separator."""
    facts, image = ModelFacts.open(folders[TILED], options=REFERENCE), picture(size)
    ours = Ours.of(facts, decoded_picture(facts, image), PruneSpec(keep_tokens=k), Medium.IMAGE)
    scores, patches = their_attention(theirs[TILED], theirs[TILED].inputs([image])), facts.patches_per_frame
    expected = [
        view * patches + patch
        for view in range(len(scores))
        for patch in sorted(best(scores[view], list(range(patches)), k))
    ]
    assert our_order(ours, patches) == expected
    assert len(expected) == k * len(scores) == facts.layout(Medium.IMAGE).count(size, k)
    assert facts.layout(Medium.IMAGE).fewest(k) <= len(expected)


@pytest.mark.parametrize("k", [1, 2, 8, 16])
@pytest.mark.parametrize("name", ["llava", "video_llava"])
def test_a_plain_picture_keeps_what_cls_attends_to(
    folders: dict[str, Path], theirs: dict[str, HuggingFace], name: str, k: int
) -> None:
    facts, image = ModelFacts.open(folders[name]), picture(SIZES["odd"])
    ours = Ours.of(facts, decoded_picture(facts, image), PruneSpec(keep_tokens=k), Medium.IMAGE)
    (scores,) = their_attention(theirs[name], theirs[name].inputs([image]))
    assert set(ours.tokens.indices.tolist()) == best(scores, list(range(facts.patches_per_frame)), k)
    assert our_order(ours, facts.patches_per_frame) == sorted(ours.tokens.indices.tolist())


@pytest.mark.parametrize("name", ["llava", "llava_next"])
def test_labels_stand_in_front_of_frames(folders: dict[str, Path], name: str, tmp_path: Path) -> None:
    facts = ModelFacts.open(folders[name], options=ModelOptions(frame_label="frame {n} : "))
    ours = Ours.of(facts, decoded_video(facts, video(str(tmp_path))), PruneSpec(keep_tokens=2), Medium.VIDEO)
    tokenizer, placeholder = facts.checkpoint.tokenizer, facts.checkpoint.placeholder(Medium.VIDEO)
    first, second = ours.sequence.runs
    shown = f"USER: frame 1 : {placeholder * first}\nframe 2 : {placeholder * second}\n{QUESTION} ASSISTANT:"
    ids = facts.checkpoint.adapter.placeholder_id(Medium.VIDEO)
    assert list(ours.prompt.token_ids([ids] * (first + second))) == tokenizer(shown)["input_ids"]
