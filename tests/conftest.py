"""For all tests."""

import os
import signal
import sys
from collections.abc import Iterator

import pytest
import torch

from fastervlm_video import cli
from tests.cli_kit import Outcome, Run

# Whole Ray clusters, minutes each: `make cluster-test` asks for them.
collect_ignore = [] if os.environ.get("CLUSTER_TESTS") else ["cluster"]

# A shell starts background jobs with SIGINT ignored, which every process that a test starts would inherit.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure(config: pytest.Config) -> None:
    """Where tests run side by side, each process computes with one thread."""
    if hasattr(config, "workerinput"):
        torch.set_num_threads(1)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Models of a few thousand parameters are faster so, and leave the other cores to whom they belong."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """The command's entry point, in this process."""

    def run(*args: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["fastervlm-video", *map(str, args)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return Outcome(int(ended.value.code or 0), *capsys.readouterr())

    return run
