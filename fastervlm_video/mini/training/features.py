"""The frozen tower's features of all training videos, computed once."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from fastervlm_video.mini.scenes import Scenes
from fastervlm_video.mini.training.clips import Corpus
from fastervlm_video.vision import Preprocessing, VisionTower

__all__ = ["FeatureSet", "extract_features"]

_CHUNK = 16  # videos per forward pass
_CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True, eq=False)
class FeatureSet:
    """Tower features of videos.

    Attributes:
        scenes: N of them.
        features: float16 [N, 8, patches, C], as the service stores them.
    """

    scenes: Scenes
    features: npt.NDArray[np.float16]

    def __len__(self) -> int:
        return len(self.scenes)

    def __add__(self, other: "FeatureSet") -> "FeatureSet":
        """Both, in memory."""
        scenes = Scenes.join([self.scenes, other.scenes])
        return FeatureSet(scenes, np.concatenate([self.features, other.features]))

    def first(self, count: int) -> "FeatureSet":
        """The first so many."""
        return FeatureSet(self.scenes[:count], self.features[:count])


def extract_features(
    corpus: Corpus,
    tower: VisionTower,
    preprocessing: Preprocessing,
    path: Path,
    *,
    progress: Callable[[int], None] = lambda _: None,
) -> FeatureSet:
    """Run the tower over a corpus, unless ``path`` holds the result already."""
    if not path.is_file():
        patches = tower.grid[0] * tower.grid[1]
        shape = (*corpus.frames_u8.shape[:2], patches, tower.width)
        scratch = path.with_suffix(".part")
        stored = np.lib.format.open_memmap(scratch, mode="w+", dtype=np.float16, shape=shape)
        for start in range(0, len(corpus), _CHUNK):
            frames = torch.from_numpy(np.array(corpus.frames_u8[start : start + _CHUNK]))
            output = tower(preprocessing.normalise(frames.flatten(0, 1), _CPU, torch.float32))
            stored[start : start + len(frames)] = output.features[:, 1:].half().numpy().reshape(-1, *shape[1:])
            progress(start + len(frames))
        stored.flush()
        scratch.rename(path)
    return FeatureSet(corpus.scenes, np.load(path, mmap_mode="r"))
