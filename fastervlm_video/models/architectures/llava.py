"""LLaVA-1.5 (arXiv 2310.03744): one tower, one view of each picture; a video is so many pictures."""

from transformers import LlavaConfig
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

from fastervlm_video.config import Medium
from fastervlm_video.models.family import CLIP_PROCESSORS, LlavaFamilyAdapter

__all__ = ["ADAPTER"]


class LlavaAdapter(LlavaFamilyAdapter):
    """See :class:`~fastervlm_video.models.base.ModelAdapter`."""

    model_type = "llava"
    title = "LLaVA-1.5"
    example = "llava-hf/llava-1.5-7b-hf"
    config_class = LlavaConfig
    projector_class = LlavaMultiModalProjector
    towers = dict.fromkeys(Medium, "vision_tower")
    pictures_only = True
    processors = CLIP_PROCESSORS | {"LlavaImageProcessor"}


ADAPTER = LlavaAdapter
