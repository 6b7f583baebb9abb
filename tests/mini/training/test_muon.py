import pytest
import torch
from torch import Tensor, nn
from torch.optim import Muon

from fastervlm_video.mini.training.muon import BatchedMuon, orthogonalize

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
SHAPES = ((6, 6), (6, 9), (9, 6), (6, 6))
BFLOAT16_ERROR = 0.03  # of PyTorch's own, a part of an update's norm


def by_singular_values(matrix: Tensor) -> Tensor:
    """What five iterations do to each singular value, one after the other, in float64."""
    left, values, right = torch.linalg.svd(matrix.double(), full_matrices=False)
    values = values / values.norm()
    a, b, c = COEFFICIENTS
    for _ in range(5):
        values = a * values + b * values**3 + c * values**5
    found: Tensor = left @ values.diag() @ right
    return found


def matrices(seed: int) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]


def give_gradients(parameters: list[nn.Parameter], step: int) -> None:
    generator = torch.Generator().manual_seed(100 + step)
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize("shape", [(5, 5), (5, 8), (8, 5)])
def test_singular_values_become_about_one(shape: tuple[int, int]) -> None:
    several = torch.randn(3, *shape, generator=torch.Generator().manual_seed(1))
    found = orthogonalize(several, COEFFICIENTS, 5, 1e-7)
    assert found.shape == several.shape
    for one, expected in zip(found, several, strict=True):
        torch.testing.assert_close(one.double(), by_singular_values(expected), atol=1e-4, rtol=0)


def test_no_gradient_at_all_is_no_update() -> None:
    assert torch.equal(orthogonalize(torch.zeros(2, 3, 4), COEFFICIENTS, 5, 1e-7), torch.zeros(2, 3, 4))


def test_steps_are_pytorchs() -> None:
    ours, theirs = matrices(0), matrices(0)
    first = BatchedMuon(ours, lr=0.02, weight_decay=0.1)
    second = Muon(theirs, lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for step in range(4):
        give_gradients(ours, step)
        give_gradients(theirs, step)
        first.step()
        second.step()
    for ours_now, theirs_now, before in zip(ours, theirs, matrices(0), strict=True):
        moved = (theirs_now - before).norm()
        assert (ours_now - theirs_now).norm() < BFLOAT16_ERROR * moved
        assert (ours_now - before).norm() > 0.9 * moved


def test_a_matrix_without_a_gradient_stays_as_it_is() -> None:
    parameters = matrices(0)
    give_gradients(parameters, 0)
    parameters[0].grad = None
    BatchedMuon(parameters, lr=0.02, weight_decay=0.1).step()
    unchanged = [torch.equal(now, before) for now, before in zip(parameters, matrices(0), strict=True)]
    assert unchanged == [True, False, False, False]


def test_a_state_of_pytorchs_is_gone_on_with() -> None:
    ours, theirs = matrices(0), matrices(0)
    second = Muon(theirs, lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    give_gradients(theirs, 0)
    second.step()
    first = BatchedMuon(ours, lr=0.02, weight_decay=0.1)
    first.load_state_dict(second.state_dict())
    for parameter, other in zip(ours, theirs, strict=True):
        assert torch.equal(first.state[parameter]["momentum_buffer"], second.state[other]["momentum_buffer"])


def test_a_closure_is_refused() -> None:
    with pytest.raises(ValueError, match="compute the gradients first"):
        BatchedMuon(matrices(0), lr=0.02, weight_decay=0.1).step(lambda: 0.0)
