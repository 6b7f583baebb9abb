import itertools
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from fastervlm_video.mini.training.loop import Report, step_generator
from fastervlm_video.mini.training.optim import build_optimizers, learning_rate_factor
from tests.mini.training.kit import REPOSITORY
from tests.mini.training.toy import HALTED, STEPS, build, train


def equal(first: nn.Module, second: nn.Module) -> bool:
    ours, theirs = first.state_dict(), second.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_run_that_was_killed_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    """With kill -9, between two of the states that are written now and then."""
    halt_at = 280
    code = (
        "import sys; from pathlib import Path; from tests.mini.training.toy import train;"
        f"train(Path(sys.argv[1]), halt_at={halt_at})"
    )
    killed = tmp_path / "killed.pt"
    command = [sys.executable, "-c", code, str(killed)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY) as child:
        assert child.stdout is not None
        assert child.stdout.readline().strip() == HALTED
        os.kill(child.pid, signal.SIGKILL)
        assert child.wait(60) == -signal.SIGKILL
    killed.with_suffix(".part").write_bytes(b"half a state")  # as if it had been writing one
    reports: list[Report] = []
    resumed = train(killed, report=reports.append)
    whole = train(tmp_path / "whole.pt")
    assert [report.step for report in reports] == [STEPS]  # the last 50 of them; the others were done
    assert reports[0].values["step"] == pytest.approx(np.mean(range(250, STEPS)))
    assert equal(resumed, whole)
    assert not equal(whole, build())


def test_what_is_done_is_not_done_again(tmp_path: Path) -> None:
    reports: list[Report] = []
    done = train(tmp_path / "state.pt", report=reports.append)
    assert [(report.step, report.steps) for report in reports] == [(step, STEPS) for step in range(50, STEPS + 1, 50)]
    assert set(reports[0].values) == {"loss", "step"}
    assert reports[0].values["step"] == pytest.approx(np.mean(range(50)))
    again = train(tmp_path / "state.pt", report=reports.append)
    assert len(reports) == STEPS / 50
    assert equal(done, again)
    assert not equal(done, train(tmp_path / "other.pt", seed=2))


def test_each_step_of_each_phase_of_each_run_draws_other_lots() -> None:
    def lots(seed: int, phase: int, step: int) -> tuple[float, float]:
        rng = step_generator(seed, phase, step)
        return float(rng.random()), float(torch.rand(()))

    drawn = [lots(seed, phase, step) for seed in (0, 1) for phase in (1, 2) for step in range(20)]
    assert lots(0, 1, 3) == drawn[3]
    assert len({first for first, _ in drawn}) == len({second for _, second in drawn}) == len(drawn)


def test_the_learning_rate_rises_stays_and_falls() -> None:
    factors = [learning_rate_factor(step, steps=100, warmup=10, hold=0.4) for step in range(100)]
    assert factors[:10] == pytest.approx([0.1 * (step + 1) for step in range(10)])
    assert factors[10:41] == pytest.approx([1.0] * 31)
    assert factors[70] == pytest.approx(0.5)
    assert all(after <= before for before, after in itertools.pairwise(factors[40:]))
    assert factors[99] == pytest.approx(0.02)
    assert learning_rate_factor(50, steps=100, warmup=1) == pytest.approx(0.5)


def test_matrices_of_layers_go_to_muon_and_vectors_do_not_decay() -> None:
    module = nn.ModuleDict(
        {
            "embed": nn.Embedding(5, 4),
            "layers": nn.ModuleList([nn.Linear(4, 4), nn.LayerNorm(4)]),
            "head": nn.Linear(4, 2),
        }
    )
    muon, adam = build_optimizers(module.named_parameters(), learning_rate=0.1, weight_decay=0.3)
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    groups = [
        (type(optimizer).__name__, group["weight_decay"], {names[id(parameter)] for parameter in group["params"]})
        for optimizer in (muon, adam)
        for group in optimizer.param_groups
    ]
    assert groups == [
        ("BatchedMuon", 0.3, {"layers.0.weight"}),
        ("AdamW", 0.3, {"embed.weight", "head.weight"}),
        ("AdamW", 0.0, {"layers.0.bias", "layers.1.weight", "layers.1.bias", "head.bias"}),
    ]
    assert all(group["lr"] == 0.1 for optimizer in (muon, adam) for group in optimizer.param_groups)
