"""What pruning costs: a harness that runs the real pipeline over questions about video files.

::

    from fastervlm_video import VideoQA
    from fastervlm_video.eval import evaluate, open_dataset, write_report

    with VideoQA.from_pretrained("mini") as qa:
        results = evaluate(qa, open_dataset("mini", limit=50), Path("runs/mini"), methods=["cls_attention", "random"])
    write_report(results, Path("runs/mini"))
    results.row("cls_attention", 0.1).retention      # Estimate(value, low, high)
"""

from fastervlm_video.eval.arms import ALL_METHODS, BLIND, DEFAULT_KEEPS, FULL, ORACLE, Arm, check_arms, make_arms
from fastervlm_video.eval.compare import Comparison, compare_arms, compare_runs
from fastervlm_video.eval.datasets import Dataset, Sample, open_dataset
from fastervlm_video.eval.evaluate import DEFAULT_MAX_TOKENS, evaluate
from fastervlm_video.eval.fastv import FastV, FastVAnswer, mean_visual_tokens
from fastervlm_video.eval.judge import Judge, Judgement, judge_predictions, parse_judgement
from fastervlm_video.eval.oracle import select_by_coverage
from fastervlm_video.eval.plot import draw_retention, require_matplotlib
from fastervlm_video.eval.predictions import Prediction, PredictionStore, read_manifest, read_predictions
from fastervlm_video.eval.report import comparison_table, results_markdown, results_table, write_report
from fastervlm_video.eval.results import Constants, Results, Row, summarise
from fastervlm_video.eval.runner import Runner
from fastervlm_video.eval.scoring import Score, exact_match, normalise, parse_choice, score_prediction
from fastervlm_video.eval.stats import Draws, Estimate, Sampled, sign_flip_p_value

__all__ = [
    "ALL_METHODS",
    "BLIND",
    "DEFAULT_KEEPS",
    "DEFAULT_MAX_TOKENS",
    "FULL",
    "ORACLE",
    "Arm",
    "Comparison",
    "Constants",
    "Dataset",
    "Draws",
    "Estimate",
    "FastV",
    "FastVAnswer",
    "Judge",
    "Judgement",
    "Prediction",
    "PredictionStore",
    "Results",
    "Row",
    "Runner",
    "Sample",
    "Sampled",
    "Score",
    "check_arms",
    "compare_arms",
    "compare_runs",
    "comparison_table",
    "draw_retention",
    "evaluate",
    "exact_match",
    "judge_predictions",
    "make_arms",
    "mean_visual_tokens",
    "normalise",
    "open_dataset",
    "parse_choice",
    "parse_judgement",
    "read_manifest",
    "read_predictions",
    "require_matplotlib",
    "results_markdown",
    "results_table",
    "score_prediction",
    "select_by_coverage",
    "sign_flip_p_value",
    "summarise",
    "write_report",
]
