from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from fastervlm_video.mini.questions import ask_about
from fastervlm_video.mini.render import frame_times
from fastervlm_video.mini.training.forward import question_states
from fastervlm_video.mini.training.packing import PackedQuestions, pack, tokenize
from tests.mini.kit import draw
from tests.mini.training.kit import TINY, alone, language_of, random_model

FRONT = 20  # embeddings in front of the questions


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def packed_questions() -> PackedQuestions:
    scenes, rng = draw(0, 2), np.random.default_rng(0)
    return pack([[tokenize(q) for q in ask_about(scenes, b, frame_times(8), rng, training=True)] for b in range(2)], 90)


def positions(squeeze: float) -> Tensor:
    """Whole at first, as those of the text before the video; then closer together."""
    steps = torch.cat([torch.ones(4), torch.full((FRONT - 4,), squeeze)])
    return steps.cumsum(0) - 1


@torch.no_grad()
@pytest.mark.parametrize("squeeze", [1.0, 0.4, 0.03])
def test_each_question_gets_the_states_that_llama_gives_it_alone(squeeze: float) -> None:
    model = language_of(random_model(replace(TINY, text_layers=3)))
    video = torch.randn(2, FRONT, TINY.text_width, generator=torch.Generator().manual_seed(1))
    questions, places = packed_questions(), positions(squeeze)
    states = question_states(model, video, places, questions)
    assert states.shape == (2, 90, TINY.text_width)
    compared = 0
    for row in range(2):
        for number in range(len(questions.kinds[row])):
            where = questions.segment[row] == number
            ids = questions.ids[row][where]
            behind = places[-1] + 1 + torch.arange(len(ids))
            # Without a squeeze, Hugging Face numbers the positions itself: they are contiguous.
            given = None if squeeze == 1 else torch.cat([places, behind])
            expected = alone(model, video[row], ids, given)
            assert torch.allclose(states[row][where], expected, atol=2e-4), (row, number)
            compared += 1
    assert compared > 10


@torch.no_grad()
def test_positions_and_the_video_matter() -> None:
    """What the comparison above rests on: the toy is not blind to either."""
    model = language_of(random_model())
    video = torch.randn(2, FRONT, TINY.text_width, generator=torch.Generator().manual_seed(1))
    questions = packed_questions()
    shown = questions.segment >= 0
    states = question_states(model, video, positions(1.0), questions)[shown]
    squeezed = question_states(model, video, positions(0.4), questions)[shown]
    other = question_states(model, video.roll(1, dims=1), positions(1.0), questions)[shown]
    assert (states - squeezed).abs().max() > 0.05
    assert (states - other).abs().max() > 0.05
