"""Prompts whose visual tokens come in several runs, against Hugging Face's processors, which see so many images."""

from itertools import groupby
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers
from transformers import (
    CLIPImageProcessor,
    LlavaNextImageProcessor,
    LlavaNextProcessor,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from fastervlm_video.errors import CheckpointError, InvalidRequestError
from fastervlm_video.language import VICUNA_CHAT_TEMPLATE, Message, Prompt, PromptBuilder
from fastervlm_video.language.prompt_builder import Part
from fastervlm_video.mini.vocabulary import build_tokenizer
from tests.language.toys import byte_level_tokenizer, sentencepiece_tokenizer

# In the forms that published checkpoints use: images of a turn first, each with a line break, then its texts.
_IMAGES = (
    "{% for part in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'text') %}"
)
VICUNA_STYLE = (
    "{% for message in messages %}{% if message['role'] != 'system' %}{{ message['role'].upper() + ': ' }}{% endif %}"
    + _IMAGES
    + "{{ part['text'] + ' ' }}{% endfor %}{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
MISTRAL_STYLE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ '<<SYS>>\n' + message['content'][0]['text'] + '\n<</SYS>>\n\n' }}"
    "{% elif message['role'] == 'user' %}{{ '[INST] ' }}" + _IMAGES + "{{ part['text'] }}{% endfor %}{{ ' [/INST]' }}"
    "{% else %}{{ ' ' + message['content'][0]['text'] + '</s> ' }}{% endif %}{% endfor %}"
)
TEMPLATES = {"USER:": VICUNA_STYLE, "[INST]": MISTRAL_STYLE, "default": VICUNA_CHAT_TEMPLATE}
PATCH, SIDE = 14, 28
CONVERSATIONS = {
    "one turn": [Message("user", "what colour is the ball ?")],
    "umlauts": [Message("user", "Was bewegt sich über die Straße? 🙂\nUnd warum?")],
    "three turns": [Message("user", "what"), Message("assistant", "a ball"), Message("user", "which colour")],
    "instructions": [Message("system", "be short"), Message("user", "why")],
}


def with_image_token(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    tokenizer.add_tokens([AddedToken("<image>", special=True, normalized=False)])
    return tokenizer


TOKENIZERS = {
    "byte-level": with_image_token(byte_level_tokenizer()),
    "sentencepiece": with_image_token(sentencepiece_tokenizer()),
    "words": build_tokenizer(),  # has no token for a line break
}


def llava_processor(tokenizer: PreTrainedTokenizerFast, template: str) -> Any:
    size = {"height": SIDE, "width": SIDE}
    images = CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size=size)
    return LlavaProcessor(images, tokenizer, PATCH, "default", template, num_additional_image_tokens=1)


def llava_next_processor(tokenizer: PreTrainedTokenizerFast, template: str) -> Any:
    size = {"height": SIDE, "width": SIDE}
    images = LlavaNextImageProcessor(
        size={"shortest_edge": SIDE}, crop_size=size, image_grid_pinpoints=[[28, 56], [56, 28], [56, 56], [28, 84]]
    )
    return LlavaNextProcessor(images, tokenizer, PATCH, "default", template, num_additional_image_tokens=1)


def processor_ids(processor: Any, turns: list[Message], sizes: list[tuple[int, int]]) -> list[int]:
    """What Hugging Face makes of a conversation whose first question has an image of each of these sizes."""
    first = next(number for number, turn in enumerate(turns) if turn.role == "user")
    images = [{"type": "image", "image": Image.fromarray(np.zeros((h, w, 3), np.uint8))} for h, w in sizes]
    conversation = [
        {"role": turn.role, "content": [*(images if number == first else []), {"type": "text", "text": turn.text}]}
        for number, turn in enumerate(turns)
    ]
    batch = processor.apply_chat_template(conversation, tokenize=True, return_dict=True, add_generation_prompt=True)
    (ids,) = batch["input_ids"]
    return list(ids)


def rows(ids: list[int], image_id: int) -> list[int]:
    """Lengths of the runs of an id."""
    return [len(list(group)) for i, group in groupby(ids) if i == image_id]


