"""FastV against Hugging Face's own attention maps and a re-implementation without cache, from the description."""

import random
from typing import Any, cast

import pytest
import torch
from torch import Tensor
from transformers import MistralConfig, MistralForCausalLM, PreTrainedTokenizerFast

from fastervlm_video.errors import CheckpointError, InvalidRequestError
from fastervlm_video.eval import FastV, mean_visual_tokens
from fastervlm_video.language import GenerationRequest
from fastervlm_video.models import LanguageHalf
from tests.language.toys import VISION_WIDTH, Oracle, byte_level_tokenizer, make_half, make_request

LAYERS = 2


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return byte_level_tokenizer()


@pytest.fixture(scope="module")
def half(tokenizer: PreTrainedTokenizerFast) -> LanguageHalf:
    return make_half(tokenizer, end_ids=[2, 70, 90, 110, 200])


@pytest.fixture(scope="module")
def oracle(half: LanguageHalf) -> Oracle:
    return Oracle(half)


def random_requests(half: LanguageHalf, count: int) -> list[GenerationRequest]:
    rng = random.Random(0)
    return [
        make_request(
            half,
            seed=rng.randrange(2**31),
            num_before=rng.randint(1, 5),
            num_visual=rng.randint(1, 24),
            num_after=rng.randint(1, 8),
            max_tokens=rng.choice([1, 4, 8]),
        )
        for _ in range(count)
    ]


def naive_layers(oracle: Oracle, hidden: Tensor, positions: Tensor, first: int, last: int) -> Tensor:
    """Layers ``first`` to ``last`` over a whole sequence, eager, with a mask written out."""
    model: Any = oracle.model.model
    length = len(positions)
    mask = torch.full((length, length), -torch.inf).triu(1)[None, None]
    rotation = model.rotary_emb(hidden, positions[None])
    for layer in model.layers[first:last]:
        hidden = layer(hidden, attention_mask=mask, position_ids=positions[None], position_embeddings=rotation)
    return hidden


@torch.no_grad()
def naive_fastv(oracle: Oracle, request: GenerationRequest, layer: int, keep: int) -> tuple[list[int], list[int]]:
    """Everything anew for each token: generated ids, and the visual tokens that were kept."""
    model: Any = oracle.model
    prompt = request.prompt
    start, stop = len(prompt.ids_before), len(prompt.ids_before) + prompt.num_visual
    embeds = oracle.embeds(request)[None]
    maps = model(inputs_embeds=embeds, output_attentions=True).attentions
    received = maps[max(layer - 1, 0)][0].mean(dim=0)[-1, start:stop].tolist()
    best = sorted(range(len(received)), key=lambda index: (-received[index], index))
    kept = sorted(best[:keep])
    sequence: list[int] = []
    while True:
        positions = torch.arange(embeds.shape[1])
        hidden = naive_layers(oracle, embeds, positions, 0, layer)
        stay = [i for i in positions.tolist() if not start <= i < stop or i - start in kept]
        hidden = naive_layers(oracle, hidden[:, stay], positions[stay], layer, LAYERS)
        sequence.append(int(model.lm_head(model.model.norm(hidden[0, -1])).argmax()))
        if sequence[-1] in model.config.eos_token_id or len(sequence) == request.sampling.max_tokens:
            return sequence, kept
        embeds = torch.cat([embeds, model.get_input_embeddings()(torch.tensor([[sequence[-1]]]))], dim=1)


@pytest.mark.parametrize("layer", [0, 1])
def test_equals_the_naive_method(half: LanguageHalf, oracle: Oracle, layer: int) -> None:
    fastv, rng = FastV(half, layer), random.Random(1)
    differed = 0
    for request in random_requests(half, 25):
        keep = rng.randint(1, request.prompt.num_visual)
        answer = fastv.answer(request.prompt, request.visual, keep, request.sampling.max_tokens)
        ids, kept = naive_fastv(oracle, request, layer, keep)
        assert list(answer.kept_indices) == kept
        assert list(answer.token_ids) == ids
        differed += tuple(ids) != oracle.answer(request)
    assert differed > 5  # pruning does change answers of a random model


@pytest.mark.parametrize("layer", [0, 1])
def test_with_everything_kept_it_is_hugging_faces_generate(half: LanguageHalf, oracle: Oracle, layer: int) -> None:
    fastv = FastV(half, layer)
    for request in random_requests(half, 25):
        answer = fastv.answer(request.prompt, request.visual, request.prompt.num_visual, request.sampling.max_tokens)
        assert answer.token_ids == oracle.answer(request)
        assert answer.kept_indices == tuple(range(request.prompt.num_visual))


def test_bad_arguments(half: LanguageHalf) -> None:
    for layer in (-1, LAYERS):
        with pytest.raises(InvalidRequestError, match=str(layer)):
            FastV(half, layer)
    request = make_request(half)
    for keep in (0, 6):
        with pytest.raises(InvalidRequestError, match=f"cannot keep {keep} of 5"):
            FastV(half, 1).answer(request.prompt, request.visual, keep, 4)
    several = make_request(half, inserts=((2, (7,)), (4, (7,))))
    with pytest.raises(InvalidRequestError, match="text at 2 places"):
        FastV(half, 1).answer(several.prompt, several.visual, 3, 4)


def test_only_llamas(half: LanguageHalf) -> None:
    config = MistralConfig(
        vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2,
    )  # fmt: skip
    other = LanguageHalf(MistralForCausalLM(config), half.projector, VISION_WIDTH, 64, "toy")
    with pytest.raises(CheckpointError, match="MistralForCausalLM"):
        FastV(other, 0)


def test_only_causal_without_a_mask(tokenizer: PreTrainedTokenizerFast) -> None:
    half = make_half(tokenizer)
    cast("Any", half.language_model).set_attn_implementation("eager")
    with pytest.raises(CheckpointError, match="'eager'"):
        FastV(half, 0)


def test_compute_is_counted_per_layer() -> None:
    assert mean_visual_tokens(100, 10, layer=0, layers=4) == 10
    assert mean_visual_tokens(100, 10, layer=1, layers=4) == (100 + 3 * 10) / 4
    assert mean_visual_tokens(100, 100, layer=2, layers=4) == 100
