"""Draws scenes of both splits of the mini benchmark, one a row, at the eight moments that the model looks at.

Usage: python benchmarks/mini_scenes.py docs/images/mini_scenes.jpg
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image

from fastervlm_video.mini import render_scenes, sample_scenes
from fastervlm_video.mini.render import frame_times
from fastervlm_video.mini.scenes import OUT_OF_DISTRIBUTION, STANDARD

_SIDE = 112
_ROWS = 3  # of each split
_SEED = 6
_QUALITY = 86  # of the JPEG


def main(picture: Path) -> None:
    """Held-out scenes above, those out of distribution below."""
    rows = []
    for style in (STANDARD, OUT_OF_DISTRIBUTION):
        scenes = sample_scenes(np.random.default_rng(_SEED), _ROWS, style)
        times = np.tile(frame_times(8), (_ROWS, 1))
        rows += [np.concatenate(video, axis=1) for video in render_scenes(scenes, times, height=_SIDE, width=_SIDE)]
    Image.fromarray(np.concatenate(rows)).save(picture, quality=_QUALITY)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
