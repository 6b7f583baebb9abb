"""What requests have in common, so that an engine computes it once."""

from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import blake2b

from fastervlm_video.language.engine import GenerationRequest
from fastervlm_video.language.prompt import Prompt

__all__ = ["PrefixKey", "VisualKey"]

_VISUAL = -1  # where the prompt has a visual token, whichever it is; no id is negative
_DIGEST_BYTES = 16


@dataclass(frozen=True, slots=True)
class VisualKey:
    """Equal for requests whose embedded visual tokens are equal.

    Attributes:
        cache_identity: whose features they are.
        num_visual: visual tokens, separators included.
        separators: digest of the separators' positions.
    """

    cache_identity: str
    num_visual: int
    separators: bytes

    @classmethod
    def of(cls, request: GenerationRequest) -> "VisualKey | None":
        """A request's; None if it shares with nobody."""
        if request.cache_identity is None or not request.prompt.num_visual:
            return None
        return cls(request.cache_identity, request.prompt.num_visual, _digest(request.separators))


@dataclass(frozen=True, slots=True)
class PrefixKey:
    """Equal for requests whose prompts are equal up to the last visual token.

    Attributes:
        visual: of the visual tokens.
        text: digest of the text before and between them, and of where it stands.
    """

    visual: VisualKey
    text: bytes

    @classmethod
    def of(cls, visual: VisualKey, prompt: Prompt) -> "PrefixKey":
        """A prompt's, whose visual tokens are known."""
        ids = prompt.token_ids([_VISUAL] * prompt.num_visual)
        return cls(visual, _digest(ids[: prompt.prefix_length]))


def _digest(numbers: Iterable[int]) -> bytes:
    """Short, as engines compare keys at every step; and strong, as whoever asks may choose the numbers."""
    return blake2b(array("q", numbers).tobytes(), digest_size=_DIGEST_BYTES).digest()
