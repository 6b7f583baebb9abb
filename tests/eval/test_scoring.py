import pytest

from fastervlm_video.eval import Prediction, exact_match, normalise, parse_choice, score_prediction

COLORS = ("red", "dark blue", "a green one", "blue")


def prediction(pred: str, answer: str, choices: tuple[str, ...] | None = None, error: str | None = None) -> Prediction:
    return Prediction(
        "q", "v", "what ?", answer, pred, "color", choices, "full", 1.0, 0, 8, 8.0, 0.1, 0.1, 0.1, error
    )  # fmt: skip


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Red.", "red"),
        ("  The RED   ball!\n", "red ball"),
        ("top-left", "topleft"),
        ("it's an apple", "its apple"),
        ("\uff32\uff25\uff24", "red"),
        ("STRASSE", "strasse"),
        ("Straße", "strasse"),
        ("A", "a"),  # an article that is all there is
        ("theatre and cat", "theatre and cat"),
        ("…", ""),
        ("2.", "2"),
    ],
)
def test_normalise(text: str, words: str) -> None:
    assert normalise(text) == words
    assert normalise(words) == words


def test_exact_match() -> None:
    assert exact_match("The red one.", "red one")
    assert not exact_match("dark red", "red")
    assert not exact_match("", "")
    assert not exact_match("!", "?")


@pytest.mark.parametrize(
    ("answer", "index"),
    [
        ("B", 1),
        ("b", 1),
        ("(B)", 1),
        (" B. ", 1),
        ("B)", 1),
        ("[C]", 2),
        ("B. dark blue", 1),
        ("(D) blue", 3),
        ("D: blue, I think", 3),
        ("C a green one", 2),
        ("The answer is (B).", 1),
        ("The correct option is D", 3),
        ("Answer: a", 0),
        ("dark blue", 1),
        ("Dark Blue.", 1),
        ("green one", 2),
        ("it is red", 0),
        ("A red ball", 0),
        ("A man with a red hat", 0),
        ("", None),
        ("I do not know", None),
        ("E", None),
        ("(F) purple", None),
        ("red or blue", None),
        ("it is dark blue", 1),  # in which "blue" is named too
        ("the answer is a dog", None),
        ("the answer is a.", 0),
        ("dark blue and red", None),
        ("A big dog", None),
        ("Because it is", None),
        ("redder", None),
    ],
)
def test_parse_choice(answer: str, index: int | None) -> None:
    assert parse_choice(answer, COLORS) == index


def test_a_choice_that_looks_like_a_letter_is_taken_by_its_text() -> None:
    assert parse_choice("B", ("B", "A")) == 0


def test_open_questions_are_scored_by_exact_match() -> None:
    assert score_prediction(prediction("Red.", "red")).value == 1
    assert score_prediction(prediction("blue", "red")).value == 0


def test_multiple_choice_is_scored_by_letter_and_failures_are_told() -> None:
    right, wrong, none = (score_prediction(prediction(p, "B", COLORS)) for p in ("B.", "red", "no idea"))
    assert (right.value, right.parsed) == (1, True)
    assert (wrong.value, wrong.parsed) == (0, True)
    assert (none.value, none.parsed) == (0, False)


def test_what_could_not_be_asked_is_wrong_but_no_parse_failure() -> None:
    score = score_prediction(prediction("", "B", COLORS, error="too long"))
    assert (score.value, score.parsed) == (0, True)
