from pathlib import Path

import pytest

from fastervlm_video.config import FrameSampling, PruneSpec, SamplingParams
from fastervlm_video.errors import CheckpointError, ContextLengthError, InvalidRequestError
from fastervlm_video.mini import MINI_NAME
from fastervlm_video.plan import ModelFacts
from tests.checkpoints import SMALL, WEIGHTS, save_random_checkpoint

DIGEST = "ab" * 32
PATCHES = (SMALL.image_size // SMALL.patch_size) ** 2
SAMPLING, PRUNE = FrameSampling(4), PruneSpec(keep_ratio=0.25)


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> ModelFacts:
    return ModelFacts.open(save_random_checkpoint(tmp_path_factory.mktemp("plan") / "my-model"))


def test_the_facts_are_the_checkpoints(facts: ModelFacts) -> None:
    assert facts.name.endswith("my-model")
    assert (facts.patches_per_frame, facts.context_length) == (PATCHES, SMALL.context_length)
    assert facts.preprocessing().output_size == (SMALL.image_size, SMALL.image_size)
    assert len(facts.fingerprint()) == 64


def test_mini_comes_with_the_package() -> None:
    facts = ModelFacts.open("mini")
    assert (facts.name, facts.patches_per_frame) == (MINI_NAME, 64)


def test_a_missing_model(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no model folder"):
        ModelFacts.open(tmp_path / "none")


@pytest.mark.parametrize(
    ("prune", "per_frame"),
    [
        (PruneSpec(keep_ratio=0.25), 4),
        (PruneSpec(keep_ratio=0.01), 1),
        (PruneSpec(keep_ratio=1.0), PATCHES),
        (PruneSpec(keep_tokens=3), 3),
        (PruneSpec(keep_tokens=3, keep_cls=True), 3),
    ],
)
def test_the_count_is_known_beforehand(facts: ModelFacts, prune: PruneSpec, per_frame: int) -> None:
    plan = facts.plan(DIGEST, SAMPLING, prune)
    assert plan.tokens_per_frame == per_frame
    assert facts.visual_runs(SAMPLING, prune) == (4 * (per_frame + prune.keep_cls),)


def test_the_key_is_repeatable_and_leaves_out_the_budget(facts: ModelFacts) -> None:
    plan = facts.plan(DIGEST, SAMPLING, PRUNE)
    assert facts.plan(DIGEST, FrameSampling(4), PruneSpec(keep_ratio=0.25)) == plan
    assert facts.plan(DIGEST, SAMPLING, PruneSpec(keep_tokens=7)).key == plan.key


def test_the_key_names_all_that_changes_the_tokens(facts: ModelFacts, tmp_path: Path) -> None:
    other_model = ModelFacts.open(save_random_checkpoint(tmp_path / "other", seed=1))
    keys = [
        facts.plan(DIGEST, SAMPLING, PRUNE).key,
        facts.plan("cd" * 32, SAMPLING, PRUNE).key,
        facts.plan(DIGEST, FrameSampling(5), PRUNE).key,
        facts.plan(DIGEST, SAMPLING, PruneSpec(method="uniform_grid")).key,
        facts.plan(DIGEST, SAMPLING, PruneSpec(keep_cls=True)).key,
        facts.plan(DIGEST, SAMPLING, PRUNE, salt=b"tenant").key,
        other_model.plan(DIGEST, SAMPLING, PRUNE).key,
    ]
    assert len(set(keys)) == len(keys)


def test_methods_that_do_not_draw_lots_do_not_heed_the_seed(facts: ModelFacts) -> None:
    assert facts.plan(DIGEST, SAMPLING, PruneSpec(seed=1)).key == facts.plan(DIGEST, SAMPLING, PruneSpec()).key
    drawn = {facts.plan(DIGEST, SAMPLING, PruneSpec(method="random", seed=seed)).key for seed in range(3)}
    assert len(drawn) == 3


def test_a_method_whose_sets_do_not_nest_has_a_key_for_each_budget(facts: ModelFacts) -> None:
    keys = {facts.plan(DIGEST, SAMPLING, PruneSpec(method="uniform_grid", keep_tokens=n)).key for n in (3, 4)}
    assert len(keys) == 2


@pytest.mark.parametrize(
    ("prune", "words"),
    [(PruneSpec(method="nonsense"), "nonsense"), (PruneSpec(keep_tokens=PATCHES + 1), f"{PATCHES} patches")],
)
def test_what_cannot_be_planned_is_refused(facts: ModelFacts, prune: PruneSpec, words: str) -> None:
    with pytest.raises(InvalidRequestError, match=words):
        facts.plan(DIGEST, SAMPLING, prune)


def test_the_prompt_has_room_for_the_video_and_is_checked_against_the_context(facts: ModelFacts) -> None:
    question = "what moves ?"
    prompt = facts.prompt(question, 20, SamplingParams(max_tokens=1))
    assert prompt.num_visual == 20
    room = SMALL.context_length - len(prompt)
    assert len(facts.prompt(question, 20, SamplingParams(max_tokens=room))) == len(prompt)
    with pytest.raises(ContextLengthError, match=str(SMALL.context_length)):
        facts.prompt(question, 20, SamplingParams(max_tokens=room + 1))
    with pytest.raises(InvalidRequestError):
        facts.prompt(" ", 20, SamplingParams())


def test_planning_needs_no_weights_but_the_towers(tmp_path: Path) -> None:
    """What a front end may ask of a checkpoint is answered before any weight is read."""
    folder = save_random_checkpoint(tmp_path / "checkpoint")
    facts = ModelFacts.open(folder)
    (folder / WEIGHTS).unlink()
    assert facts.visual_runs(SAMPLING, PRUNE) == (16,)
    assert len(facts.prompt("what ?", 16, SamplingParams())) > 16
