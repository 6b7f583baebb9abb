from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from fastervlm_video.language import VICUNA_CHAT_TEMPLATE
from fastervlm_video.mini.vocabulary import CHAT_TEMPLATE, WORDS, build_tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return build_tokenizer()


def ask(question: str, kind: str = "video") -> Any:
    return [{"role": "user", "content": [{"type": "text", "text": question}, {"type": kind}]}]


def render(tokenizer: PreTrainedTokenizerBase, messages: Any) -> str:
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert isinstance(text, str)
    return text


def test_special_tokens_come_first_and_are_known_by_their_role(tokenizer: PreTrainedTokenizerBase) -> None:
    special = ["<pad>", "<s>", "</s>", "<unk>", "<image>", "<video>"]
    assert tokenizer.convert_tokens_to_ids(special) == list(range(6))
    roles = [tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id]
    assert roles == [0, 1, 2, 3]
    assert set(tokenizer.all_special_ids) == set(range(6))


def test_every_word_has_an_id_of_its_own(tokenizer: PreTrainedTokenizerBase) -> None:
    ids = {word: tokenizer.convert_tokens_to_ids(word) for word in WORDS}
    assert sorted(set(ids.values())) == list(range(6, len(tokenizer)))


def test_words_survive_the_way_there_and_back(tokenizer: PreTrainedTokenizerBase) -> None:
    text = "what color is the red square ?"
    ids = tokenizer(text)["input_ids"]
    assert ids[0] == tokenizer.bos_token_id
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_case_and_spacing_do_not_matter_and_other_words_are_unknown(tokenizer: PreTrainedTokenizerBase) -> None:
    assert tokenizer("What COLOR?")["input_ids"] == tokenizer("what  color ?")["input_ids"]
    unknown = tokenizer("what zebra", add_special_tokens=False)["input_ids"]
    assert unknown[1] == tokenizer.unk_token_id != unknown[0]


def test_the_prompt_is_vicunas(tokenizer: PreTrainedTokenizerBase) -> None:
    assert render(tokenizer, ask("What moves?")) == "USER: <video>\nWhat moves? ASSISTANT:"
    assert render(tokenizer, ask("What moves?", "image")) == "USER: <image>\nWhat moves? ASSISTANT:"


def test_a_question_is_laid_out_as_by_the_template_for_checkpoints_without_one(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    expected = tokenizer.apply_chat_template(
        ask("what ?"), chat_template=VICUNA_CHAT_TEMPLATE, tokenize=False, add_generation_prompt=True
    )
    assert render(tokenizer, ask("what ?")) == expected


def test_the_placeholder_is_one_token_wherever_it_stands(tokenizer: PreTrainedTokenizerBase) -> None:
    ids = tokenizer(render(tokenizer, ask("what ?")))["input_ids"]
    assert ids.count(tokenizer.convert_tokens_to_ids("<video>")) == 1
    assert tokenizer("red<video>red", add_special_tokens=False)["input_ids"][1] == 5


def test_it_is_the_same_after_saving(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.chat_template == CHAT_TEMPLATE
    text = "USER: <video>\nWhich shape is first? ASSISTANT:"
    assert loaded(text)["input_ids"] == tokenizer(text)["input_ids"]
