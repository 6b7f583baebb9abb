"""Where a half runs and in which floating-point type."""

import torch

from fastervlm_video.errors import InvalidRequestError

__all__ = ["AUTO", "resolve_device", "resolve_dtype"]

AUTO = "auto"
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def resolve_device(device: str | torch.device) -> torch.device:
    """A device by name; ``auto`` is the GPU if there is one, else the CPU.

    Raises:
        InvalidRequestError: there is no such device.
    """
    if device == AUTO:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        placed = torch.device(device)
    except RuntimeError as error:
        raise InvalidRequestError(f"unknown device {device!r}: give auto, cpu, cuda or cuda:<number>") from error
    gpus = torch.cuda.device_count()
    if placed.type not in {"cpu", "cuda"} or (placed.type == "cuda" and (placed.index or 0) >= gpus):
        raise InvalidRequestError(f"there is no device {str(device)!r} here ({gpus} GPUs): give auto or cpu")
    return placed


def resolve_dtype(dtype: str | torch.dtype, device: torch.device) -> torch.dtype:
    """A floating-point type by name.

    ``auto`` is float32 on a CPU, and on a GPU bfloat16, or float16 where the GPU has no bfloat16.

    Raises:
        InvalidRequestError: it is none of those three.
    """
    if dtype == AUTO:
        if device.type == "cpu":
            return torch.float32
        return torch.float16 if device.type == "cuda" and not torch.cuda.is_bf16_supported() else torch.bfloat16
    resolved = _DTYPES.get(dtype, dtype) if isinstance(dtype, str) else dtype
    if resolved not in _DTYPES.values():
        raise InvalidRequestError(f"unknown dtype {dtype!r}: give auto, {', '.join(_DTYPES)}")
    assert isinstance(resolved, torch.dtype)
    return resolved
