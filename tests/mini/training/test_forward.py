from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fastervlm_video.mini.questions import ask_about
from fastervlm_video.mini.render import frame_times
from fastervlm_video.mini.training.forward import VideoDropout, question_states
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


@dataclass(frozen=True, slots=True)
class Drawn(VideoDropout):
    """A dropout whose draws are known."""

    updated: Tensor
    visible: Tensor

    def draw_updated(self, batch: int, length: int) -> Tensor:
        assert self.updated.shape == (batch, length, 1)
        return self.updated

    def draw_visible(self, batch: int, heads: int, length: int) -> Tensor:
        assert self.visible.shape == (batch, heads, 1, length)
        return self.visible


def some(share: float, *shape: int) -> Tensor:
    """True nearly everywhere but in about ``share`` of the places."""
    return torch.rand(*shape, generator=torch.Generator().manual_seed(3)) >= share


@torch.no_grad()
def test_tokens_that_no_layer_updates_keep_their_embedding() -> None:
    """The oracle is Llama itself, whose layers give such tokens back as they got them."""
    model = language_of(random_model(replace(TINY, text_layers=3)))
    video = torch.randn(2, FRONT, TINY.text_width, generator=torch.Generator().manual_seed(1))
    updated = some(0.6, 2, FRONT, 1)
    questions, places = packed_questions(), positions(1.0)
    dropout = Drawn(0.5, 0.0, 0, updated, torch.ones(0))
    states = question_states(model, video, places, questions, dropout)
    plain = question_states(model, video, places, questions)
    for row in range(2):
        keep = torch.cat([~updated[row], torch.zeros(90, 1, dtype=torch.bool)])[None]
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
    """The oracle is Llama itself with a mask for every head."""
    model = language_of(random_model(replace(TINY, text_layers=3)))
    video = torch.randn(2, FRONT, TINY.text_width, generator=torch.Generator().manual_seed(1))
    visible = some(0.5, 2, TINY.text_heads, 1, FRONT)
    questions, places = packed_questions(), positions(1.0)
    dropout = Drawn(1.0, 0.5, 0, torch.ones(2, FRONT, 1, dtype=torch.bool), visible)
    states = question_states(model, video, places, questions, dropout)
    for row in range(2):
        for number in range(len(questions.kinds[row])):
            where = questions.segment[row] == number
            ids = questions.ids[row][where]
            length = FRONT + len(ids)
            mask = torch.ones(length, length, dtype=torch.bool).tril().repeat(1, TINY.text_heads, 1, 1)
            for head in range(TINY.text_heads):
                for key in torch.nonzero(~visible[row, head, 0])[:, 0].tolist():
                    mask[0, head, :, key] = False
                    mask[0, head, key, key] = True
            embedded = torch.cat([video[row], model.embed_tokens(ids)])[None]
            expected = model(inputs_embeds=embedded, attention_mask=mask, use_cache=False).last_hidden_state[0, FRONT:]
            assert torch.allclose(states[row][where], expected, atol=2e-4), (row, number)


def test_what_is_drawn_follows_the_shares_and_spares_the_text() -> None:
    torch.manual_seed(0)
    dropout = VideoDropout(updated_share=0.3, hidden_share=0.8, exempt=4)
    updated, visible = dropout.draw_updated(200, 104), dropout.draw_visible(50, 4, 104)
    assert updated[:, :4].all()
    assert visible[..., :4].all()
    assert updated[:, 4:].float().mean() == pytest.approx(0.3, abs=0.02)
    assert visible[..., 4:].float().mean() == pytest.approx(0.2, abs=0.02)


@torch.no_grad()
def test_nothing_dropped_is_nothing_changed() -> None:
    model = language_of(random_model())
    video = torch.randn(2, FRONT, TINY.text_width, generator=torch.Generator().manual_seed(1))
    questions = packed_questions()
    plain = question_states(model, video, positions(1.0), questions)
    dropped = question_states(model, video, positions(1.0), questions, VideoDropout(1.0, 0.0, 4))
    assert torch.equal(plain, dropped)
