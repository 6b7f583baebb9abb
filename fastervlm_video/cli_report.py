"""What ``ask`` reports of an answer: one JSON object, or the answer and a line on where it came from."""

import dataclasses
from typing import TYPE_CHECKING, Any

from rich.console import Console

from fastervlm_video.config import Medium

if TYPE_CHECKING:
    from fastervlm_video.pipeline import Answer, EncodedVideo
    from fastervlm_video.plan import ModelFacts

__all__ = ["print_answer", "report_of", "token_counts"]


def token_counts(facts: "ModelFacts", encoded: "EncodedVideo") -> tuple[int, int]:
    """Visual tokens that the language model sees, and those that it would see unpruned; separators included."""
    sequence = facts.arrange(encoded.tokens)
    return len(sequence), encoded.tokens.tokens_full + len(sequence.separators)


def report_of(facts: "ModelFacts", encoded: "EncodedVideo", answer: "Answer") -> dict[str, Any]:
    """For machines, in the words of the service's REST interface: what is under ``video`` may be a picture."""
    tokens = encoded.tokens
    kept, full = token_counts(facts, encoded)
    return {
        "model": facts.name,
        "answer": answer.text,
        "finish_reason": answer.finish_reason,
        "usage": dataclasses.asdict(answer.usage),
        "video": {
            "sha256": encoded.digest,
            "medium": tokens.medium.value,
            "frames": tokens.num_pictures,
            "frame_seconds": [round(moment, 3) for moment in tokens.pts_seconds[:: tokens.views_per_picture]],
            "views_per_picture": tokens.views_per_picture,
            "method": tokens.method,
            "tokens_full": full,
            "tokens_kept": kept,
            "tokens_per_frame": list(tokens.counts),  # of each view, where a frame has several
            "cache": encoded.cache,
            "seconds": {name: round(value, 4) for name, value in (encoded.seconds | answer.seconds).items()},
        },
    }


def print_answer(report: dict[str, Any]) -> None:
    """The answer on standard output, and a line of numbers on standard error."""
    video = report["video"]
    Console().print(report["answer"], markup=False, highlight=False, soft_wrap=True)
    seconds = ", ".join(f"{name} {value:.2f} s" for name, value in video["seconds"].items())
    line = (
        f"{report['model']}: {video['tokens_kept']} of {video['tokens_full']} visual tokens "
        f"({_seen(video)}, {video['method']}); {seconds}"
    )
    Console(stderr=True).print(line, style="dim", markup=False, highlight=False, soft_wrap=True)


def _seen(video: dict[str, Any]) -> str:
    """``8 frames``, ``1 picture, 5 views`` or ``8 frames, 5 views each``."""
    picture, views = video["medium"] == Medium.IMAGE, video["views_per_picture"]
    shown = _counted(video["frames"], "picture" if picture else "frame")
    return shown if views == 1 else f"{shown}, {views} views{'' if picture else ' each'}"


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
