import inspect
import pickle
import re

import pytest

from fastervlm_video import errors
from fastervlm_video.errors import FasterVLMError

CLASSES = [cls for _, cls in inspect.getmembers(errors, inspect.isclass) if issubclass(cls, FasterVLMError)]


def documented_tree() -> dict[str, str | None]:
    """Each class in the docstring's tree and the one it hangs from."""
    assert errors.__doc__ is not None
    parents: dict[str, str | None] = {}
    path: list[tuple[int, str]] = []
    for line in errors.__doc__.splitlines():
        name = re.search(r"^[\s│├└─]*(\w+Error)\b", line)
        if name is None or not line.startswith("    "):
            continue
        depth = name.start(1)
        while path and path[-1][0] >= depth:
            path.pop()
        parents[name[1]] = path[-1][1] if path else None
        path.append((depth, name[1]))
    return parents


def test_the_tree_in_the_docstring_is_the_tree_of_the_classes() -> None:
    actual = {cls.__name__: cls.__bases__[0].__name__ for cls in CLASSES}
    assert documented_tree() == {**actual, "FasterVLMError": None}


def test_all_is_all() -> None:
    assert sorted(errors.__all__) == errors.__all__ == sorted(cls.__name__ for cls in CLASSES)


def test_codes_are_unique_and_machine_readable() -> None:
    codes = [cls.code for cls in CLASSES]
    assert len(set(codes)) == len(codes)
    assert all(re.fullmatch(r"[a-z]+(_[a-z]+)*", code) for code in codes)


def test_every_class_has_a_code_of_its_own() -> None:
    assert [cls.__name__ for cls in CLASSES if "code" not in vars(cls)] == []


@pytest.mark.parametrize("cls", CLASSES)
def test_every_error_survives_being_sent(cls: type[FasterVLMError]) -> None:
    error = cls("keep_ratio must be in (0, 1], got 7 [bold]é")
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        received = pickle.loads(pickle.dumps(error, protocol))
        assert type(received) is cls
        assert (received.message, received.code, str(received)) == (error.message, error.code, str(error))


@pytest.mark.parametrize("cls", CLASSES)
def test_every_class_says_what_it_is_for(cls: type[FasterVLMError]) -> None:
    assert vars(cls)["__doc__"]


def test_the_parameter_at_fault_is_sent_along() -> None:
    error = errors.InvalidRequestError("seed must not be negative", param="seed")
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        received = pickle.loads(pickle.dumps(error, protocol))
        assert (received.message, received.param) == (error.message, "seed")
    assert errors.InvalidRequestError("no field in particular").param is None


def test_bad_parameters_are_value_errors_too() -> None:
    assert issubclass(errors.InvalidRequestError, ValueError)


def test_what_may_be_sent_again_says_when() -> None:
    for cls in (errors.OverloadedError, errors.UnavailableError):
        assert cls.retry_after_seconds >= 1
