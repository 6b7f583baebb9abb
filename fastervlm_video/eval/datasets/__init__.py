"""Questions about video files, from the formats in which they come."""

from fastervlm_video.eval.datasets.readers import read_gpt_zero_shot, read_jsonl, read_mvbench, read_video_mme
from fastervlm_video.eval.datasets.registry import DEFAULT_MINI_VIDEOS, open_dataset
from fastervlm_video.eval.datasets.sample import Coverage, Dataset, Sample

__all__ = [
    "DEFAULT_MINI_VIDEOS",
    "Coverage",
    "Dataset",
    "Sample",
    "open_dataset",
    "read_gpt_zero_shot",
    "read_jsonl",
    "read_mvbench",
    "read_video_mme",
]
