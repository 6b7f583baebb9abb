from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fastervlm_video.mini.questions import ask_about
from fastervlm_video.mini.render import frame_times
from fastervlm_video.mini.training.dropout import VideoDropout, draw_dropout
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


def some(share: float, *shape: int) -> Tensor:
    """True nearly everywhere but in about ``share`` of the places."""
    return torch.rand(*shape, generator=torch.Generator().manual_seed(3)) >= share


@torch.no_grad()
def test_tokens_that_no_layer_updates_keep_their_embedding() -> None:
    """The oracle is Llama itself, whose layers give such tokens back as they got them."""
    model = language_of(random_model(replace(TINY, text_layers=3)))
    video = torch.randn(2, FRONT, TINY.text_width, generator=torch.Generator().manual_seed(1))
    updated = some(0.6, 2, FRONT)
    questions, places = packed_questions(), positions(1.0)
    dropout = VideoDropout(updated, torch.ones(3, 2, FRONT, dtype=torch.bool))
    states = question_states(model, video, places, questions, dropout)
    plain = question_states(model, video, places, questions)
    for row in range(2):
        keep = torch.cat([~updated[row], torch.zeros(90, dtype=torch.bool)])[None, :, None]
        hooks = [layer.register_forward_hook(partial(_undo, keep)) for layer in model.layers]
        for number in range(len(questions.kinds[row])):
            where = questions.segment[row] == number
            expected = alone(model, video[row], questions.ids[row][where])
            assert torch.allclose(states[row][where], expected, atol=2e-4), (row, number)
            assert not torch.allclose(plain[row][where], expected, atol=2e-2)
        for hook in hooks:
            hook.remove()


def _undo(keep: Tensor, _: nn.Module, given: tuple[Tensor, ...], moved: Tensor) -> Tensor:
    return torch.where(keep[:, : moved.shape[1]], given[0], moved)


@torch.no_grad()
def test_hidden_keys_are_seen_by_nobody_but_themselves() -> None:
    """The oracle is Llama itself with another mask in every layer."""
    model = language_of(random_model(replace(TINY, text_layers=3)))
    video = torch.randn(2, FRONT, TINY.text_width, generator=torch.Generator().manual_seed(1))
    visible = some(0.5, 3, 2, FRONT)
    questions, places = packed_questions(), positions(1.0)
    dropout = VideoDropout(torch.ones(2, FRONT, dtype=torch.bool), visible)
    states = question_states(model, video, places, questions, dropout)
    for row in range(2):
        for number in range(len(questions.kinds[row])):
            ids = questions.ids[row][questions.segment[row] == number]
            length = FRONT + len(ids)
            hooks = []
            for layer, seen in zip(model.layers, visible[:, row], strict=True):
                mask = torch.ones(length, length, dtype=torch.bool).tril()
                for key in torch.nonzero(~seen)[:, 0].tolist():
                    mask[:, key] = False
                    mask[key, key] = True
                hooks.append(layer.register_forward_pre_hook(partial(_masked, mask[None, None]), with_kwargs=True))
            expected = alone(model, video[row], ids)
            assert torch.allclose(states[row][questions.segment[row] == number], expected, atol=2e-4), (row, number)
            for hook in hooks:
                hook.remove()


def _masked(
    mask: Tensor, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return args, kwargs | {"attention_mask": mask}


def test_what_is_drawn_follows_the_shares_and_spares_the_text() -> None:
    dropout = draw_dropout(np.random.default_rng(0), layers=6, batch=2000, length=104, exempt=4)
    assert dropout.updated[:, :4].all()
    assert dropout.visible[..., :4].all()
    updated, visible = dropout.updated[:, 4:].float().mean(-1), dropout.visible[..., 4:].float().mean(-1)
    untouched = (updated == 1) & (visible == 1).all(0)
    assert untouched.float().mean() == pytest.approx(0.15, abs=0.02)
    assert (updated == 1).float().mean() == pytest.approx(0.15 + 0.85 * 0.2, abs=0.03)
    assert (visible == 1).float().mean() == pytest.approx(0.15 + 0.85 * 0.3, abs=0.03)
    # Log-uniform from 1/500 and from 1/1000: half of the others are below the square roots of these.
    assert (updated[updated < 1] < 500**-0.5).float().mean() == pytest.approx(0.5, abs=0.04)
    assert (visible[visible < 1] < 1000**-0.5).float().mean() == pytest.approx(0.5, abs=0.04)
    assert (visible[:, visible.min(0).values == 0] > 0.5).any()  # a layer that sees nothing, beside one that sees


@torch.no_grad()
def test_nothing_dropped_is_nothing_changed() -> None:
    model = language_of(random_model())
    video = torch.randn(2, FRONT, TINY.text_width, generator=torch.Generator().manual_seed(1))
    questions = packed_questions()
    plain = question_states(model, video, positions(1.0), questions)
    all_there = VideoDropout(
        torch.ones(2, FRONT, dtype=torch.bool), torch.ones(TINY.text_layers, 2, FRONT, dtype=torch.bool)
    )
    dropped = question_states(model, video, positions(1.0), questions, all_there)
    assert torch.allclose(plain, dropped, atol=1e-5)
