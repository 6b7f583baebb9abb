import pytest

from fastervlm_video.config import PruneSpec
from fastervlm_video.errors import InvalidRequestError
from fastervlm_video.eval import BLIND, FULL, Arm, make_arms
from fastervlm_video.prune import method_names


def arms(*methods: str, keeps: tuple[float, ...] = (1.0, 0.5, 0.1), seeds: int = 1, objects: bool = True) -> list[Arm]:
    return list(make_arms(methods, keeps, seed=5, random_seeds=seeds, text_layers=4, knows_objects=objects))


def test_everything_and_nothing_are_always_measured() -> None:
    assert arms("cls_attention") == [
        Arm(FULL, 1.0, 5),
        Arm(BLIND, 0.0, 5),
        Arm("cls_attention", 0.5, 5),
        Arm("cls_attention", 0.1, 5),
    ]
    assert arms(keeps=(1.0,)) == arms("full", "blind") == arms("full", keeps=(0.5,)) == [
        Arm(FULL, 1.0, 5), Arm(BLIND, 0.0, 5)
    ]  # fmt: skip


def test_all_is_every_registered_method_and_the_experimental_ones() -> None:
    found = {arm.method for arm in arms("all")}
    assert found == {FULL, BLIND, "fastv:2", "oracle", *method_names()}
    assert "oracle" not in {arm.method for arm in arms("all", objects=False)}
    small = make_arms(["all"], [0.5], text_layers=1, knows_objects=False)
    assert not any(arm.method.startswith("fastv") for arm in small)


def test_what_a_model_cannot_have_is_not_in_all_and_refused_by_name() -> None:
    def refusing(*methods: str) -> set[str]:
        arms = make_arms(
            methods, [0.5], text_layers=4, knows_objects=True, refused={"fastv": "so it is", "oracle": "and so"}
        )
        return {arm.method for arm in arms}

    assert refusing("all") == {FULL, BLIND, *method_names()}
    for name in ("fastv", "fastv:1"):
        with pytest.raises(InvalidRequestError, match=f"'{name}' cannot be measured here: so it is"):
            refusing("all", name)
    with pytest.raises(InvalidRequestError, match="'oracle' cannot be measured here: and so"):
        refusing("oracle")


def test_only_methods_that_draw_lots_have_several_seeds() -> None:
    assert [arm.seed for arm in arms("random", "cls_attention", keeps=(0.1,), seeds=3)] == [5, 5, 5, 6, 7, 5]


def test_nothing_twice() -> None:
    assert len(arms("all", "cls_attention", "fastv", "fastv:2", keeps=(0.1, 0.1))) == len(arms("all", keeps=(0.1,)))


def test_what_an_arm_asks_of_the_encoder() -> None:
    assert Arm("random", 0.1, 3).spec == PruneSpec("random", keep_ratio=0.1, seed=3)
    for method in (FULL, BLIND, "oracle", "fastv:1"):
        assert Arm(method, 0.1).spec == PruneSpec(keep_ratio=1.0)
    assert Arm("fastv:3", 0.1).fastv_layer == 3
    assert Arm("random", 0.1).fastv_layer is None
    assert Arm("random", 0.025).name == "random@0.025"


def test_fastv_layers_by_default_and_by_name() -> None:
    assert {arm.method for arm in arms("fastv", "fastv:0", "fastv:03")} == {
        FULL,
        BLIND,
        "fastv:2",
        "fastv:0",
        "fastv:3",
    }
    (*_, last) = make_arms(["fastv"], [0.5], text_layers=2, knows_objects=False)
    assert last.method == "fastv:1"
    for name in ("fastv:4", "fastv:-1", "fastv:x", "fastv:"):
        with pytest.raises(InvalidRequestError, match=r"from 0 .* to 3"):
            arms(name)


def test_bad_arguments() -> None:
    with pytest.raises(InvalidRequestError, match="unknown pruning method 'nonsense'"):
        arms("nonsense")
    with pytest.raises(InvalidRequestError, match="needs a data set that knows"):
        arms("oracle", objects=False)
    for keep in (0.0, -0.1, 1.5, float("nan")):
        with pytest.raises(InvalidRequestError, match="keep must be"):
            arms("random", keeps=(keep,))
    with pytest.raises(InvalidRequestError, match="got 0"):
        arms("random", seeds=0)
