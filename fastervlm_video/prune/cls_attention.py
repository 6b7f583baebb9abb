"""FasterVLM: keep what the vision encoder's own [CLS] token attends to most."""

from fastervlm_video.prune.base import Need, PruneInputs, PruneMethod, Selection
from fastervlm_video.prune.scores import top_k_stable

__all__ = ["CLS_ATTENTION"]


def _select(inputs: PruneInputs) -> Selection:
    scores = inputs.cls_attention
    assert scores is not None  # declared below, provided by the encoder
    indices = top_k_stable(scores, inputs.tokens_per_frame)
    return Selection.equal_counts(indices, scores.gather(1, indices))


CLS_ATTENTION = PruneMethod(
    name="cls_attention",
    source="FasterVLM, arXiv 2412.01818, section 3.2",
    select=_select,
    needs=frozenset({Need.CLS_ATTENTION}),
    nested=True,
    fixed_count=True,
    fixed_total=True,
    seeded=False,
    framewise=True,
)
"""The paper's method."""
