"""The data set that a user names."""

from functools import partial
from pathlib import Path
from typing import Literal, cast

from fastervlm_video.errors import InvalidRequestError
from fastervlm_video.eval.datasets.readers import read_gpt_zero_shot, read_jsonl, read_mvbench, read_video_mme
from fastervlm_video.eval.datasets.sample import Dataset

__all__ = ["DEFAULT_MINI_VIDEOS", "open_dataset"]

DEFAULT_MINI_VIDEOS = 200
_MINI_SPLITS = {"mini": "heldout", "mini-ood": "ood"}
_READERS = {"gpt-zero-shot": read_gpt_zero_shot, "videomme": read_video_mme, "mvbench": read_mvbench}


def open_dataset(name: str, *, limit: int | None = None, cache_dir: Path | None = None) -> Dataset:
    """Find a data set by what a user calls it, and see that its files are there.

    Args:
        name: ``mini`` or ``mini-ood`` (made on first use), ``gpt-zero-shot:DIR``, ``videomme:FILE``, ``mvbench:FILE``,
            or a JSON Lines file, see :mod:`fastervlm_video.eval.datasets.readers`.
        limit: take the first so many videos only.
        cache_dir: where the mini benchmark is kept; None is ``~/.cache/fastervlm-video``.

    Raises:
        InvalidRequestError: there is no such kind of data set, or the limit is less than one.
        InvalidInputError: a file of it is missing or damaged; the message says where to get it.
    """
    if name in _MINI_SPLITS:
        dataset = _open_mini(name, limit, cache_dir)
    else:
        kind, colon, place = name.partition(":")
        if colon and kind in _READERS:
            dataset = _READERS[kind](Path(place).expanduser())
        elif Path(name).suffix in {".jsonl", ".json"}:
            dataset = read_jsonl(Path(name).expanduser())
        else:
            known = ", ".join([*_MINI_SPLITS, *(f"{kind}:…" for kind in _READERS)])
            raise InvalidRequestError(f"unknown data set {name!r}: give one of {known}, or a .jsonl file")
    return dataset.limited(limit).require_videos()


def _open_mini(name: str, limit: int | None, cache_dir: Path | None) -> Dataset:
    from fastervlm_video.mini.benchmark import QUESTIONS_FILE, ensure_benchmark, video_coverage

    split = cast("Literal['heldout', 'ood']", _MINI_SPLITS[name])
    folder = ensure_benchmark(
        cache_dir or Path.home() / ".cache" / "fastervlm-video", split, max(limit or DEFAULT_MINI_VIDEOS, 1)
    )
    dataset = read_jsonl(folder / QUESTIONS_FILE, name=name)
    return Dataset(name, folder, dataset.samples, coverage=partial(video_coverage, folder))
