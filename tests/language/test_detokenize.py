"""Streamed text against decoding everything at once, for the kinds of tokenizers that checkpoints have."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from fastervlm_video.language.detokenize import Detokenizer
from fastervlm_video.mini.vocabulary import build_tokenizer
from tests.language.toys import byte_level_tokenizer, sentencepiece_tokenizer, whole_text

TOKENIZERS = {
    "byte-level": byte_level_tokenizer(),
    "sentencepiece": sentencepiece_tokenizer(),
    "words": build_tokenizer(),
}
TEXTS = (
    "The ball is red.",
    "Über die Straße 🙂🎉👩‍👩‍👧 — 你好世界。",
    "  two  blanks\n\n and\tlines ",
    "🙂",
    "a🙂b🎉c",
)


def pieces_of(tokenizer: PreTrainedTokenizerFast, ids: list[int]) -> list[str]:
    detokenizer = Detokenizer(tokenizer)
    pieces = [detokenizer.push(i) for i in ids]
    assert not any(piece.endswith("\ufffd") for piece in pieces)  # half characters wait
    return [*pieces, detokenizer.flush()]


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("text", TEXTS)
def test_pieces_join_to_the_whole(kind: str, text: str) -> None:
    tokenizer = TOKENIZERS[kind]
    ids = tokenizer(text)["input_ids"]
    for end in range(len(ids) + 1):  # cut anywhere, also inside a character
        assert "".join(pieces_of(tokenizer, ids[:end])) == whole_text(tokenizer, ids[:end])


@pytest.mark.parametrize("kind", TOKENIZERS)
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_pieces_of_random_ids_join_to_the_whole(kind: str, data: st.DataObject) -> None:
    tokenizer = TOKENIZERS[kind]
    beyond = len(tokenizer) + 3  # a model may have more logits than its tokenizer has tokens
    ids = data.draw(st.lists(st.integers(0, beyond), max_size=30))
    assert "".join(pieces_of(tokenizer, ids)) == whole_text(tokenizer, ids)


def test_byte_runs_with_a_bad_byte_or_a_special_token_inside() -> None:
    tokenizer = TOKENIZERS["sentencepiece"]
    vocabulary = tokenizer.get_vocab()
    rng = random.Random(0)
    smile = list("🙂".encode())
    byte_ids = [vocabulary[f"<0x{byte:02X}>"] for byte in range(256)]
    for _ in range(100):
        bad = [byte_ids[rng.choice([0xFF, 0xE2, 0x41])]] * rng.randint(0, 2)
        pad = [vocabulary["<pad>"]] * rng.randint(0, 1)  # decoders do not see it, so the run goes on behind it
        parts = [[byte_ids[byte] for byte in smile], pad, bad, [vocabulary["▁the"]]]
        ids = [i for part in rng.choices(parts, k=6) for i in part]
        assert "".join(pieces_of(tokenizer, ids)) == whole_text(tokenizer, ids)


def test_text_comes_as_soon_as_its_characters_are_whole() -> None:
    tokenizer = TOKENIZERS["byte-level"]
    ids = [tokenizer.get_vocab()[letter] for letter in ("a", "b")]
    smile = tokenizer("🙂", add_special_tokens=False)["input_ids"]
    assert len(smile) > 1
    assert pieces_of(tokenizer, [*ids, *smile]) == ["a", "b", *[""] * (len(smile) - 1), "🙂", ""]


def test_special_tokens_between_words_do_not_swallow_blanks() -> None:
    tokenizer = TOKENIZERS["sentencepiece"]
    the, pad = (tokenizer.get_vocab()[token] for token in ("▁the", "<pad>"))
    assert "".join(pieces_of(tokenizer, [the, pad, the, pad, pad, the])) == "the the the"


def test_blanks_in_front_are_dropped_even_token_by_token() -> None:
    tokenizer = TOKENIZERS["byte-level"]
    ids = (
        tokenizer(" ", add_special_tokens=False)["input_ids"] * 3
        + tokenizer("\n a b", add_special_tokens=False)["input_ids"]
    )
    assert "".join(pieces_of(tokenizer, ids)) == "a b"
