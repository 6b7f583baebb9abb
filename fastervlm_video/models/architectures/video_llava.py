"""Video-LLaVA (arXiv 2311.10122): a tower for videos, another for pictures, and one projector for both."""

from transformers import VideoLlavaConfig
from transformers.models.video_llava.modeling_video_llava import VideoLlavaMultiModalProjector

from fastervlm_video.config import Medium
from fastervlm_video.models.family import CLIP_PROCESSORS, LlavaFamilyAdapter

__all__ = ["ADAPTER"]


class VideoLlavaAdapter(LlavaFamilyAdapter):
    """See :class:`~fastervlm_video.models.base.ModelAdapter`."""

    model_type = "video_llava"
    title = "Video-LLaVA"
    example = "LanguageBind/Video-LLaVA-7B-hf"
    config_class = VideoLlavaConfig
    projector_class = VideoLlavaMultiModalProjector
    towers = {Medium.VIDEO: "video_tower", Medium.IMAGE: "image_tower"}  # noqa: RUF012 - of the class
    pictures_only = False
    processors = CLIP_PROCESSORS | {"VideoLlavaImageProcessor", "VideoLlavaVideoProcessor"}


ADAPTER = VideoLlavaAdapter
