import numpy as np
import pytest
import torch

from fastervlm_video.errors import InvalidRequestError
from fastervlm_video.eval import select_by_coverage
from fastervlm_video.vision import VisualTokens

FRAMES, GRID = 3, (4, 5)
PATCHES = GRID[0] * GRID[1]


def full_tokens(seed: int) -> VisualTokens:
    """All tokens in the order of some score; a feature tells its frame and its patch."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.stack([torch.randperm(PATCHES, generator=generator) for _ in range(FRAMES)])
    frames = torch.arange(FRAMES)[:, None].expand_as(order)
    return VisualTokens(
        features=torch.stack([frames, order], dim=-1).flatten(0, 1).float(),
        indices=order.flatten().int(),
        scores=torch.linspace(1, 0, PATCHES).repeat(FRAMES),
        counts=(PATCHES,) * FRAMES,
        grid=GRID,
        pts_seconds=(0.0, 1.0, 2.0),
        method="cls_attention",
        nested=True,
        fingerprint="x",
    )


@pytest.mark.parametrize("keep", [1, 4, PATCHES])
def test_most_covered_patches_of_each_frame_and_their_own_features(keep: int) -> None:
    for seed in range(10):
        coverage = np.random.default_rng(seed).random((FRAMES, PATCHES)).astype(np.float32)
        tokens = select_by_coverage(full_tokens(seed), coverage, keep)
        assert tokens.counts == (keep,) * FRAMES
        expected = [sorted(range(PATCHES), key=lambda i, t=t: -coverage[t, i])[:keep] for t in range(FRAMES)]  # type: ignore[misc]
        assert tokens.indices.view(FRAMES, keep).tolist() == expected
        assert tokens.features.view(FRAMES, keep, 2).tolist() == [
            [[t, i] for i in chosen] for t, chosen in enumerate(expected)
        ]
        assert tokens.scores.view(FRAMES, keep).tolist() == [
            [float(coverage[t, i]) for i in chosen] for t, chosen in enumerate(expected)
        ]
        assert (tokens.method, tokens.nested) == ("oracle", False)


def test_lots_decide_among_equals() -> None:
    coverage = np.zeros((FRAMES, PATCHES), np.float32)
    coverage[:, 7] = 0.5
    chosen = set()
    for seed in range(30):
        indices = select_by_coverage(full_tokens(0), coverage, 2, seed=seed).indices.view(FRAMES, 2)
        assert (indices[:, 0] == 7).all()
        chosen |= set(indices[:, 1].tolist())
        assert torch.equal(indices, select_by_coverage(full_tokens(0), coverage, 2, seed=seed).indices.view(FRAMES, 2))
    assert len(chosen) > PATCHES / 2
    assert len(set(select_by_coverage(full_tokens(0), coverage, 2).indices.view(FRAMES, 2)[:, 1].tolist())) > 1


def test_bad_arguments() -> None:
    full, coverage = full_tokens(0), np.zeros((FRAMES, PATCHES), np.float32)
    with pytest.raises(InvalidRequestError, match="needs all 20 tokens"):
        select_by_coverage(full.select(3), coverage, 2)
    with pytest.raises(InvalidRequestError, match=r"coverage must be \[3, 20\], got \[3, 19\]"):
        select_by_coverage(full, coverage[:, 1:], 2)
    for keep in (0, PATCHES + 1):
        with pytest.raises(InvalidRequestError, match=f"cannot keep {keep}"):
            select_by_coverage(full, coverage, keep)
