"""FasterVLM for video: prune visual tokens by the vision encoder's own [CLS] attention, once, and ask many times.

::

    from fastervlm_video import VideoQA

    qa = VideoQA.from_pretrained("LanguageBind/Video-LLaVA-7B-hf", keep_ratio=0.1)
    video = qa.encode_video("clip.mp4")          # decoded, encoded and pruned once
    print(qa.ask(video, "What happens?").text)   # any number of questions
"""

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastervlm_video.pipeline import Answer, EncodedVideo, VideoQA

__all__ = ["Answer", "EncodedVideo", "VideoQA", "__version__"]

__version__ = version("fastervlm-video")


def __getattr__(name: str) -> Any:
    """The pipeline is imported when it is asked for: the process that decodes media must not import torch."""
    if name in __all__:
        from fastervlm_video import pipeline

        return getattr(pipeline, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
