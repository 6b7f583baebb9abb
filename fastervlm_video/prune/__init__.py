"""Which visual tokens to keep: scores and methods as pure tensor functions, and a registry of them."""

from fastervlm_video.prune.base import Need, PruneInputs, PruneMethod, Selection
from fastervlm_video.prune.baselines import RANDOM, UNIFORM_GRID
from fastervlm_video.prune.checks import check_selection
from fastervlm_video.prune.cls_attention import CLS_ATTENTION
from fastervlm_video.prune.cls_dpp import CLS_DPP
from fastervlm_video.prune.divprune import DIVPRUNE
from fastervlm_video.prune.evs import EVS
from fastervlm_video.prune.registry import get_method, method_names, register
from fastervlm_video.prune.scores import cls_attention_scores, top_k_stable
from fastervlm_video.prune.visionzip import VISIONZIP
from fastervlm_video.prune.vispruner import VISPRUNER

__all__ = [
    "CLS_ATTENTION",
    "CLS_DPP",
    "DIVPRUNE",
    "EVS",
    "RANDOM",
    "UNIFORM_GRID",
    "VISIONZIP",
    "VISPRUNER",
    "Need",
    "PruneInputs",
    "PruneMethod",
    "Selection",
    "check_selection",
    "cls_attention_scores",
    "get_method",
    "method_names",
    "register",
    "top_k_stable",
]
