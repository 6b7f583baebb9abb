"""Hugging Face's own processors are the oracle; nothing here knows how they compute."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.video_llava.image_processing_video_llava import VideoLlavaImageProcessor

from fastervlm_video.config import FrameResize
from fastervlm_video.errors import InvalidRequestError, MediaLimitError
from fastervlm_video.media.resize import MAX_RESIZED_PIXELS, apply_resize, resized_shape

PROCESSORS: dict[str, Any] = {"video_llava": VideoLlavaImageProcessor, "clip": CLIPImageProcessorPil}


def noise(height: int, width: int) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def hugging_face(kind: str, frame: npt.NDArray[np.uint8], resize: FrameResize) -> npt.NDArray[np.uint8]:
    size = {"shortest_edge": resize.shortest_edge}
    if resize.size is not None:
        size = {"height": resize.size[0], "width": resize.size[1]}
    crop = resize.crop or (0, 0)
    processor = PROCESSORS[kind](
        do_resize=resize.size is not None or resize.shortest_edge is not None,
        size=size if any(size.values()) else {"shortest_edge": 1},
        resample=Image.Resampling(resize.resample),
        do_center_crop=resize.crop is not None,
        crop_size={"height": crop[0], "width": crop[1]},
        do_rescale=False,
        do_normalize=False,
    )
    extra = {"return_legacy_image_output": False} if kind == "video_llava" else {}
    pixels = np.asarray(processor.preprocess(frame, input_data_format="channels_last", **extra)["pixel_values"][0])
    assert pixels.dtype == np.uint8
    return pixels.transpose(1, 2, 0)


sides = st.integers(1, 90)
edges = st.integers(1, 60)
pairs = st.tuples(edges, edges)


@pytest.mark.parametrize("kind", PROCESSORS)
@settings(max_examples=200, deadline=None)
@given(
    shape=st.tuples(sides, sides),
    shortest=edges | st.none(),
    crop=pairs | st.none(),
    resample=st.sampled_from([0, 1, 2, 3, 4, 5]),
)
def test_shortest_edge_and_crop_are_bit_equal_to_hugging_face(
    kind: str, shape: tuple[int, int], shortest: int | None, crop: tuple[int, int] | None, resample: int
) -> None:
    frame, resize = noise(*shape), FrameResize(shortest_edge=shortest, crop=crop, resample=resample)
    assert np.array_equal(apply_resize(frame, resize), hugging_face(kind, frame, resize))


@pytest.mark.parametrize("kind", PROCESSORS)
@settings(max_examples=100, deadline=None)
@given(shape=st.tuples(sides, sides), size=pairs, crop=pairs | st.none())
def test_exact_size_is_bit_equal_to_hugging_face(
    kind: str, shape: tuple[int, int], size: tuple[int, int], crop: tuple[int, int] | None
) -> None:
    frame, resize = noise(*shape), FrameResize(size=size, crop=crop)
    assert np.array_equal(apply_resize(frame, resize), hugging_face(kind, frame, resize))


@pytest.mark.parametrize("shape", [(1080, 1920), (1920, 1080), (240, 320), (223, 224), (225, 400), (100, 100)])
@pytest.mark.parametrize("kind", PROCESSORS)
def test_checkpoint_settings_are_bit_equal_to_hugging_face(kind: str, shape: tuple[int, int]) -> None:
    frame, resize = noise(*shape), FrameResize(shortest_edge=224, crop=(224, 224))
    ours = apply_resize(frame, resize)
    assert ours.shape == (224, 224, 3)
    assert ours.flags.c_contiguous
    assert np.array_equal(ours, hugging_face(kind, frame, resize))


def test_nothing_to_do_leaves_the_frame_alone() -> None:
    frame = noise(5, 7)
    assert np.array_equal(apply_resize(frame, FrameResize()), frame)


def test_extreme_aspect_ratio_is_refused_before_memory_is_taken() -> None:
    resize = FrameResize(shortest_edge=224, crop=(224, 224))
    with pytest.raises(MediaLimitError, match=f"10000x2 would be resized to 1120000x224.*{MAX_RESIZED_PIXELS}"):
        apply_resize(noise(2, 10_000), resize)
    assert resized_shape(100, 2000, resize) == (224, 4480)


def test_rows_that_grow_on_the_way_are_refused_before_memory_is_taken() -> None:
    """PIL would first make half a million rows as wide as the small picture."""
    with pytest.raises(
        MediaLimitError, match=f"1x500000 would be resized to 336x336 by way of 336x500000.*{MAX_RESIZED_PIXELS}"
    ):
        apply_resize(noise(500_000, 1), FrameResize(size=(336, 336)))
    assert apply_resize(noise(500_000, 1), FrameResize(size=(336, 1))).shape == (336, 1, 3)
    assert apply_resize(noise(1, 500_000), FrameResize(size=(336, 336))).shape == (336, 336, 3)


@pytest.mark.parametrize(
    "frame", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 3), np.float32)]
)
def test_other_arrays_are_refused(frame: Any) -> None:
    with pytest.raises(InvalidRequestError, match=r"uint8 \[H, W, 3\]"):
        apply_resize(frame, FrameResize())


def test_unknown_filter_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="resample=77"):
        apply_resize(noise(4, 4), FrameResize(size=(2, 2), resample=77))
