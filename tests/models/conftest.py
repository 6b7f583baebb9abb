"""A random checkpoint, and a fresh copy of it for each test."""

from pathlib import Path

import pytest

from tests.checkpoints import copy_checkpoint, save_random_checkpoint


@pytest.fixture(scope="session")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_random_checkpoint(tmp_path_factory.mktemp("original") / "checkpoint")


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return copy_checkpoint(original, tmp_path / "my-checkpoint")
