"""The vision half: frames in, kept tokens out."""

from fastervlm_video.vision.encoder import DEFAULT_MAX_FRAMES_PER_FORWARD, EncodeJob, VisionEncoder
from fastervlm_video.vision.layout import PlainLayout, Region, TiledLayout, ViewLayout, VisualSequence
from fastervlm_video.vision.preprocess import Preprocessing
from fastervlm_video.vision.tokens import VisualTokens
from fastervlm_video.vision.tower import ScoredFrames, TowerOutput, VisionTower, tower_depth

__all__ = [
    "DEFAULT_MAX_FRAMES_PER_FORWARD",
    "EncodeJob",
    "PlainLayout",
    "Preprocessing",
    "Region",
    "ScoredFrames",
    "TiledLayout",
    "TowerOutput",
    "ViewLayout",
    "VisionEncoder",
    "VisionTower",
    "VisualSequence",
    "VisualTokens",
    "tower_depth",
]
