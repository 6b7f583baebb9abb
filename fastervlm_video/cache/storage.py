"""How features are stored: as floats of some width, or as bytes with a scale per token."""

from enum import StrEnum
from types import MappingProxyType

import torch
from torch import Tensor

from fastervlm_video.errors import InvalidRequestError

__all__ = ["DEFAULT_STORAGE", "Storage", "are_harmless", "from_int8", "to_int8"]

INT8_MAX = 127  # -128 is not used, so that x and -x are stored alike
FLOAT16_MAX = torch.finfo(torch.float16).max


class Storage(StrEnum):
    """What features are written as. The values are what entries and cache keys say."""

    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"
    FLOAT32 = "float32"
    INT8 = "int8"

    @classmethod
    def parse(cls, name: str) -> "Storage":
        """The one of this name.

        Raises:
            InvalidRequestError: there is none.
        """
        try:
            return cls(name)
        except ValueError as error:
            raise InvalidRequestError(f"tokens are stored as one of {', '.join(cls)}, not as {name}") from error

    @property
    def written(self) -> torch.dtype:
        """Of the numbers in an entry."""
        return _WRITTEN[self]

    @property
    def restored(self) -> torch.dtype:
        """Of the features that are read back."""
        return torch.float16 if self is Storage.INT8 else self.written

    @property
    def has_scales(self) -> bool:
        """Whether each token has a float32 that its numbers are multiplied by."""
        return self is Storage.INT8


_WRITTEN = MappingProxyType(
    {
        Storage.FLOAT16: torch.float16,
        Storage.BFLOAT16: torch.bfloat16,
        Storage.FLOAT32: torch.float32,
        Storage.INT8: torch.int8,
    }
)

DEFAULT_STORAGE = Storage.FLOAT16
"""Half the size of float32, and well within what the projector tells apart."""


def to_int8(values: Tensor) -> tuple[Tensor, Tensor]:
    """Rows as whole numbers from -127 to 127, and what each row is to be multiplied by.

    A row's largest magnitude becomes 127, so no number is off by more than half of ``scale``. A row of its
    own never depends on the others: a slice of an entry is the entry of the slice. The scales are float32 because
    float16 has too few digits for those of small rows, and they are a 256th of the entry at a width of 1024.

    Args:
        values: floating [N, C], finite as float16.

    Returns:
        int8 [N, C], and scales, float32 [N]; zero where a row is all zeros (or too small for any scale).
    """
    # Beyond the largest float16 by less than half a step is still finite as float16; 127 scales might not be.
    rows = values.to(torch.float32).clamp(-FLOAT16_MAX, FLOAT16_MAX)
    scales = rows.abs().amax(dim=1) / INT8_MAX
    divisors = scales.where(scales > 0, 1.0)
    # The scale of a row near the smallest float is rounded so much that a quotient may exceed the range.
    return (rows / divisors[:, None]).round_().clamp_(-INT8_MAX, INT8_MAX).to(torch.int8), scales


def are_harmless(scales: Tensor) -> bool:
    """Whether no int8 can become anything but a finite float16; far cheaper than looking at the products."""
    return scales.numel() == 0 or float(scales.abs().amax()) * (INT8_MAX + 1) <= FLOAT16_MAX  # false for NaN


def from_int8(numbers: Tensor, scales: Tensor) -> Tensor:
    """float16 [N, C]: the products of what :func:`to_int8` returned."""
    # Into float16 at once: a float32 tensor in between would be four times the entry.
    return torch.mul(numbers, scales[:, None], out=torch.empty(numbers.shape, dtype=torch.float16))
