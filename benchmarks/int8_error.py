"""How far from the tower's numbers are tokens that were stored, as float16 and as int8 with a scale per token?

The error of a token is the length of the difference over the length of the token. With int8 it follows from the token's
crest, its largest number over the root mean square: a step is a 127th of the largest number, and rounding is off by
0.29 steps in the root mean square, so the error is about crest / 440. Features: the mini model's of its own benchmark's
videos; those of a ViT-L/14 with random weights; and normal ones of the same width of which one number in each token is
many times as large, as trained towers of that size are known to have.

    python benchmarks/int8_error.py --json int8.json
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import torch
from random_vision import IMAGE, random_clip
from torch import Tensor

from fastervlm_video import VideoQA
from fastervlm_video.cache import Storage, decode_tokens, encode_tokens
from fastervlm_video.config import FrameSampling
from fastervlm_video.eval import open_dataset
from fastervlm_video.media import decode_video
from fastervlm_video.vision import VisualTokens

WIDTH, TOKENS = 1024, 512
OUTLIERS = (15, 40)


def main() -> None:
    """Store, restore, compare, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="without the ViT-L/14")
    parser.add_argument("--videos", type=int, default=10, help="of the mini benchmark (default 10)")
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write the numbers here")
    options = parser.parse_args()
    torch.manual_seed(0)
    results = []
    print(
        "| features | crest | stored as | mean error | largest | least cosine |\n"
        "| --- | ---: | --- | ---: | ---: | ---: |"
    )
    for name, features in cases(options.videos, quick=options.quick):
        for dtype in (Storage.FLOAT16, Storage.INT8):
            row = {"features": name, "dtype": dtype.value, **errors(features, dtype)}
            results.append(row)
            print("| {features} | {crest:.1f} | {dtype} | {mean:.2%} | {largest:.2%} | {cosine:.6f} |".format_map(row))
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n")


def cases(videos: int, *, quick: bool) -> Iterator[tuple[str, Tensor]]:
    """Names and features, float32 [N, C]."""
    yield "mini", mini_features(videos)
    if not quick:
        yield "ViT-L/14, random weights", large_features()
    yield "normal", torch.randn(TOKENS, WIDTH)
    for factor in OUTLIERS:
        features = torch.randn(TOKENS, WIDTH)
        features[:, 0] *= factor
        yield f"normal, one number x {factor}", features


def mini_features(videos: int) -> Tensor:
    """All patches of some videos, as the tower gives them."""
    with VideoQA.from_pretrained("mini") as qa:
        resize = qa.facts.preprocessing().resize
        paths = open_dataset("mini", limit=videos).videos
        outputs = [qa.encoder.run_tower(decode_video(path, FrameSampling(), resize=resize)) for path in paths]
    return torch.cat([output.features[:, 1:].flatten(0, 1).float() for output in outputs])


def large_features() -> Tensor:
    """Of Video-LLaVA-7B's tower's dimensions, at the layer that is used."""
    tower = random_clip(width=WIDTH, layers=24, heads=16, patch=14)
    with torch.inference_mode():
        hidden: Tensor = tower(torch.randn(2, 3, IMAGE, IMAGE), output_hidden_states=True).hidden_states[-2]
    return hidden[:, 1:].flatten(0, 1)


def errors(features: Tensor, dtype: Storage) -> dict[str, float]:
    """Through the cache's own code, and back."""
    count = len(features)
    tokens = VisualTokens(
        features=features,
        indices=torch.arange(count, dtype=torch.int32),
        scores=torch.zeros(count),
        counts=(count,),
        grid=(1, count),
        pts_seconds=(0.0,),
        method="cls_attention",
        nested=True,
        fingerprint="benchmark",
    )
    wanted = features.double()
    found = decode_tokens(encode_tokens(tokens, dtype=dtype)).features.double()
    relative = (found - wanted).norm(dim=1) / wanted.norm(dim=1)
    crest = wanted.abs().amax(dim=1) / wanted.square().mean(dim=1).sqrt()
    return {
        "crest": float(crest.mean()),
        "mean": float(relative.mean()),
        "largest": float(relative.max()),
        "cosine": float(torch.nn.functional.cosine_similarity(found, wanted, dim=1).min()),
    }


if __name__ == "__main__":
    main()
