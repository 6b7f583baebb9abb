import pytest
from pydantic import ValidationError

from services.live import LiveConfig
from services.settings import Settings

VALUES = LiveConfig.from_settings(Settings()).model_dump()


def test_every_value_but_the_method_comes_from_the_settings_of_the_same_name() -> None:
    assert VALUES.keys() - Settings.model_fields.keys() == {"default_method"}
    changed = Settings(
        default_keep_ratio=0.2,
        min_keep_ratio=0.05,
        default_num_frames=3,
        max_num_frames=5,
        max_question_chars=7,
        default_answer_tokens=9,
        max_answer_tokens=11,
    )
    live = LiveConfig.from_settings(changed)
    assert all(getattr(live, name) == getattr(changed, name) for name in VALUES if name != "default_method")


def test_it_survives_the_way_through_user_config() -> None:
    assert LiveConfig.model_validate(VALUES) == LiveConfig.from_settings(Settings())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"default_keep_ratio": 0.0}, "default_keep_ratio"),
        ({"default_keep_ratio": 1.1}, "default_keep_ratio"),
        ({"min_keep_ratio": 0.5, "default_keep_ratio": 0.4}, "min_keep_ratio=0.5 is more than default_keep_ratio=0.4"),
        ({"default_num_frames": 9, "max_num_frames": 8}, "default_num_frames=9 is more than max_num_frames=8"),
        ({"default_answer_tokens": 9, "max_answer_tokens": 8}, "default_answer_tokens=9 is more than"),
        ({"max_question_chars": 0}, "max_question_chars"),
        ({"default_keep_ration": 0.1}, "default_keep_ration"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, object], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        LiveConfig.model_validate({**VALUES, **change})


def test_all_values_must_be_there() -> None:
    """A redeployment replaces them all; one that is forgotten must not fall back to something unsaid."""
    with pytest.raises(ValidationError, match="max_num_frames"):
        LiveConfig.model_validate({name: value for name, value in VALUES.items() if name != "max_num_frames"})
