"""A process holds the half that it has loaded, and not the other: by its resident memory."""

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors import safe_open

from tests.checkpoints import SMALL, WEIGHTS, save_random_llava

LARGE = replace(SMALL, vision_width=512, vision_heads=8, vision_layers=8, text_width=512, text_heads=8, text_layers=6)
USED_LAYERS = 7  # -2 of 8
MEGABYTE = 10**6
FLOAT32_BYTES = 4

# The small checkpoint is loaded first, so that what libraries take once is not counted. Files that are mapped for
# reading are unmapped when a half is loaded, so that resident is what is held.
LOADS = """
import sys
from pathlib import Path
import torch
from fastervlm_video.models import Checkpoint

def resident():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:")) * 1024

def load(folder):
    checkpoint = Checkpoint.open(folder)
    return checkpoint.load_vision("cpu") if half == "vision" else checkpoint.load_language("cpu")

torch.set_num_threads(1)
half, small, large = sys.argv[1:]
held = load(small)
before = resident()
held = load(large)
print(resident() - before)
"""


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_random_llava(tmp_path_factory.mktemp("memory") / "small")


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_random_llava(tmp_path_factory.mktemp("memory") / "large", LARGE)


@pytest.fixture(scope="module")
def sizes(large: Path) -> dict[str, int]:
    """Bytes of each half in float32; of the tower, what is used."""
    totals = {"vision": 0, "language": 0}
    with safe_open(large / WEIGHTS, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118 - it is no mapping
            layer = re.search(r"vision_tower\..*layers\.(\d+)\.", name)
            if (layer and int(layer[1]) >= USED_LAYERS) or "post_layernorm" in name:
                continue
            half = "vision" if "vision_tower" in name else "language"
            tensor = file.get_slice(name)
            count = 1
            for length in tensor.get_shape():
                count *= length
            totals[half] += count * FLOAT32_BYTES
    return totals


def grown_by(half: str, small: Path, large: Path) -> int:
    """Bytes by which a fresh process grows when it loads a half of the large checkpoint."""
    done = subprocess.run(
        [sys.executable, "-c", LOADS, half, small, large],
        capture_output=True,
        text=True,
        timeout=180,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    return int(done.stdout)


def test_the_halves_are_large_enough_to_be_told_apart(sizes: dict[str, int]) -> None:
    assert all(60 * MEGABYTE < size < 110 * MEGABYTE for size in sizes.values()), sizes


@pytest.mark.parametrize(("half", "other"), [("vision", "language"), ("language", "vision")])
def test_a_process_holds_the_half_that_it_loads(
    half: str, other: str, small: Path, large: Path, sizes: dict[str, int]
) -> None:
    grown = grown_by(half, small, large)
    assert 0.8 * sizes[half] < grown < sizes[half] + 0.4 * sizes[other]
