import math
import re
from collections import Counter, defaultdict
from dataclasses import replace

import numpy as np
import pytest

from fastervlm_video.mini.questions import _CLEARLY, QUESTION_TYPES, Question, ask_about
from fastervlm_video.mini.render import _look, frame_times
from fastervlm_video.mini.scenes import COLORS, DIRECTIONS, OUT_OF_DISTRIBUTION, SHAPES, STANDARD, Scenes, SceneStyle
from fastervlm_video.mini.vocabulary import build_tokenizer
from tests.mini.kit import SEEN_TO_MOVE, FloatArray, draw, every, read, seen_objects

TIMES = frame_times(8)
styles = pytest.mark.parametrize("style", [STANDARD, OUT_OF_DISTRIBUTION], ids=["standard", "out-of-distribution"])


def ask(scenes: Scenes, index: int, times: FloatArray, *, training: bool = False, seed: int = 0) -> list[Question]:
    return ask_about(scenes, index, times, np.random.default_rng((seed, index)), training=training)


def shown_frames(rng: np.random.Generator, how: str) -> FloatArray:
    if how == "all":
        return TIMES
    if how == "one":
        return TIMES[rng.integers(8, size=1)]
    if how == "some":
        return TIMES[np.sort(rng.permutation(8)[: rng.integers(2, 8)])]
    return np.sort(rng.random(rng.integers(1, 12), np.float32))


@styles
@pytest.mark.parametrize("training", [False, True], ids=["benchmark", "training"])
@pytest.mark.parametrize("how", ["all", "one", "some", "any times"])
def test_every_answer_follows_from_the_words_and_the_frames_shown(style: SceneStyle, training: bool, how: str) -> None:
    """Nothing is asked that they cannot tell: the oracle sees no more of the scene, and fails where it cannot."""
    scenes, rng = draw(0, 100, style), np.random.default_rng(1)
    asked: Counter[str] = Counter()
    for index in range(len(scenes)):
        times = shown_frames(rng, how)
        seen = seen_objects(scenes, index, times)
        questions = ask(scenes, index, times, training=training)
        assert bool(questions) == bool(seen)
        for question in questions:
            assert (question.kind, question.answer) == read(question.text, seen, len(times)), question
            asked[question.kind] += 1
    never = {"one": {"order", "motion", "describe"}}.get(how, set())
    expected = {*QUESTION_TYPES, *(["describe"] if training else [])} - never
    assert set(asked) == expected
    assert min(asked.values()) >= 10


@styles
def test_what_eight_frames_show_is_asked_for(style: SceneStyle) -> None:
    """At least: the colour, shape and motion of each object, how many there are, and who was first and last."""
    scenes = draw(1, 40, style)
    for index in range(len(scenes)):
        questions = ask(scenes, index, TIMES)
        count = int(scenes.count[index])
        kinds = Counter(question.kind for question in questions)
        assert (kinds["count"], kinds["color"], kinds["shape"], kinds["motion"]) == (1, count, count, count)
        assert kinds["order"] == (6 if count > 1 else 0)
        assert len({question.text for question in questions}) == len(questions)


def test_no_frames_with_an_object_no_questions() -> None:
    scenes = draw(2, 60)
    late = [index for index in range(60) if scenes.onset[index, : scenes.count[index]].min() > 0.1]
    assert late
    assert all(ask(scenes, index, TIMES[:1], training=True) == [] for index in late)


def test_what_is_not_shown_has_no_influence() -> None:
    scenes, times = draw(3, 80), TIMES[:4]
    hidden = scenes.exists & (scenes.onset > times[-1])
    assert hidden.sum() > 20
    color, shape = scenes.color.copy(), scenes.shape.copy()
    for b, n in np.argwhere(hidden):
        color[b, n] = min(set(range(len(COLORS))) - set(color[b].tolist()))
        shape[b, n] = min(set(range(len(SHAPES))) - set(shape[b].tolist()))
    changed = replace(
        scenes,
        color=color,
        shape=shape,
        direction=np.where(hidden, (scenes.direction + 1) % len(DIRECTIONS), scenes.direction),
        start=np.where(hidden[..., None], 1 - scenes.start, scenes.start),
        end=np.where(hidden[..., None], 1 - scenes.end, scenes.end),
    )
    for index in range(80):
        assert ask(scenes, index, times, training=True) == ask(changed, index, times, training=True)


@styles
def test_no_question_gives_its_answer_away(style: SceneStyle) -> None:
    scenes = draw(4, 100, style)
    for index in range(len(scenes)):
        for question in ask(scenes, index, TIMES, training=True):
            if question.kind != "describe":
                words = set(re.findall("[a-z]+", question.text.lower()))
                assert not words & set(question.answer.split()), question


