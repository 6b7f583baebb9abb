"""Settings of the library as frozen dataclasses. Nothing here reads the environment.

Each one checks itself when built and raises :class:`~fastervlm_video.errors.InvalidRequestError`
with the offending value, so that code further in can rely on it.
"""

import math
from dataclasses import dataclass
from enum import StrEnum

from fastervlm_video.errors import InvalidRequestError

__all__ = [
    "DEFAULT_KEEP_RATIO",
    "DEFAULT_METHOD",
    "DEFAULT_NUM_FRAMES",
    "MEASURED_KEEP_RATIOS",
    "FrameResize",
    "FrameSampling",
    "ImageLayout",
    "MediaLimits",
    "Medium",
    "ModelOptions",
    "PruneSpec",
    "SamplingParams",
    "Tiling",
]

DEFAULT_NUM_FRAMES = 8
DEFAULT_KEEP_RATIO = 0.1
MEASURED_KEEP_RATIOS = (1.0, 0.5, 0.25, 0.1, 0.05, 0.025)
"""At which what pruning costs is measured, unless others are asked for."""
DEFAULT_METHOD = "cls_attention"
MAX_SEED = 2**63 - 1
MAX_STOPS = 4
MAX_STOP_CHARS = 256


def _require(ok: bool, message: str) -> None:
    if not ok:
        raise InvalidRequestError(message)


class Medium(StrEnum):
    """What a file shows, which decides how it is decoded, which tower sees it, and how the prompt names it."""

    IMAGE = "image"
    VIDEO = "video"


class ImageLayout(StrEnum):
    """How the tokens of a picture that is seen in several views (LLaVA-NeXT) stand in the prompt."""

    HUGGING_FACE = "hugging_face"
    """Row by row across the tiles, without padding, with the model's learnt separator behind each row."""
    REFERENCE = "reference"
    """View by view, padding and all, without separators: what the paper's authors measured."""


@dataclass(frozen=True, slots=True)
class ModelOptions:
    """What may be chosen about an architecture; each plays a part for some of them only.

    Attributes:
        image_layout: for architectures that see a picture in several views.
        frame_label: written before each frame of a video that is shown as so many pictures, ``{n}`` being its number
            from 1, such as ``Frame {n}: ``; empty writes nothing.
    """

    image_layout: ImageLayout = ImageLayout.HUGGING_FACE
    frame_label: str = ""

    def __post_init__(self) -> None:
        try:
            object.__setattr__(self, "image_layout", ImageLayout(self.image_layout))
        except ValueError as error:
            raise InvalidRequestError(
                f"image_layout must be {' or '.join(ImageLayout)}, got {self.image_layout!r}"
            ) from error


@dataclass(frozen=True, slots=True)
class MediaLimits:
    """Bounds enforced before and while a video or a picture is decoded.

    Attributes:
        max_bytes: size of the encoded video.
        max_duration_seconds: duration of the picture track.
        max_pixels_per_frame: width x height of one decoded frame.
        max_num_frames: how many frames one request may ask for.
        timeout_seconds: wall-clock time for one decode.
        memory_bytes: address space of the child process that decodes untrusted media.
    """

    max_bytes: int = 512 * 1024**2
    max_duration_seconds: float = 4 * 3600.0
    max_pixels_per_frame: int = 8192 * 4320
    max_num_frames: int = 64
    timeout_seconds: float = 30.0
    memory_bytes: int = 4 * 1024**3

    def __post_init__(self) -> None:
        for name in self.__slots__:
            value = getattr(self, name)
            _require(value > 0, f"{name} must be positive, got {value!r}")


@dataclass(frozen=True, slots=True)
class FrameSampling:
    """Which moments of a video are looked at: ``num_frames`` instants, evenly spread in time."""

    num_frames: int = DEFAULT_NUM_FRAMES

    def __post_init__(self) -> None:
        _require(self.num_frames >= 1, f"num_frames must be at least 1, got {self.num_frames}")


@dataclass(frozen=True, slots=True)
class FrameResize:
    """Resize-then-centre-crop, as a checkpoint's image preprocessor config prescribes it.

    Attributes:
        shortest_edge: the shorter side after resizing, aspect ratio kept; or None if ``size`` is used.
        size: exact (height, width) after resizing; or None if ``shortest_edge`` is used. With both
            None the frame is not resized.
        crop: (height, width) of the centre crop (zero-padded where the frame is smaller), or None.
        resample: PIL resampling filter number (3 is bicubic).
    """

    shortest_edge: int | None = None
    size: tuple[int, int] | None = None
    crop: tuple[int, int] | None = None
    resample: int = 3

    def __post_init__(self) -> None:
        _require(
            self.shortest_edge is None or self.size is None,
            f"give shortest_edge or size, not both: {self.shortest_edge}, {self.size}",
        )


