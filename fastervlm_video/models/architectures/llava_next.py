"""LLaVA-NeXT (LLaVA-1.6): the whole picture and tiles of it at a higher resolution, each a view of one tower.

Two orders of tokens, see :mod:`fastervlm_video.vision.layout`: that of Hugging Face's port and that of the paper's
authors, who neither leave out padding nor use the learnt separator. In a video each frame is such a picture.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from transformers import LlavaNextConfig
from transformers.models.llava_next.modeling_llava_next import LlavaNextMultiModalProjector

from fastervlm_video.config import FrameResize, ImageLayout, Medium, Tiling
from fastervlm_video.errors import CheckpointError
from fastervlm_video.models.family import CLIP_PROCESSORS, LlavaFamilyAdapter
from fastervlm_video.vision.layout import TiledLayout, ViewLayout
from fastervlm_video.vision.preprocess import Preprocessing

__all__ = ["ADAPTER"]


class LlavaNextAdapter(LlavaFamilyAdapter):
    """See :class:`~fastervlm_video.models.base.ModelAdapter`."""

    model_type = "llava_next"
    title = "LLaVA-NeXT"
    example = "llava-hf/llava-v1.6-vicuna-7b-hf"
    config_class = LlavaNextConfig
    projector_class = LlavaNextMultiModalProjector
    towers = dict.fromkeys(Medium, "vision_tower")
    pictures_only = True
    processors = CLIP_PROCESSORS | {"LlavaNextImageProcessor"}
    separator_key = "image_newline"

    def preprocessing(self, config: Mapping[str, Any], medium: Medium) -> Preprocessing:
        """CLIP's steps on every view. The base view is the picture made square, whatever its shape."""
        steps = super().preprocessing({**config, "do_pad": False}, medium)  # pads batches, of which there are none here
        resolutions = self._resolutions()
        if config.get("image_grid_pinpoints") not in (None, self._config.image_grid_pinpoints):
            raise CheckpointError(
                f"image_grid_pinpoints is {config['image_grid_pinpoints']} in the preprocessor config and "
                f"{self._config.image_grid_pinpoints} in the model's; they must be the same"
            )
        side, resample = self.image_size, steps.resize.resample
        return replace(
            steps,
            resize=FrameResize(size=(side, side), resample=resample),
            tiling=Tiling(side, resolutions, resample),
        )

    def layout(self, medium: Medium, preprocessing: Preprocessing) -> ViewLayout:  # noqa: ARG002 - frames are pictures
        """In the order that was chosen."""
        assert preprocessing.tiling is not None  # see above
        return TiledLayout(
            self.grid, preprocessing.tiling, unpad=self._options.image_layout is ImageLayout.HUGGING_FACE
        )

    def _resolutions(self) -> tuple[tuple[int, int], ...]:
        given, side = self._config.image_grid_pinpoints, self.image_size
        try:
            resolutions = tuple((int(height), int(width)) for height, width in given)
        except (TypeError, ValueError) as error:
            raise CheckpointError(f"image_grid_pinpoints must be pairs of height and width, got {given!r}") from error
        if not resolutions or any(value < side or value % side for pair in resolutions for value in pair):
            raise CheckpointError(f"image_grid_pinpoints must be multiples of the tower's {side} pixels, got {given}")
        return resolutions


ADAPTER = LlavaNextAdapter