@styles
def test_the_model_knows_every_word(style: SceneStyle) -> None:
    tokenizer, scenes, rng = build_tokenizer(), draw(5, 250, style), np.random.default_rng(5)
    questions = {
        question
        for index in range(len(scenes))
        for times in (TIMES, shown_frames(rng, "one"))
        for question in ask(scenes, index, times, training=True)
    }
    assert len(questions) > 500
    for text in {question.text for question in questions} | {question.answer for question in questions}:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.unk_token_id not in ids, text
        assert "".join(tokenizer.convert_ids_to_tokens(ids)) == text.lower().replace(" ", "")


def unnamed(question: Question) -> tuple[str, str, str]:
    """The question with the name of the object left out."""
    text = re.sub(rf"\b({'|'.join(COLORS)}) object\b|\b({'|'.join(SHAPES)})\b", "…", question.text)
    return question.kind, text, question.answer


def test_the_benchmark_asks_in_the_same_words_whatever_is_drawn_by_lot() -> None:
    scenes = draw(6, 20)
    phrases = set()
    for index in range(20):
        first, again, other = (ask(scenes, index, TIMES, seed=seed) for seed in (0, 0, 1))
        assert first == again
        assert [unnamed(question) for question in first] == [unnamed(question) for question in other]
        phrases |= {unnamed(question)[1] for question in first}
    assert phrases == {
        "How many objects are there?",
        "What color is the …?",
        "What shape is the …?",
        "Where is the … at the start?",
        "Where is the … at the end?",
        "Which way does the … move?",
        "What color is the object that appears first?",
        "What shape is the object that appears first?",
        "Which object appears first?",
        "What color is the object that appears last?",
        "What shape is the object that appears last?",
        "Which object appears last?",
    }


def test_training_asks_in_many_words() -> None:
    scenes = draw(7, 200)
    phrases = defaultdict(set)
    for index in range(200):
        for question in ask(scenes, index, TIMES, training=True):
            phrases[question.kind].add(unnamed(question)[1])
    assert all(len(phrases[kind]) >= 5 for kind in (*QUESTION_TYPES, "describe")), phrases


def options(question: Question) -> int:
    """How many answers there are to choose from, all as likely, for somebody who has not seen the video."""
    if question.kind == "order":
        color, shape = "color" in question.text, "shape" in question.text
        return len(COLORS) if color else len(SHAPES) if shape else len(COLORS) * len(SHAPES)
    counts = STANDARD.max_objects - STANDARD.min_objects + 1
    known = {"color": len(COLORS), "shape": len(SHAPES), "count": counts, "position": 4, "motion": len(DIRECTIONS)}
    return known[question.kind]


def test_questions_need_the_video() -> None:
    """No answer to the same words is right much more often than chance would have it.

    The margin is Hoeffding's, for all options at once: exceeded by chance once in a million.
    """
    scenes = draw(8, 1500)
    answers: dict[str, Counter[str]] = defaultdict(Counter)
    choices: dict[str, int] = {}
    kinds: dict[str, str] = {}
    for index in range(len(scenes)):
        for question in ask(scenes, index, TIMES):
            answers[question.text][question.answer] += 1
            choices[question.text], kinds[question.text] = options(question), question.kind
    right: Counter[str] = Counter()
    total: Counter[str] = Counter()
    for text, given in answers.items():
        asked, best = given.total(), max(given.values())
        margin = math.sqrt(math.log(choices[text] * 1e6) / (2 * asked))
        assert best / asked < 1 / choices[text] + margin, (text, given)
        right[kinds[text]] += best
        total[kinds[text]] += asked
    bounds = {"color": 0.25, "shape": 0.32, "count": 0.38, "position": 0.33, "motion": 0.28, "order": 0.24}
    assert {kind: right[kind] / total[kind] < bound for kind, bound in bounds.items()} == dict.fromkeys(bounds, True)


def test_a_camera_that_shakes_changes_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read from where the objects are in the picture, jitter included: on which side of the middle, however close."""
    monkeypatch.setattr("tests.mini.kit.CLEAR_OF_THE_MIDDLE", 0.0)
    monkeypatch.setattr("tests.mini.kit.SEEN_TO_STAY", SEEN_TO_MOVE)  # a still object moves, but not so far
    assert OUT_OF_DISTRIBUTION.camera_reach < _CLEARLY  # by construction, not by luck
    scenes, asked = draw(12, 300, OUT_OF_DISTRIBUTION), Counter[str]()
    moved = scenes.camera(every(scenes, TIMES))
    assert np.abs(moved).max() > 0.04
    for index in range(len(scenes)):
        jitter = _look(scenes, index, TIMES, np.zeros((len(TIMES), 2), np.float32), (16, 16)).jitter
        seen = seen_objects(scenes, index, TIMES, moved[index] + jitter)
        for question in ask(scenes, index, TIMES):
            assert read(question.text, seen, len(TIMES)) == (question.kind, question.answer)
            asked[question.kind] += 1
    assert min(asked["position"], asked["motion"]) > 800
