"""From an encoded video or picture to a few uint8 frames, or views, with their timestamps."""

from fastervlm_video.media.decode import Progress, decode_video
from fastervlm_video.media.encode import write_video
from fastervlm_video.media.frames import FrameBatch, VideoInfo
from fastervlm_video.media.pictures import SNIFF_BYTES, decode_picture, sniff_medium
from fastervlm_video.media.resize import apply_resize
from fastervlm_video.media.sampling import instants
from fastervlm_video.media.sandbox import SandboxedDecoder
from fastervlm_video.media.tiling import split_views, views_per_picture

__all__ = [
    "SNIFF_BYTES",
    "FrameBatch",
    "Progress",
    "SandboxedDecoder",
    "VideoInfo",
    "apply_resize",
    "decode_picture",
    "decode_video",
    "instants",
    "sniff_medium",
    "split_views",
    "views_per_picture",
    "write_video",
]
