"""Preprocessing against Hugging Face's own processors."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from transformers import CLIPImageProcessorPil, VideoLlavaImageProcessor

from fastervlm_video.config import FrameResize
from fastervlm_video.errors import CheckpointError, InvalidRequestError
from fastervlm_video.media.resize import apply_resize
from fastervlm_video.vision import Preprocessing
from tests.checkpoints import random_frames

CPU = torch.device("cpu")
PROCESSORS = (VideoLlavaImageProcessor, CLIPImageProcessorPil)
CONFIGS: dict[str, dict[str, Any]] = {
    "clip": {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}},
    "own statistics": {
        "size": {"shortest_edge": 40},
        "crop_size": {"height": 32, "width": 32},
        "image_mean": [0.5, 0.4, 0.3],
        "image_std": [0.1, 0.25, 0.9],
        "rescale_factor": 1 / 127.5,
        "resample": 2,
    },
    "exact size": {"size": {"height": 32, "width": 48}, "do_center_crop": False},
    "crop larger than frame": {"size": {"shortest_edge": 24}, "crop_size": {"height": 36, "width": 36}},
    "no normalising": {"size": {"height": 16, "width": 16}, "do_center_crop": False, "do_normalize": False},
    "no rescaling": {"size": {"height": 16, "width": 16}, "do_center_crop": False, "do_rescale": False},
    "neither": {
        "size": {"height": 16, "width": 16},
        "do_center_crop": False,
        "do_rescale": False,
        "do_normalize": False,
    },
}


def saved_config(processor: Any, folder: Path) -> dict[str, Any]:
    processor.save_pretrained(folder)
    config = json.loads((folder / "preprocessor_config.json").read_text())
    assert isinstance(config, dict)
    return config


def pixel_values(processor: Any, frames: list[npt.NDArray[np.uint8]]) -> torch.Tensor:
    (name,) = processor.model_input_names
    output = processor(frames, return_tensors="pt")
    pixels = output.get(name, output.get(f"{name}_images"))  # the latter is Video-LLaVA's old name for it
    assert isinstance(pixels, torch.Tensor)
    return pixels


@pytest.mark.parametrize("processor_class", PROCESSORS)
@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("height_width", [(57, 91), (90, 33), (32, 32)])
def test_frames_become_what_hugging_face_makes_of_them(
    processor_class: Any, name: str, height_width: tuple[int, int], tmp_path: Path
) -> None:
    processor = processor_class(**CONFIGS[name])
    frames = random_frames(3, *height_width)
    expected = pixel_values(processor, list(frames))

    preprocessing = Preprocessing.from_config(saved_config(processor, tmp_path))
    resized = np.stack([apply_resize(frame, preprocessing.resize) for frame in frames])
    pixels = preprocessing.normalise(torch.from_numpy(resized), CPU, torch.float32)

    assert tuple(pixels.shape[-2:]) == preprocessing.output_size
    torch.testing.assert_close(pixels, expected.float(), rtol=0, atol=0)


def test_every_byte_value_is_normalised_as_hugging_face_does(tmp_path: Path) -> None:
    processor = VideoLlavaImageProcessor(do_resize=False, do_center_crop=False)
    frame = np.stack([np.arange(256, dtype=np.uint8).reshape(16, 16)] * 3, axis=-1)
    expected = pixel_values(processor, [frame])
    preprocessing = Preprocessing.from_config(saved_config(processor, tmp_path))
    assert torch.equal(preprocessing.normalise(torch.from_numpy(frame[None]), CPU, torch.float32), expected)


def test_an_old_config_means_what_clip_meant_by_it() -> None:
    """Published before sizes were dictionaries; what it leaves out has CLIP's defaults."""
    old = {
        "crop_size": 224,
        "do_center_crop": True,
        "do_normalize": True,
        "do_resize": True,
        "feature_extractor_type": "CLIPFeatureExtractor",
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "resample": 3,
        "size": 224,
    }
    preprocessing = Preprocessing.from_config(old)
    assert preprocessing.resize == FrameResize(shortest_edge=224, crop=(224, 224), resample=3)
    assert preprocessing.rescale_factor == 1 / 255
    assert Preprocessing.from_config({}) == preprocessing


def test_one_number_stands_for_all_channels() -> None:
    assert Preprocessing.from_config({"image_mean": 0.5}).mean == (0.5, 0.5, 0.5)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"do_pad": True}, "do_pad"),
        ({"do_flip_channel_order": True, "do_reduce_labels": True}, "do_flip_channel_order.*do_reduce_labels"),
        ({"size": {"longest_edge": 448, "shortest_edge": 224}}, "longest_edge"),
        ({"crop_size": {"shortest_edge": 224}}, "crop_size"),
        ({"image_mean": [0.5, 0.5]}, "image_mean"),
        ({"image_std": [0.5, 0.0, 0.5]}, "image_std"),
        ({"image_std": ["a", "b", "c"]}, "than a number: .*'a'"),
        ({"resample": "bicubic"}, "than a number: .*'bicubic'"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(config: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        Preprocessing.from_config(config)


def test_identity_is_plain_json_and_tells_differences() -> None:
    base = Preprocessing.from_config({})
    assert json.loads(json.dumps(base.identity())) == json.loads(json.dumps(Preprocessing.from_config({}).identity()))
    for change in ({"size": 225}, {"crop_size": 200}, {"resample": 2}, {"image_mean": 0.5}, {"do_rescale": False}):
        assert Preprocessing.from_config(change).identity() != base.identity()


def test_floats_are_made_in_the_wanted_type() -> None:
    frames = torch.from_numpy(random_frames(2, 8, 8))
    preprocessing = Preprocessing.from_config({})
    full = preprocessing.normalise(frames, CPU, torch.float32)
    half = preprocessing.normalise(frames, CPU, torch.bfloat16)
    assert half.dtype == torch.bfloat16
    assert torch.equal(half, full.to(torch.bfloat16))


@pytest.mark.parametrize("frames", [torch.zeros(2, 8, 8, 3), torch.zeros(2, 3, 8, 8, dtype=torch.uint8)])
def test_only_uint8_frames_are_taken(frames: torch.Tensor) -> None:
    with pytest.raises(InvalidRequestError, match="frames must be uint8"):
        Preprocessing.from_config({}).normalise(frames, CPU, torch.float32)