@dataclass(frozen=True, slots=True)
class Tiling:
    """How a picture of any size becomes several views: the whole of it, made small, and then square tiles of it.

    The picture is fitted into one of the ``resolutions``, keeping its aspect ratio, and centred on black; that is
    cut into tiles, row by row (LLaVA-NeXT's "anyres")::

        picture 900 x 400 ─▶ view 0: 336 x 336, the whole            views 1, 2: [ tile ][ tile ] of 672 x 336

    Attributes:
        tile_size: side of a tile in pixels.
        resolutions: (height, width) in pixels, each a multiple of ``tile_size``; one or more.
        resample: PIL resampling filter number (3 is bicubic).
    """

    tile_size: int
    resolutions: tuple[tuple[int, int], ...]
    resample: int = 3

    def __post_init__(self) -> None:
        _require(self.tile_size >= 1, f"tile_size must be at least 1, got {self.tile_size}")
        _require(len(self.resolutions) >= 1, "a tiling needs at least one resolution")
        for height, width in self.resolutions:
            _require(
                height > 0 and width > 0 and height % self.tile_size == 0 and width % self.tile_size == 0,
                f"a resolution must be a positive multiple of the tile size {self.tile_size}, got {height}x{width}",
            )

    @property
    def max_views(self) -> int:
        """Views of the picture that has the most: the whole, and the tiles of the largest resolution."""
        return 1 + max(height // self.tile_size * (width // self.tile_size) for height, width in self.resolutions)


@dataclass(frozen=True, slots=True)
class PruneSpec:
    """How many visual tokens to keep in each frame, and how they are chosen.

    Attributes:
        method: a registered method's name, see :mod:`fastervlm_video.prune`.
        keep_ratio: share of a frame's patches to keep, in (0, 1]. The count is
            ``round(keep_ratio * patches)``, at least 1 (paper, section 4: "reduction ratio 90 %" is 0.1).
        keep_tokens: absolute count per frame instead of a ratio.
        keep_cls: keep each frame's [CLS] token besides the patches, as Hugging Face's Video-LLaVA does;
            the paper drops it.
        seed: for methods that draw lots.
    """

    method: str = DEFAULT_METHOD
    keep_ratio: float | None = None
    keep_tokens: int | None = None
    keep_cls: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        ratio, count = self.keep_ratio, self.keep_tokens
        _require(
            ratio is None or count is None,
            f"give keep_ratio or keep_tokens, not both (got {ratio} and {count})",
        )
        if ratio is None and count is None:
            object.__setattr__(self, "keep_ratio", DEFAULT_KEEP_RATIO)
        _require(
            ratio is None or (math.isfinite(ratio) and 0 < ratio <= 1),
            f"keep_ratio must be in (0, 1], got {ratio}",
        )
        _require(count is None or count >= 1, f"keep_tokens must be at least 1, got {count}")
        _require(0 <= self.seed <= MAX_SEED, f"seed must be in [0, 2**63), got {self.seed}")

    def tokens_per_frame(self, patches: int) -> int:
        """The number of patches kept in each frame of ``patches`` patches.

        Raises:
            InvalidRequestError: ``keep_tokens`` is more than there are.
        """
        if self.keep_tokens is not None:
            _require(
                self.keep_tokens <= patches,
                f"keep_tokens={self.keep_tokens} is more than the {patches} patches of a frame",
            )
            return self.keep_tokens
        assert self.keep_ratio is not None  # __post_init__ fills it in
        return max(1, round(self.keep_ratio * patches))


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How an answer is decoded.

    Attributes:
        max_tokens: most tokens to generate.
        temperature: 0 is greedy; otherwise logits are divided by it before sampling.
        top_p: nucleus sampling: the smallest set of tokens whose probability reaches it, in (0, 1].
        seed: makes sampling repeatable, whatever else is in the batch; None draws a fresh one.
        stop: texts that end the answer; it does not contain the one that did.
    """

    max_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _require(self.max_tokens >= 1, f"max_tokens must be at least 1, got {self.max_tokens}")
        _require(
            math.isfinite(self.temperature) and 0 <= self.temperature <= 2,
            f"temperature must be in [0, 2], got {self.temperature}",
        )
        _require(0 < self.top_p <= 1, f"top_p must be in (0, 1], got {self.top_p}")
        _require(
            self.seed is None or 0 <= self.seed <= MAX_SEED,
            f"seed must be in [0, 2**63), got {self.seed}",
        )
        _require(len(self.stop) <= MAX_STOPS, f"at most {MAX_STOPS} stop strings are possible, got {len(self.stop)}")
        for text in self.stop:
            _require(
                0 < len(text) <= MAX_STOP_CHARS,
                f"a stop string must have 1 to {MAX_STOP_CHARS} characters, got {len(text)}",
            )
