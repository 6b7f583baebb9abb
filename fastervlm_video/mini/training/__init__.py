"""How the mini model is trained: the recipe of LLaVA, at a size that two CPU cores manage."""

from fastervlm_video.mini.training.loop import Report
from fastervlm_video.mini.training.recipe import SMOKE, STANDARD, Recipe, train_mini

__all__ = ["SMOKE", "STANDARD", "Recipe", "Report", "train_mini"]
