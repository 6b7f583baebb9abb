"""Cosine similarity of patches, in float32 whatever the inputs' dtype."""

from torch import Tensor
from torch.nn import functional

__all__ = ["cosine_similarities", "unit_vectors"]


def unit_vectors(vectors: Tensor) -> Tensor:
    """The vectors' directions; a zero vector stays zero, and so is similar to nothing.

    Args:
        vectors: floating [..., C].

    Returns:
        float32 [..., C].
    """
    return functional.normalize(vectors.float(), dim=-1)


def cosine_similarities(vectors: Tensor) -> Tensor:
    """Similarity of every patch of a frame to every patch of the same frame.

    Args:
        vectors: floating [T, N, C].

    Returns:
        float32 [T, N, N], in [-1, 1] up to rounding, and symmetric to the last bit: two patches that are each
        other's nearest are a tie, and rounding must not decide it.
    """
    directions = unit_vectors(vectors)
    products = directions @ directions.mT
    return (products + products.mT) / 2
