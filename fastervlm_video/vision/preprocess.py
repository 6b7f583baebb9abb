"""A checkpoint's own image preprocessing, split in two: resizing on uint8, and normalising on the device.

Frames travel as uint8; the floats that the tower wants are made where the tower is. There are only 256
byte values, so each is rescaled and normalised once per channel, in the order and precision of Hugging
Face's processors, and frames are looked up in that table: equal to theirs to the last bit.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastervlm_video.config import FrameResize, Tiling
from fastervlm_video.errors import CheckpointError, InvalidRequestError

__all__ = ["Preprocessing"]

_BYTE_VALUES = 256
_CHANNELS = 3
# Decoding gives RGB, and which frames to take is the caller's choice, so these two have nothing to do here.
_STEPS_DONE_ELSEWHERE = {"do_convert_rgb", "do_sample_frames"}
_STEPS_DONE_HERE = {"do_resize", "do_center_crop", "do_rescale", "do_normalize"}
# What CLIP's processors fall back to where an old config leaves something out.
_CLIP_EDGE = 224
_CLIP_RESAMPLE = 3
_CLIP_RESCALE = 1 / 255
_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """What happens to a frame before the tower sees it.

    Attributes:
        resize: resizing and cropping, done on uint8 right after decoding.
        rescale_factor: each byte is multiplied by it; None if the checkpoint does not rescale.
        mean: per channel, subtracted after rescaling; None if the checkpoint does not normalise.
        std: per channel, divided by; None if the checkpoint does not normalise.
        tiling: how further views are cut out of a picture, whose ``resize`` makes the first; None if one is all.
    """

    resize: FrameResize
    rescale_factor: float | None
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    tiling: Tiling | None = None

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "Preprocessing":
        """Read CLIP's steps from a ``preprocessor_config.json`` or ``video_preprocessor_config.json``, already parsed.

        Raises:
            CheckpointError: it prescribes a step that is not supported, or makes no sense.
        """
        _check_supported(config)
        rescales, normalises = config.get("do_rescale", True), config.get("do_normalize", True)
        try:
            return cls(
                resize=_read_resize(config),
                rescale_factor=float(_option(config, "rescale_factor", _CLIP_RESCALE)) if rescales else None,
                mean=_per_channel(config, "image_mean", _CLIP_MEAN) if normalises else None,
                std=_per_channel(config, "image_std", _CLIP_STD) if normalises else None,
            )
        except (TypeError, ValueError) as error:
            raise CheckpointError(f"the preprocessor config holds something else than a number: {error}") from error

    @property
    def output_size(self) -> tuple[int, int] | None:
        """(height, width) of every frame after resizing, or None if it depends on the video."""
        return self.resize.crop or self.resize.size

    def identity(self) -> dict[str, object]:
        """Everything that changes what the tower sees, as plain JSON values: part of a cache key."""
        return asdict(self)

    def normalise(self, frames_thwc_u8: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
        """Resized frames as the tower takes them.

        Args:
            frames_thwc_u8: uint8 [T, H, W, 3].
            device: where the result is wanted; the frames go there as uint8, from pinned memory without waiting.
            dtype: of the result; the arithmetic is in float32.

        Returns:
            [T, 3, H, W].

        Raises:
            InvalidRequestError: the frames are not uint8 [T, H, W, 3].
        """
        shape = tuple(frames_thwc_u8.shape)
        if frames_thwc_u8.dtype != torch.uint8 or len(shape) != 4 or shape[-1] != _CHANNELS:
            raise InvalidRequestError(
                f"frames must be uint8 [T, H, W, {_CHANNELS}], got {frames_thwc_u8.dtype} {list(shape)}"
            )
        table = torch.from_numpy(self._table()).to(device, dtype, non_blocking=True)
        bytes_tchw = frames_thwc_u8.to(device, non_blocking=True).permute(0, 3, 1, 2).to(torch.int32)
        rows = torch.arange(_CHANNELS, dtype=torch.int32, device=device)[:, None, None] * _BYTE_VALUES
        return table.flatten()[bytes_tchw + rows]

    def _table(self) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
        """float32 [3, 256]: what each byte value becomes in each channel."""
        values = np.arange(_BYTE_VALUES, dtype=np.float64)
        if self.rescale_factor is not None:
            values = values * self.rescale_factor
        table = np.tile(values.astype(np.float32), (_CHANNELS, 1))
        if self.mean is not None and self.std is not None:
            mean, std = np.array(self.mean, np.float32), np.array(self.std, np.float32)
            table = (table - mean[:, None]) / std[:, None]
        return table


def _check_supported(config: Mapping[str, Any]) -> None:
    known = _STEPS_DONE_HERE | _STEPS_DONE_ELSEWHERE
    unknown = sorted(key for key, value in config.items() if key.startswith("do_") and value and key not in known)
    if unknown:
        raise CheckpointError(f"unsupported preprocessing steps {unknown}: supported are {sorted(_STEPS_DONE_HERE)}")


def _read_resize(config: Mapping[str, Any]) -> FrameResize:
    shortest_edge, size, crop = None, None, None
    if config.get("do_resize", True):
        given = _option(config, "size", _CLIP_EDGE)
        if isinstance(given, int):
            shortest_edge = given
        elif isinstance(given, Mapping) and set(given) == {"shortest_edge"}:
            shortest_edge = int(given["shortest_edge"])
        else:
            size = _height_width(given, "size")
    if config.get("do_center_crop", True):
        given = _option(config, "crop_size", _CLIP_EDGE)
        crop = (given, given) if isinstance(given, int) else _height_width(given, "crop_size")
    resample = int(_option(config, "resample", _CLIP_RESAMPLE))
    return FrameResize(shortest_edge=shortest_edge, size=size, crop=crop, resample=resample)


def _option(config: Mapping[str, Any], name: str, default: Any) -> Any:
    value = config.get(name)
    return default if value is None else value


def _height_width(given: object, name: str) -> tuple[int, int]:
    if isinstance(given, Mapping) and set(given) == {"height", "width"}:
        return int(given["height"]), int(given["width"])
    raise CheckpointError(f"unsupported {name} {given!r} in the preprocessor config: give height and width")


def _per_channel(config: Mapping[str, Any], name: str, default: tuple[float, ...]) -> tuple[float, ...]:
    given = _option(config, name, default)
    values = (float(given),) * _CHANNELS if isinstance(given, int | float) else tuple(float(value) for value in given)
    if len(values) != _CHANNELS or (name == "image_std" and 0 in values):
        raise CheckpointError(f"{name} must be {_CHANNELS} usable numbers in the preprocessor config, got {given!r}")
    return values
