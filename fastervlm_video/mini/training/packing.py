"""Many questions about one video in one sequence, none of which sees another.

::

    video    <s> user : v v v v v v             seen by every question
    question what color ? assistant : red </s>  sees the video and itself
    question how many ? assistant : two </s>    sees the video and itself, at the same positions

so that a video, hundreds of tokens long, is computed once for a dozen questions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from fastervlm_video.language import PromptBuilder
from fastervlm_video.mini.questions import Question
from fastervlm_video.mini.vocabulary import build_tokenizer

__all__ = ["IGNORED", "PackedQuestions", "QuestionTokens", "ids_before_video", "pack", "tokenize"]

IGNORED = -100


@dataclass(frozen=True, slots=True)
class QuestionTokens:
    """A question as the model is to see and answer it.

    Attributes:
        kind: of the question.
        prompt: ids from behind the video to the opening of the answer.
        answer: ids of the answer, the end of sequence included.
    """

    kind: str
    prompt: tuple[int, ...]
    answer: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.prompt) + len(self.answer)


@lru_cache(maxsize=1)
def _tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer()


@lru_cache(maxsize=1)
def _prompts() -> PromptBuilder:
    return PromptBuilder(_tokenizer())


def ids_before_video() -> tuple[int, ...]:
    """Ids in front of the video in every prompt."""
    return _prompts().build("?", 1).ids_before


@lru_cache(maxsize=65_536)
def tokenize(question: Question) -> QuestionTokens:
    """In the prompt layout that the service uses."""
    tokenizer = _tokenizer()
    prompt = _prompts().build(question.text, 1).ids_after
    answer = tokenizer(question.answer, add_special_tokens=False)["input_ids"]
    return QuestionTokens(question.kind, prompt, (*answer, tokenizer.eos_token_id))


@dataclass(frozen=True, slots=True, eq=False)
class PackedQuestions:
    """Questions about B videos in rows of Q tokens.

    Attributes:
        ids: int64 [B, Q].
        segment: int64 [B, Q], which question of its row a token belongs to; -1 is padding.
        offset: int64 [B, Q], place of a token within its question.
        target: int64 [B, Q], the id that should follow, or :data:`IGNORED`.
        kinds: the kind of each question, row by row.
    """

    ids: Tensor
    segment: Tensor
    offset: Tensor
    target: Tensor
    kinds: tuple[tuple[str, ...], ...]

    def mask(self, prefix: int) -> Tensor:
        """Boolean [B, 1, Q, prefix + Q]: what each token may attend to."""
        length = self.ids.shape[1]
        own = self.segment[:, :, None] == self.segment[:, None]
        own &= torch.ones(length, length, dtype=torch.bool).tril()
        return torch.cat([own.new_ones(*own.shape[:2], prefix), own], dim=-1)[:, None]


def pack(rows: Sequence[Sequence[QuestionTokens]], length: int) -> PackedQuestions:
    """Lay out each row's questions one after the other, as many as fit in ``length`` tokens."""
    shape = (len(rows), length)
    ids, offset = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    segment, target = np.full(shape, -1, np.int64), np.full(shape, IGNORED, np.int64)
    kinds = []
    for row, questions in enumerate(rows):
        at = 0
        taken: list[str] = []
        for question in questions:
            size = len(question) - 1  # nothing follows the end of sequence
            if at + size > length:
                continue
            whole = (*question.prompt, *question.answer)
            ids[row, at : at + size] = whole[:-1]
            segment[row, at : at + size] = len(taken)
            offset[row, at : at + size] = np.arange(size)
            target[row, at + len(question.prompt) - 1 : at + size] = question.answer
            taken.append(question.kind)
            at += size
        kinds.append(tuple(taken))
    tensors = [torch.from_numpy(array) for array in (ids, segment, offset, target)]
    return PackedQuestions(tensors[0], tensors[1], tensors[2], tensors[3], tuple(kinds))
