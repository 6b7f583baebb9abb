import pytest
import torch

from fastervlm_video.errors import InvalidRequestError
from fastervlm_video.models import resolve_device


@pytest.mark.parametrize("name", [f"cuda:{torch.cuda.device_count()}", "meta", "nonsense", "cuda:x"])
def test_devices_that_are_not_there(name: str) -> None:
    with pytest.raises(InvalidRequestError, match=name):
        resolve_device(name)


def test_devices_that_are() -> None:
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
