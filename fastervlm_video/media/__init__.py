"""From encoded video to a few uint8 frames with their timestamps."""

from fastervlm_video.media.decode import Progress, decode_video
from fastervlm_video.media.encode import write_video
from fastervlm_video.media.frames import FrameBatch, VideoInfo
from fastervlm_video.media.resize import apply_resize
from fastervlm_video.media.sampling import instants
from fastervlm_video.media.sandbox import SandboxedDecoder

__all__ = [
    "FrameBatch",
    "Progress",
    "SandboxedDecoder",
    "VideoInfo",
    "apply_resize",
    "decode_video",
    "instants",
    "write_video",
]
