"""A small Video-LLaVA made on the spot, and scenes to ask it about."""

from fastervlm_video.mini.checkpoint import MINI_NAME, MiniSize, ensure_mini_checkpoint, save_mini_checkpoint
from fastervlm_video.mini.resolve import MINI_ALIAS, ResolvedModel, resolve_model
from fastervlm_video.mini.scenes import COLORS, SHAPES, MovingShape, Scene, random_scene, render_scene

__all__ = [
    "COLORS",
    "MINI_ALIAS",
    "MINI_NAME",
    "SHAPES",
    "MiniSize",
    "MovingShape",
    "ResolvedModel",
    "Scene",
    "ensure_mini_checkpoint",
    "random_scene",
    "render_scene",
    "resolve_model",
    "save_mini_checkpoint",
]
