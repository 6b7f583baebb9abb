"""In how many views a model may see a picture."""

from fastervlm_video.config import Medium
from fastervlm_video.plan import ModelFacts

__all__ = ["max_views"]


def max_views(facts: ModelFacts) -> int:
    """Most views of one picture, or one frame of a video: 1, unless the model looks at tiles of it, too."""
    tilings = [facts.preprocessing(medium).tiling for medium in Medium]
    return max(1 if tiling is None else tiling.max_views for tiling in tilings)
