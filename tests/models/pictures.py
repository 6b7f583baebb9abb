"""Pictures of many shapes, and this project's way with them, for comparison with Hugging Face's."""

import io
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fastervlm_video.config import FrameSampling, Medium, PruneSpec, SamplingParams
from fastervlm_video.language import Prompt
from fastervlm_video.language.embedding import embed_prompt
from fastervlm_video.media import FrameBatch, decode_picture, decode_video, write_video
from fastervlm_video.models import LanguageHalf
from fastervlm_video.plan import ModelFacts
from fastervlm_video.vision import VisualSequence, VisualTokens
from tests.checkpoints import random_frames

SIZES = {
    "wide": (20, 90),
    "very wide": (4, 300),
    "tall": (100, 30),
    "square": (64, 64),
    "tiny": (5, 7),
    "a pixel": (1, 1),
    "odd": (45, 37),
}
"""(height, width) in pixels."""

QUESTION = "what color is the circle ?"
NUM_FRAMES = 2


def picture(size: tuple[int, int], seed: int = 0) -> Image.Image:
    return Image.fromarray(random_frames(1, *size, seed)[0])


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def video(folder: str, size: tuple[int, int] = (48, 64)) -> str:
    path = f"{folder}/clip.mkv"
    write_video(path, random_frames(NUM_FRAMES, *size), fps=1, codec="ffv1", pix_fmt="bgr0")
    return path


@dataclass(frozen=True)
class Ours:
    """A question about a file, up to the language model's input."""

    tokens: VisualTokens
    sequence: VisualSequence
    prompt: Prompt

    @classmethod
    def of(cls, facts: ModelFacts, frames: FrameBatch, spec: PruneSpec, medium: Medium) -> "Ours":
        job = facts.encode_job(frames, spec, medium)
        (tokens,) = facts.checkpoint.load_vision("cpu", medium=medium).encode([job])
        sequence = facts.arrange(tokens)
        return cls(tokens, sequence, facts.prompt(QUESTION, sequence.runs, SamplingParams(), medium))

    @torch.no_grad()
    def embeddings(self, half: LanguageHalf) -> Tensor:
        return embed_prompt(half, self.prompt, self.sequence.features, self.sequence.separators)[None]


def decoded_picture(facts: ModelFacts, image: Image.Image) -> FrameBatch:
    steps = facts.preprocessing(Medium.IMAGE)
    return decode_picture(png(image), resize=steps.resize, tiling=steps.tiling)


def decoded_video(facts: ModelFacts, path: str) -> FrameBatch:
    steps = facts.preprocessing(Medium.VIDEO)
    return decode_video(path, FrameSampling(NUM_FRAMES), resize=steps.resize, tiling=steps.tiling)


def frames_of(path: str) -> list[Image.Image]:
    """The same moments, as a user would hand them to Hugging Face."""
    batch = decode_video(path, FrameSampling(NUM_FRAMES))
    return [Image.fromarray(np.asarray(frame)) for frame in batch.frames_thwc_u8]
