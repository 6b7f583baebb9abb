"""torch.compile where there is a compiler, and where there is none."""

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch._inductor import config as inductor
from torch._inductor.cpp_builder import get_cpp_compiler

from fastervlm_video.config import PruneSpec
from fastervlm_video.models import Checkpoint
from fastervlm_video.vision import EncodeJob
from fastervlm_video.vision.compiled import CompiledOrEager
from tests.checkpoints import SMALL, frame_batch, random_frames, save_random_checkpoint

torch.set_num_threads(1)
# PyTorch's own compiler imports what PyTorch deprecates.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")

SIDE = SMALL.image_size


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    size = replace(SMALL, vision_layers=2)  # of which one runs: compiling takes as long as there are layers
    return Checkpoint.open(save_random_checkpoint(tmp_path_factory.mktemp("checkpoint") / "random", size))


@pytest.fixture
def no_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """None that starts, and nothing that was compiled before."""
    torch.compiler.reset()
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    with inductor.patch({"cpp.cxx": (str(tmp_path / "no-such-compiler"),)}):
        yield


def there_is_a_compiler() -> bool:
    try:
        return bool(get_cpp_compiler())
    except RuntimeError:
        return False


def test_a_compiled_tower_gives_the_same_tokens(checkpoint: Checkpoint, caplog: pytest.LogCaptureFixture) -> None:
    """On a machine without a compiler it is the uncompiled tower, with the same result."""
    with caplog.at_level(logging.WARNING, logger="fastervlm_video"):
        compiled, eager = checkpoint.load_vision("cpu", compile_tower=True), checkpoint.load_vision("cpu")
    assert not isinstance(eager._scorer, CompiledOrEager)
    assert isinstance(compiled._scorer, CompiledOrEager)
    assert ("runs uncompiled" in caplog.text) != there_is_a_compiler()
    for frames in (1, 2, 5):
        job = EncodeJob(frame_batch(random_frames(frames, SIDE, SIDE)), PruneSpec(keep_tokens=5, keep_cls=True))
        (a,), (b,) = compiled.encode([job]), eager.encode([job])
        assert torch.equal(a.indices, b.indices)
        torch.testing.assert_close(a.features, b.features, rtol=0, atol=1e-4)
        torch.testing.assert_close(a.scores, b.scores, rtol=0, atol=1e-5)


@pytest.mark.usefixtures("no_compiler")
def test_without_a_compiler_the_tower_runs_uncompiled_and_says_so_once(
    checkpoint: Checkpoint, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="fastervlm_video"):
        compiled = checkpoint.load_vision("cpu", compile_tower=True)
        job = EncodeJob(frame_batch(random_frames(3, SIDE, SIDE)), PruneSpec())
        (tokens,) = compiled.encode([job])
    (expected,) = checkpoint.load_vision("cpu").encode([job])
    assert torch.equal(tokens.features, expected.features)
    (message,) = [record.getMessage() for record in caplog.records if record.name.startswith("fastervlm_video")]
    assert "runs uncompiled" in message
    assert "no-such-compiler" in message or "compiler" in message.lower()


@pytest.mark.usefixtures("no_compiler")
def test_the_functions_own_errors_are_no_reason_to_give_up(caplog: pytest.LogCaptureFixture) -> None:
    def times_pair(values: Tensor) -> Tensor:
        return values * torch.tensor([2.0, 3.0])

    function = CompiledOrEager(times_pair, freeze=False)
    with pytest.raises(RuntimeError, match="must match the size"):
        function(torch.ones(3))
    assert "runs uncompiled" not in caplog.text
    assert function(torch.ones(2)).tolist() == [2, 3]
    assert "runs uncompiled" in caplog.text
