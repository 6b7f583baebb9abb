"""Does a model's language half lean on background tokens?

Of each frame of the mini benchmark's videos, the patches that objects cover most are kept, and beside them none, one or
a few that show nothing but background, drawn at random. A model that only needs to see the objects answers alike; one
that came to count on background being there answers better with a token that shows nothing.

    python benchmarks/background.py                    # the model that comes with the package
    python benchmarks/background.py --model my-mini
"""

import argparse
from collections import defaultdict
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from fastervlm_video import VideoQA
from fastervlm_video.config import PruneSpec, SamplingParams
from fastervlm_video.eval import open_dataset
from fastervlm_video.eval.oracle import select_by_coverage
from fastervlm_video.eval.scoring import exact_match
from fastervlm_video.vision import VisualTokens

PARAMS = SamplingParams(max_tokens=16)


def main() -> None:
    """Keep, ask, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mini", help="a checkpoint's folder (default: the model of the package)")
    parser.add_argument("--videos", type=int, default=40, help="of the mini benchmark (default 40)")
    parser.add_argument("--objects", type=int, default=3, help="patches of objects kept of each frame (default 3)")
    parser.add_argument("--background", type=int, nargs="+", default=[0, 1, 3], help="of background (default 0 1 3)")
    options = parser.parse_args()
    dataset = open_dataset("mini", limit=options.videos)
    assert dataset.coverage is not None  # the mini benchmark knows where the objects are
    right: dict[int, dict[str, list[bool]]] = {count: defaultdict(list) for count in options.background}
    with VideoQA.from_pretrained(options.model) as qa:
        for path, samples in dataset.by_video().items():
            video = qa.encode(path, prune=PruneSpec(keep_ratio=1.0))
            full = video.tokens
            covered = dataset.coverage(dataset.video_name(samples[0]), full.pts_seconds, full.grid)
            for count, outcomes in right.items():
                kept = replace(video, tokens=keep(full, covered, options.objects, count), identity=None)
                for sample in samples:
                    answered = exact_match(qa.ask(kept, sample.prompt, PARAMS).text, sample.answer)
                    for kind in ("all", sample.kind or "other"):
                        outcomes[kind].append(answered)
    kinds = sorted(right[options.background[0]])
    print("| patches of objects | of background | " + " | ".join(kinds) + " |")
    print("| ---: | ---: |" + " ---: |" * len(kinds))
    for count, outcomes in right.items():
        shares = " | ".join(f"{100 * np.mean(outcomes[kind]):.1f}" for kind in kinds)
        print(f"| {options.objects} | {count} | {shares} |")


def keep(full: VisualTokens, covered: npt.NDArray[np.float32], objects: int, background: int) -> VisualTokens:
    """The patches of each frame that are covered most, and some of those that are not covered at all."""
    lots = np.random.default_rng(0).random(covered.shape)
    most = np.lexsort((lots, -covered), axis=-1)[:, :objects]
    ranks = (covered == 0).astype(np.float32)
    np.put_along_axis(ranks, most, 2.0, axis=-1)
    return select_by_coverage(full, ranks, objects + background)


if __name__ == "__main__":
    main()
