"""Does a model's language half lean on background tokens?

Of each frame of the mini benchmark's videos, the patches that objects cover most are kept, and beside them none, one or
a few that show nothing but background, drawn at random. A model that only needs to see the objects answers alike; one
that came to count on background being there answers better with a token that shows nothing.

    python benchmarks/background.py                    # the model that comes with the package
    python benchmarks/background.py --model my-mini
"""

import argparse
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fastervlm_video import VideoQA
from fastervlm_video.config import FrameSampling, PruneSpec, SamplingParams
from fastervlm_video.eval import open_dataset
from fastervlm_video.eval.answering import answer_all
from fastervlm_video.eval.datasets import Dataset, Sample
from fastervlm_video.eval.oracle import select_by_coverage
from fastervlm_video.eval.scoring import exact_match
from fastervlm_video.language import GenerationRequest
from fastervlm_video.media import decode_video
from fastervlm_video.vision import EncodeJob, VisualTokens

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
    right: dict[int, dict[str, list[bool]]] = {count: defaultdict(list) for count in options.background}
    with VideoQA.from_pretrained(options.model) as qa:
        for path, samples in dataset.by_video().items():
            full = all_tokens(qa, path)
            covered = coverage(dataset, samples[0], full)
            for count, outcomes in right.items():
                kept = keep(full, covered, options.objects, count)
                for sample, answer in zip(samples, ask(qa, kept, samples), strict=True):
                    outcomes[sample.kind or ""].append(exact_match(answer, sample.answer))
                    outcomes["all"].append(outcomes[sample.kind or ""][-1])
    kinds = sorted(right[options.background[0]])
    print("| patches of objects | of background | " + " | ".join(kinds) + " |")
    print("| ---: | ---: |" + " ---: |" * len(kinds))
    for count, outcomes in right.items():
        shares = " | ".join(f"{100 * np.mean(outcomes[kind]):.1f}" for kind in kinds)
        print(f"| {options.objects} | {count} | {shares} |")


def all_tokens(qa: VideoQA, path: Path) -> VisualTokens:
    """Of one video, nothing pruned."""
    resize = qa.facts.preprocessing().resize
    frames = decode_video(path, FrameSampling(), limits=qa.limits, resize=resize)
    return qa.encoder.encode([EncodeJob(frames, PruneSpec(keep_ratio=1.0))])[0]


def coverage(dataset: Dataset, sample: Sample, full: VisualTokens) -> npt.NDArray[np.float32]:
    """float32 [T, N]: how much of each patch is covered by objects."""
    assert dataset.coverage is not None  # the mini benchmark knows
    return dataset.coverage(dataset.video_name(sample), full.pts_seconds, full.grid)


def keep(full: VisualTokens, covered: npt.NDArray[np.float32], objects: int, background: int) -> VisualTokens:
    """The patches of each frame that are covered most, and some of those that are not covered at all."""
    rng = np.random.default_rng(0)
    lots = rng.random(covered.shape)
    most = np.lexsort((lots, -covered), axis=-1)[:, :objects]
    empty = np.lexsort((lots, covered), axis=-1)[:, :background]
    ranks = np.zeros(covered.shape, np.float32)
    np.put_along_axis(ranks, empty, 1.0, axis=-1)
    np.put_along_axis(ranks, most, 2.0, axis=-1)
    return select_by_coverage(full, ranks, objects + background)


def ask(qa: VideoQA, tokens: VisualTokens, samples: Sequence[Sample]) -> list[str]:
    """Greedy answers, in order."""
    sequence = qa.facts.arrange(tokens)
    requests = [
        GenerationRequest(
            sample.question_id, qa.facts.prompt(sample.prompt, sequence.runs, PARAMS), sequence.features, PARAMS
        )
        for sample in samples
    ]
    return [answer if isinstance(answer, str) else "" for answer in answer_all(qa.engine, requests)]


if __name__ == "__main__":
    main()
