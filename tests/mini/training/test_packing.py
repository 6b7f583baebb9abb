import numpy as np
import torch

from fastervlm_video.language import PromptBuilder
from fastervlm_video.mini.questions import Question, ask_about
from fastervlm_video.mini.render import frame_times
from fastervlm_video.mini.training.packing import IGNORED, QuestionTokens, ids_before_video, pack, tokenize
from fastervlm_video.mini.vocabulary import build_tokenizer
from tests.mini.kit import draw

LONG = QuestionTokens("count", prompt=(10, 11, 12), answer=(20, 2))
SHORT = QuestionTokens("color", prompt=(13,), answer=(21, 22, 2))
SHORTEST = QuestionTokens("shape", prompt=(14,), answer=(2,))


def questions_of_some_scenes(count: int) -> list[list[Question]]:
    scenes, rng = draw(0, count), np.random.default_rng(0)
    return [ask_about(scenes, index, frame_times(8), rng, training=True) for index in range(count)]


def test_a_question_is_laid_out_as_the_service_lays_it_out() -> None:
    tokenizer = build_tokenizer()
    prompts = PromptBuilder(tokenizer)
    questions = {question for row in questions_of_some_scenes(20) for question in row}
    assert len(questions) > 100
    for question in questions:
        prompt, tokens = prompts.build(question.text, 17), tokenize(question)
        assert tokens.kind == question.kind
        assert tokens.prompt == prompt.ids_after
        assert ids_before_video() == prompt.ids_before
        assert tokens.answer[-1] == tokenizer.eos_token_id
        assert tokenizer.decode(list(tokens.answer), skip_special_tokens=True) == question.answer
        assert len(tokens) == len(tokens.prompt) + len(tokens.answer)


def test_prompt_and_answer_are_the_tokens_of_the_whole_conversation() -> None:
    tokenizer = build_tokenizer()
    tokens = tokenize(Question("order", "Which object appears first?", "red circle"))
    whole = tokenizer("USER: <video>\nWhich object appears first? ASSISTANT: red circle</s>")["input_ids"]
    video = tokenizer.convert_tokens_to_ids("<video>")
    assert [*ids_before_video(), video, *tokens.prompt, *tokens.answer] == whole


def test_questions_lie_one_after_the_other() -> None:
    packed = pack([[LONG, SHORT], [SHORTEST]], 9)
    assert packed.ids.tolist() == [[10, 11, 12, 20, 13, 21, 22, 0, 0], [14, *[0] * 8]]
    assert packed.segment.tolist() == [[0, 0, 0, 0, 1, 1, 1, -1, -1], [0, *[-1] * 8]]
    assert packed.offset.tolist() == [[0, 1, 2, 3, 0, 1, 2, 0, 0], [0] * 9]
    none = IGNORED
    assert packed.target.tolist() == [[none, none, 20, 2, 21, 22, 2, none, none], [2, *[none] * 8]]
    assert packed.kinds == (("count", "color"), ("shape",))


def test_a_question_that_does_not_fit_is_left_out_and_a_later_one_taken() -> None:
    packed = pack([[SHORT, LONG, SHORTEST], [LONG, SHORT]], 4)
    assert packed.kinds == (("color", "shape"), ("count",))
    assert packed.ids.tolist() == [[13, 21, 22, 14], [10, 11, 12, 20]]
    assert packed.segment.tolist() == [[0, 0, 0, 1], [0, 0, 0, 0]]
    nothing = pack([[LONG], []], 3)
    assert nothing.kinds == ((), ())
    assert (nothing.segment == -1).all()
    assert (nothing.target == IGNORED).all()


def test_real_questions_can_be_read_back() -> None:
    rows = [[tokenize(question) for question in row] for row in questions_of_some_scenes(6)]
    packed = pack(rows, 400)
    for row, questions in enumerate(rows):
        assert packed.kinds[row] == tuple(question.kind for question in questions)
        for number, question in enumerate(questions):
            where = packed.segment[row] == number
            assert (*packed.ids[row][where].tolist(), question.answer[-1]) == (*question.prompt, *question.answer)
            targets = packed.target[row][where]
            assert tuple(targets[targets != IGNORED].tolist()) == question.answer
            first = int((targets != IGNORED).nonzero()[0])
            assert first == len(question.prompt) - 1
            assert packed.offset[row][where].tolist() == list(range(len(question) - 1))


def test_a_token_sees_the_video_and_what_stands_before_it_in_its_own_question() -> None:
    packed = pack([[LONG, SHORT], [SHORTEST, SHORTEST]], 9)
    mask = packed.mask(3)
    assert mask.shape == (2, 1, 9, 12)
    assert mask.dtype == torch.bool
    for row in range(2):
        segments = packed.segment[row].tolist()
        for query in range(9):
            own = [key <= query and segments[key] == segments[query] for key in range(9)]
            assert mask[row, 0, query].tolist() == [True] * 3 + own