@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("kind", ["byte-level", "sentencepiece"])
@pytest.mark.parametrize("num_images", [1, 2, 9])
def test_frames_as_images_are_laid_out_as_llavas_processor_does(
    kind: str, template: str, conversation: str, num_images: int
) -> None:
    tokenizer, turns = TOKENIZERS[kind], CONVERSATIONS[conversation]
    image_id = tokenizer.get_vocab()["<image>"]
    expected = processor_ids(
        llava_processor(tokenizer, TEMPLATES[template]), turns, [(30 + n, 40) for n in range(num_images)]
    )
    per_image = (SIDE // PATCH) ** 2
    assert rows(expected, image_id) == [per_image] * num_images
    builder = PromptBuilder(tokenizer, "<image>", part="image", chat_template=TEMPLATES[template])
    prompt = builder.build_chat(turns, [per_image] * num_images)
    assert prompt.token_ids([image_id] * (per_image * num_images)) == tuple(expected)
    assert [position for position, _ in prompt.inserts] == [per_image * n for n in range(1, num_images)]


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("kind", ["byte-level", "sentencepiece"])
def test_images_of_any_size_are_laid_out_as_llava_nexts_processor_does(kind: str, template: str) -> None:
    """Tiles and the ends of their rows are visual tokens, and as many as the size of an image has it."""
    tokenizer, turns = TOKENIZERS[kind], CONVERSATIONS["one turn"]
    image_id = tokenizer.get_vocab()["<image>"]
    expected = processor_ids(
        llava_next_processor(tokenizer, TEMPLATES[template]), turns, [(30, 60), (90, 20), (50, 50), (30, 60)]
    )
    runs = rows(expected, image_id)
    assert len(runs) == 4
    assert len(set(runs)) == 3
    builder = PromptBuilder(tokenizer, "<image>", part="image", chat_template=TEMPLATES[template])
    assert builder.build_chat(turns, runs).token_ids([image_id] * sum(runs)) == tuple(expected)
    single = processor_ids(llava_next_processor(tokenizer, TEMPLATES[template]), turns, [(30, 60)])
    assert builder.build_chat(turns, runs[0]).token_ids([image_id] * runs[0]) == tuple(single)


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_labels_number_the_frames(kind: str) -> None:
    tokenizer = TOKENIZERS[kind]
    image_id = tokenizer.get_vocab()["<image>"]
    builder = PromptBuilder(
        tokenizer, "<image>", part="image", frame_label="Frame {n}: ", chat_template=VICUNA_CHAT_TEMPLATE
    )
    text = "USER: Frame 1: <image>\nFrame 2: <image><image>\nFrame 3: <image>\nwhat ? ASSISTANT:"
    prompt = builder.build("what ?", [1, 2, 1])
    assert prompt.token_ids([image_id] * 4) == tuple(tokenizer(text)["input_ids"])
    assert [position for position, _ in prompt.inserts] == [1, 3]
    plain = PromptBuilder(tokenizer, "<image>", part="image", chat_template=VICUNA_CHAT_TEMPLATE)
    assert builder.build("what ?", 4) == builder.build("what ?", [4]) == plain.build("what ?", 4)


def test_labels_need_no_number() -> None:
    tokenizer = TOKENIZERS["byte-level"]
    builder = PromptBuilder(tokenizer, frame_label="then {} ", chat_template=VICUNA_CHAT_TEMPLATE)
    text = "USER: then {} <video>\nthen {} <video>\nwhy ASSISTANT:"
    video_id = tokenizer.get_vocab()["<video>"]
    assert builder.build("why", (1, 1)).token_ids([video_id] * 2) == tuple(tokenizer(text)["input_ids"])


def test_runs_may_be_empty_and_a_tokenizer_may_have_no_line_break() -> None:
    builder = PromptBuilder(TOKENIZERS["byte-level"], frame_label="{n} ")
    prompt = builder.build("why", [0, 3, 0])
    assert prompt.num_visual == 3
    assert [position for position, _ in prompt.inserts] == [0, 3]
    assert PromptBuilder(TOKENIZERS["words"], "<image>", part="image").build("why", [2, 3]).inserts == ()


@pytest.mark.parametrize("runs", [[], (), -1, [-1], [3, -1]])
def test_runs_without_a_meaning_are_refused(runs: Any) -> None:
    with pytest.raises(InvalidRequestError, match="must not be negative, in one run at least"):
        PromptBuilder(TOKENIZERS["byte-level"]).build("why", runs)


@pytest.mark.parametrize(
    ("label", "complaint"),
    [
        ("<image>", "the frame label contains '<image>'"),
        ("a </s> b", "the frame label contains '</s>'"),
        ("Frame {n} <unk>", "the frame label contains '<unk>'"),
        ("x" * 41, "at most 40 characters, got 41"),
        ("a\x00", "the frame label has the control character U\\+0000"),
    ],
)
def test_labels_must_be_short_and_harmless(label: str, complaint: str) -> None:
    with pytest.raises(InvalidRequestError, match=complaint):
        PromptBuilder(TOKENIZERS["byte-level"], "<image>", part="image", frame_label=label)


def _normalising_tokenizer() -> PreTrainedTokenizerFast:
    """Matches its added tokens after normalisation, so that other spellings of them count, too."""
    vocabulary = {"<unk>": 0, "<image>": 1, "<3>": 2, "USER": 3, ":": 4, "a": 5, "<sep>": 6}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_tokens([AddedToken(token, normalized=True) for token in ("<image>", "<3>", "<sep>")])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


def _builder(label: str) -> PromptBuilder:
    return PromptBuilder(_normalising_tokenizer(), "<image>", part="image", frame_label=label)


def test_labels_that_are_read_as_reserved_tokens_are_refused() -> None:
    wide = "\N{FULLWIDTH LESS-THAN SIGN}sep\N{FULLWIDTH GREATER-THAN SIGN}"
    with pytest.raises(InvalidRequestError, match="read as reserved tokens"):
        _builder(wide)
    builder = _builder("<{n}>")
    assert builder.build("a", [1, 1]).num_visual == 2
    with pytest.raises(InvalidRequestError, match=r"read as reserved tokens.*'<3>'"):
        builder.build("a", [1, 1, 1])


@pytest.mark.parametrize("runs", [2, [1, 1], [1] * 5])
@pytest.mark.parametrize("spelling", ["<image>", "\uff1cimage\uff1e", "a \uff1csep\uff1e", "\uff1c3>"])
def test_a_question_cannot_bring_placeholders_of_its_own(runs: int | list[int], spelling: str) -> None:
    with pytest.raises(InvalidRequestError, match="reserve"):
        _builder("a ").build(spelling, runs)


@settings(max_examples=150, deadline=None)
@given(
    pieces=st.lists(st.sampled_from(["<", "image", ">", "</", "s", "<im", "age>", " ", "\n", "Frame 2: ", "a", "{n}"])),
    runs=st.lists(st.integers(0, 3), min_size=1, max_size=4),
)
def test_no_question_changes_what_stands_before_it(pieces: list[str], runs: list[int]) -> None:
    builder = PromptBuilder(TOKENIZERS["byte-level"], "<image>", part="image", frame_label="Frame {n}: ")
    try:
        prompt = builder.build("".join(pieces), runs)
    except InvalidRequestError:
        return
    expected = builder.build("a", runs)
    assert (prompt.ids_before, prompt.inserts, prompt.num_visual) == (
        expected.ids_before,
        expected.inserts,
        sum(runs),
    )
    assert not set(prompt.ids_after) & set(TOKENIZERS["byte-level"].all_special_ids)


def test_a_chat_format_with_the_image_in_every_turn_is_refused() -> None:
    template = "{% for m in messages %}<image>{{ m['content'][-1]['text'] }}{% endfor %}"
    builder = PromptBuilder(TOKENIZERS["byte-level"], "<image>", part="image", chat_template=template)
    assert builder.build("why", [1, 1]).num_visual == 2
    with pytest.raises(InvalidRequestError, match="renders the image 2 times"):
        builder.build_chat(CONVERSATIONS["instructions"], [1, 1])


@pytest.mark.parametrize(
    ("template", "complaint"),
    [
        ("{{ messages[0]['content'][1]['text'] }}<image>", "must put the image before the question"),
        ("<image>{{ messages[0]['content'] + 'text' }}", "cannot lay out an image"),
    ],
)
def test_errors_say_what_is_shown(template: str, complaint: str) -> None:
    with pytest.raises(CheckpointError, match=complaint):
        PromptBuilder(TOKENIZERS["byte-level"], "<image>", part="image", chat_template=template)
    with pytest.raises(CheckpointError, match="made for images"):
        PromptBuilder(TOKENIZERS["byte-level"], "<picture>", part="image")


def test_other_parts_are_refused() -> None:
    part: Any = "audio"
    with pytest.raises(InvalidRequestError, match="'audio'"):
        PromptBuilder(TOKENIZERS["byte-level"], part=part)


@pytest.mark.parametrize("part", ["image", "video"])
def test_vicunas_format_takes_any_placeholder_for_any_part(part: Part) -> None:
    tokenizer = TOKENIZERS["byte-level"]
    prompt = PromptBuilder(tokenizer, "<pad>", part=part).build("why", 2)
    expected = tokenizer("USER: <pad><pad>\nwhy ASSISTANT:")["input_ids"]
    assert prompt.token_ids([tokenizer.get_vocab()["<pad>"]] * 2) == tuple(expected)


def test_a_prompt_with_text_among_its_visual_tokens() -> None:
    prompt = Prompt((1, 2), 4, (9,), ((0, (3,)), (2, (4, 5)), (2, (6,)), (4, (7, 8))))
    assert prompt.token_ids((-1, -2, -3, -4)) == (1, 2, 3, -1, -2, 4, 5, 6, -3, -4, 7, 8, 9)
    assert prompt.text_ids == (1, 2, 3, 4, 5, 6, 7, 8, 9)
    assert (prompt.num_text, len(prompt), prompt.prefix_length) == (9, 13, 10)
    assert repr(prompt) == "Prompt(2 ids, 4 visual with 6 ids at 4 places, 1 ids)"
    assert Prompt((1, 2), 0, (9,), ((0, (3,)),)).prefix_length == 2


@given(
    before=st.lists(st.integers(0, 9)),
    after=st.lists(st.integers(0, 9)),
    pieces=st.lists(st.tuples(st.integers(0, 3), st.lists(st.integers(0, 9), min_size=1)), max_size=5),
    end=st.integers(0, 3),
)
def test_a_prompt_is_its_pieces_in_order(
    before: list[int], after: list[int], pieces: list[tuple[int, list[int]]], end: int
) -> None:
    written, inserts, visual = list(before), [], 0
    for count, ids in pieces:
        written += [*range(100 + visual, 100 + visual + count), *ids]
        visual += count
        inserts.append((visual, tuple(ids)))
    written += [*range(100 + visual, 100 + visual + end), *after]
    visual += end
    prompt = Prompt(tuple(before), visual, tuple(after), tuple(inserts))
    assert prompt.token_ids(range(100, 100 + visual)) == tuple(written)
    assert prompt.text_ids == tuple(i for i in written if i < 100)
    assert len(prompt) == len(written)
    seen = [place for place, i in enumerate(written) if i >= 100]
    assert prompt.prefix_length == (seen[-1] + 1 if seen else len(before))


@pytest.mark.parametrize(
    ("inserts", "complaint"),
    [
        (((-1, (3,)),), r"behind 0 to 4 visual tokens, got \[-1\]"),
        (((5, (3,)),), r"got \[5\]"),
        (((3, (3,)), (2, (3,))), r"in order.*\[3, 2\]"),
        (((3, ()),), "at least one id"),
        ([(3, (3,))], "must be tuples"),
        (((3, [3]),), "must be tuples"),
        (((3, (3,), 4),), "must be tuples"),
        (((3.0, (3,)),), "must be tuples"),
        (((3, ("a",)),), "must be tuples"),
    ],
)
def test_malformed_inserts_are_refused(inserts: Any, complaint: str) -> None:
    with pytest.raises(InvalidRequestError, match=complaint):
        Prompt((1,), 4, (2,), inserts)


@pytest.mark.parametrize("count", [3, 5])
def test_as_many_visual_ids_as_visual_tokens(count: int) -> None:
    with pytest.raises(InvalidRequestError, match=f"4 visual tokens, got {count} ids"):
        Prompt((1,), 4, (2,)).token_ids(range(count))
