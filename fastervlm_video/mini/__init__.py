"""A small Video-LLaVA that comes with the package, and scenes to ask it about."""

from fastervlm_video.mini.checkpoint import MINI_NAME, MiniSize, save_mini_checkpoint
from fastervlm_video.mini.questions import QUESTION_TYPES, Question, ask_about
from fastervlm_video.mini.render import frame_times, render_scene, render_scenes
from fastervlm_video.mini.resolve import MINI_ALIAS, ResolvedModel, resolve_model
from fastervlm_video.mini.scenes import COLORS, SHAPES, Scenes, SceneStyle, random_scene, sample_scenes

__all__ = [
    "COLORS",
    "MINI_ALIAS",
    "MINI_NAME",
    "QUESTION_TYPES",
    "SHAPES",
    "MiniSize",
    "Question",
    "ResolvedModel",
    "SceneStyle",
    "Scenes",
    "ask_about",
    "frame_times",
    "random_scene",
    "render_scene",
    "render_scenes",
    "resolve_model",
    "sample_scenes",
    "save_mini_checkpoint",
]
