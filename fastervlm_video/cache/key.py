"""Where a video's tokens are kept: a digest of everything that may change them but by rounding, and of nothing else.

What the tower computes in, its device and floating-point type, is left out on purpose: keys are made where that is not
known, before any encoder is asked.
"""

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from fastervlm_video.cache.header import FORMAT_VERSION
from fastervlm_video.cache.storage import Storage
from fastervlm_video.config import FrameSampling, Medium, PruneSpec
from fastervlm_video.errors import InvalidRequestError

__all__ = ["CacheKey", "make_key", "video_key"]

_SHA256_HEX = re.compile(r"[0-9a-f]{64}")
_VIDEO_DOMAIN = b"fastervlm-video/video-key"
_VARIANT_DOMAIN = b"fastervlm-video/variant-key"


def _require_digest(name: str, value: object) -> None:
    if not isinstance(value, str) or not _SHA256_HEX.fullmatch(value):
        raise InvalidRequestError(f"{name} must be a SHA-256 in 64 lower-case hex digits, got {value!r}")


@dataclass(frozen=True, slots=True)
class CacheKey:
    """Two SHA-256 digests in hex.

    Attributes:
        video: whose video and which: what is deleted together.
        variant: how its tokens were made.

    Raises:
        InvalidRequestError: one of them is not 64 lower-case hex digits.
    """

    video: str
    variant: str

    def __post_init__(self) -> None:
        _require_digest("video", self.video)
        _require_digest("variant", self.variant)

    def token_set(self, tokens_per_frame: int) -> str:
        """Names the tokens of one budget: equal names mean equal tokens, of one tenant."""
        return f"{self.video}/{self.variant}/{tokens_per_frame}"


def video_key(content_digest: str, *, salt: bytes = b"") -> str:
    """The ``video`` half of a key: enough to delete all that was derived from a video.

    Args:
        content_digest: SHA-256 of the video's bytes, hex.
        salt: a tenant's own; two tenants with one video then share nothing, not even the knowledge of it.

    Raises:
        InvalidRequestError: ``content_digest`` is not a SHA-256.
    """
    _require_digest("content_digest", content_digest)
    return _sha256(_VIDEO_DOMAIN, salt, content_digest.encode())


def make_key(
    *,
    content_digest: str,
    medium: Medium,
    sampling: FrameSampling,
    preprocessing: Mapping[str, object],
    layout: Mapping[str, object],
    tower_fingerprint: str,
    prune: PruneSpec,
    nested: bool,
    seeded: bool,
    tokens_per_frame: int,
    dtype: Storage,
    salt: bytes = b"",
) -> CacheKey:
    """The key of one video's tokens, made one way.

    Args:
        content_digest: SHA-256 of the video's bytes, hex.
        medium: what the bytes are.
        sampling: which frames are looked at; of a picture there is one.
        preprocessing: identity of what happens to a frame before the tower, as JSON values.
        layout: identity of what of each view may be kept, as JSON values.
        tower_fingerprint: identity of the tower's config, weights and feature layer.
        prune: the method and its parameters. How many tokens it keeps does not count if ``nested``.
        nested: whether smaller budgets are slices of larger ones; if not, the budget is in the key.
        seeded: whether the method draws lots, so that ``prune.seed`` counts.
        tokens_per_frame: the budget.
        dtype: how features are stored.
        salt: as for :func:`video_key`.

    Raises:
        InvalidRequestError: a value has no canonical JSON form, or ``content_digest`` is no SHA-256.
    """
    # asdict, so that a field added later counts without anyone having to think of it here.
    method = dataclasses.asdict(prune)
    for budget in ("keep_ratio", "keep_tokens"):
        del method[budget]
    if not seeded:
        del method["seed"]
    recipe = {
        "budget": None if nested else tokens_per_frame,
        "dtype": dtype.value,
        "format": FORMAT_VERSION,
        "layout": layout,
        "medium": medium.value,
        "nested": nested,
        "preprocessing": preprocessing,
        "prune": method,
        "sampling": dataclasses.asdict(sampling) if medium is Medium.VIDEO else None,
        "tower": tower_fingerprint,
    }
    text = json.dumps(_canonical(recipe, "recipe"), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return CacheKey(video=video_key(content_digest, salt=salt), variant=_sha256(_VARIANT_DOMAIN, text.encode()))


def _sha256(*parts: bytes) -> str:
    """Digest of the parts, each after its length: no two lists of parts look the same."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.hexdigest()


def _canonical(value: object, where: str) -> object:
    """``value`` as JSON can hold it, unambiguously; anything that JSON would bend is refused."""
    if isinstance(value, Mapping):
        if not all(isinstance(name, str) for name in value):
            raise InvalidRequestError(f"{where} must have strings for names, got {list(value)!r}")
        return {name: _canonical(item, f"{where}.{name}") for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_canonical(item, f"{where}[{at}]") for at, item in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        raise InvalidRequestError(f"{where} must be finite, got {value!r}")
    if value is None or type(value) in (str, bool, int, float):
        return value
    raise InvalidRequestError(f"{where} must be a JSON value, got {type(value).__name__}: {value!r}")
