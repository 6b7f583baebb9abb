r"""A laid out prompt: token ids, with room for visual tokens between them.

Visual tokens stand in one run, or in several with text between them, such as the frames of a video that a model
sees as so many images::

     <s> USER :   v v v   \n   v v v v   \n What moves ? ASSISTANT :
     - before -          (3,)            ---------- after ----------
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise

from fastervlm_video.errors import ContextLengthError, InvalidRequestError

__all__ = ["Prompt", "check_context"]


@dataclass(frozen=True, slots=True)
class Prompt:
    """Token ids around visual tokens, and between them.

    Attributes:
        ids_before: ids in front of the visual tokens, BOS included if the tokenizer has one.
        num_visual: how many visual tokens there are.
        ids_after: ids behind them: the question and the opening of the answer.
        inserts: text among the visual tokens, in order: how many of these stand in front of it, and its ids.

    Raises:
        InvalidRequestError: the number of visual tokens is negative, or the inserts are not tuples, not in order, not
            among the visual tokens, or empty.
    """

    ids_before: tuple[int, ...]
    num_visual: int
    ids_after: tuple[int, ...]
    inserts: tuple[tuple[int, tuple[int, ...]], ...] = ()

    def __post_init__(self) -> None:
        if self.num_visual < 0:
            raise InvalidRequestError(f"the number of visual tokens must not be negative, got {self.num_visual}")
        if not _are_inserts(self.inserts):
            raise InvalidRequestError(f"inserts must be tuples of a position and a tuple of ids, got {self.inserts!r}")
        positions = [position for position, _ in self.inserts]
        if any(not 0 <= position <= self.num_visual for position in positions) or any(
            later < earlier for earlier, later in pairwise(positions)
        ):
            raise InvalidRequestError(
                f"inserts must stand in order, each behind 0 to {self.num_visual} visual tokens, got {positions}"
            )
        if not all(ids for _, ids in self.inserts):
            raise InvalidRequestError(f"inserts must have at least one id each, got {self.inserts!r}")

    @property
    def text_ids(self) -> tuple[int, ...]:
        """All ids but the visual tokens', in order."""
        return (*self.ids_before, *chain.from_iterable(ids for _, ids in self.inserts), *self.ids_after)

    @property
    def num_text(self) -> int:
        """Text tokens, the chat format's own included."""
        return len(self.ids_before) + sum(len(ids) for _, ids in self.inserts) + len(self.ids_after)

    @property
    def prefix_length(self) -> int:
        """Tokens up to the last visual one: what questions about the same visual tokens may have in common."""
        between = sum(len(ids) for position, ids in self.inserts if position < self.num_visual)
        return len(self.ids_before) + self.num_visual + between

    def token_ids(self, visual_ids: Sequence[int]) -> tuple[int, ...]:
        """The whole prompt.

        Args:
            visual_ids: what stands for the visual tokens, ``num_visual`` ids.

        Returns:
            ids in front, visual ids with the inserts among them, ids behind.

        Raises:
            InvalidRequestError: there are more or fewer visual ids.
        """
        if len(visual_ids) != self.num_visual:
            raise InvalidRequestError(f"the prompt has {self.num_visual} visual tokens, got {len(visual_ids)} ids")
        return (*self.ids_before, *chain.from_iterable(self._among(visual_ids)), *self.ids_after)

    def _among(self, visual_ids: Sequence[int]) -> Iterator[Sequence[int]]:
        done = 0
        for position, ids in self.inserts:
            yield visual_ids[done:position]
            yield ids
            done = position
        yield visual_ids[done:]

    def __len__(self) -> int:
        return self.num_text + self.num_visual

    def __repr__(self) -> str:
        inserted = self.num_text - len(self.ids_before) - len(self.ids_after)
        among = f" with {inserted} ids at {len(self.inserts)} places" if self.inserts else ""
        return f"Prompt({len(self.ids_before)} ids, {self.num_visual} visual{among}, {len(self.ids_after)} ids)"


def _are_inserts(inserts: object) -> bool:
    """Whether the types are right; what they hold goes to an engine's thread, which must not fail."""
    return isinstance(inserts, tuple) and all(
        isinstance(insert, tuple)
        and [type(part) for part in insert] == [int, tuple]
        and all(isinstance(i, int) for i in insert[1])
        for insert in inserts
    )


def check_context(prompt: Prompt, max_tokens: int, context_length: int) -> None:
    """Refuse a prompt whose answer could outgrow the model's context.

    Args:
        prompt: the laid out prompt.
        max_tokens: longest answer asked for.
        context_length: most positions the model has.

    Raises:
        ContextLengthError: they do not fit; the message has all the numbers and says what to lower.
    """
    needed = len(prompt) + max_tokens
    if needed <= context_length:
        return
    room = context_length - prompt.num_text - max_tokens
    advice = f"lower keep_ratio or num_frames to at most {room} visual tokens" if room > 0 else "shorten the question"
    raise ContextLengthError(
        f"{prompt.num_text} prompt tokens + {prompt.num_visual} visual tokens + {max_tokens} answer tokens = {needed}, "
        f"but the model's context is {context_length}; {advice}, or lower max_tokens"
    )
