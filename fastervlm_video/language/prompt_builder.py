r"""Prompt layout: from a question to token ids, with room for the visual tokens before it.

The whole conversation is rendered by the checkpoint's chat template and tokenised **once**, with a single
placeholder per run of visual tokens, then cut at the placeholder's id. The ids are therefore those of Hugging Face's
processors, which repeat each placeholder once per visual token before they tokenise::

    "USER: <video>\nWhat moves? ASSISTANT:"
     <s> USER :   <video>   \n What moves ? ASSISTANT :
     -- before --  x n      ---------- after ----------

Several runs are so many pictures to the model. The template renders one placeholder, in whose place they are put::

    "USER: <image>\nWhat moves? ASSISTANT:"
    "USER: Frame 1: <image>\nFrame 2: <image>\nWhat moves? ASSISTANT:"

The video stands before the question, so that every question about one video shares a long prefix.
"""

import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Literal, TypeAlias, get_args

from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase

from fastervlm_video.errors import CheckpointError, InvalidRequestError
from fastervlm_video.language.prompt import Prompt

__all__ = ["IMAGE_TOKEN", "VICUNA_CHAT_TEMPLATE", "VIDEO_TOKEN", "Message", "Part", "PromptBuilder", "Role"]

IMAGE_TOKEN = "<image>"  # noqa: S105 - a placeholder, not a password
VIDEO_TOKEN = "<video>"  # noqa: S105 - a placeholder, not a password

# Vicuna 1.1, in which Video-LLaVA was trained; used where a checkpoint brings no template of its own.
VICUNA_CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] != 'system' %}{{ message['role'].upper() + ': ' }}{% endif %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'video' %}{{ '<video>\n' }}{% elif part['type'] == 'image' %}{{ '<image>\n' }}{% endif %}"
    "{% endfor %}"
    "{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}"
    "{{ eos_token or '' if message['role'] == 'assistant' else ' ' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)

_PROBE_TEXT = "probe"
_ALLOWED_CONTROLS = "\t\n\r"
_BETWEEN_RUNS = "\n"  # what published templates put behind each picture
_NUMBER = "{n}"
_MAX_LABEL_CHARS = 40


Role: TypeAlias = Literal["system", "user", "assistant"]
Part: TypeAlias = Literal["video", "image"]

_PLACEHOLDERS: dict[Part, str] = {"video": VIDEO_TOKEN, "image": IMAGE_TOKEN}  # of Vicuna's template


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation about a video or an image, or the instructions before it (``system``).

    The video or image itself belongs to the user's first turn.
    """

    role: Role
    text: str


class PromptBuilder:
    """Lays out prompts in one checkpoint's chat format.

    Args:
        tokenizer: the checkpoint's tokenizer.
        placeholder: what it has for visual tokens; one token.
        part: what the chat template calls the part of a message that is shown: ``video`` or ``image``.
        frame_label: text in front of each of several runs, at most 40 characters; ``{n}`` in it becomes the run's
            number, from 1. Empty: none.
        chat_template: Jinja source, for checkpoints that keep the template outside the tokenizer's files;
            by default the tokenizer's own, else Vicuna's.

    Raises:
        CheckpointError: the placeholder is no token, or the template does not put it, exactly once, before
            the question, or it renders BOS twice.
        InvalidRequestError: there is no such part, or the label is too long or contains a reserved token or a control
            character.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        placeholder: str = VIDEO_TOKEN,
        *,
        part: Part = "video",
        frame_label: str = "",
        chat_template: str | None = None,
    ) -> None:
        if part not in get_args(Part):
            raise InvalidRequestError(f"part must be one of {list(get_args(Part))}, got {part!r}")
        self._tokenizer = tokenizer
        self._placeholder, self._part = placeholder, part
        self._frame_label = frame_label
        vicuna = VICUNA_CHAT_TEMPLATE.replace(_PLACEHOLDERS[part], placeholder)
        template = chat_template or tokenizer.chat_template or vicuna
        if not isinstance(template, str):
            raise CheckpointError(f"the tokenizer has several chat templates ({sorted(template)}); name one of them")
        self._template = template
        placeholder_id = tokenizer.get_vocab().get(placeholder)
        if placeholder_id is None:
            raise CheckpointError(f"the tokenizer has no token {placeholder!r}; was its checkpoint made for {part}s?")
        self._placeholder_id: int = placeholder_id
        # Runs of blanks are ordinary text, even where a tokenizer lists them as added tokens.
        added = {i: token.content for i, token in tokenizer.added_tokens_decoder.items() if token.content.strip()}
        self._reserved = {placeholder, *tokenizer.all_special_tokens, *added.values()}
        # <unk> stands for any word the tokenizer does not know, so its id proves nothing.
        self._reserved_ids = {placeholder_id, *tokenizer.all_special_ids, *added} - {tokenizer.unk_token_id}
        self._check_template()
        self._check_label()

    def build(self, question: str, runs: int | Sequence[int]) -> Prompt:
        """The prompt of a single question. See :meth:`build_chat`."""
        return self.build_chat([Message("user", question)], runs)

    def build_chat(self, messages: Sequence[Message], runs: int | Sequence[int]) -> Prompt:
        """The prompt of a conversation about one video or image.

        Args:
            messages: turns, beginning and ending with the user's, after instructions of role ``system`` if there
                are any; blanks around each text are removed.
            runs: how many visual tokens it was turned into; or, where the model is shown several pictures, how many
                each of these was, in order. A single run has no label.

        Returns:
            ids before, between and after the runs.

        Raises:
            InvalidRequestError: a text is empty or contains a reserved token, a control character or half a
                surrogate pair; the turns do not alternate; the chat format has no place for one of them; or there
                is no run, or a negative one.
        """
        counts = _checked_runs(runs)
        roles = [message.role for message in messages]
        turns = roles[1:] if roles[:1] == ["system"] else roles
        if len(turns) % 2 == 0 or turns != ["user", "assistant"] * (len(turns) // 2) + ["user"]:
            raise InvalidRequestError(
                f"turns must alternate from user to user, with at most one system message before them, got {roles}"
            )
        texts = [self._checked_text(message.text) for message in messages]
        ids = self._tokenize(self._with_runs(self._render_chat(roles, texts), len(counts)))
        before, *between, after = self._checked_pieces(ids, roles, len(counts))
        inserts = [(position, tuple(piece)) for position, piece in zip(accumulate(counts), between, strict=False)]
        # A tokenizer may have no token for a line break, and then there is nothing between.
        return Prompt(tuple(before), sum(counts), tuple(after), tuple(insert for insert in inserts if insert[1]))

    def _checked_text(self, text: str) -> str:
        stripped = text.strip()
        if not stripped:
            raise InvalidRequestError(f"the question is empty (got {text!r}); ask something")
        self._check_characters(stripped, "the question")
        return stripped

    def _check_characters(self, text: str, what: str) -> None:
        for position, char in enumerate(text):
            if unicodedata.category(char) in ("Cc", "Cs") and char not in _ALLOWED_CONTROLS:
                raise InvalidRequestError(
                    f"{what} has the control character U+{ord(char):04X} at position {position}; remove it"
                )
        found = sorted(token for token in self._reserved if token in text)
        if found:
            raise InvalidRequestError(
                f"{what} contains {found[0]!r}, which the model reserves for its own use; rephrase it"
            )

    def _render_chat(self, roles: Sequence[Role], texts: Sequence[str]) -> str:
        """Render, and see to it that the template has left nothing out."""
        try:
            rendered = self._render(roles, texts)
        except CheckpointError as error:  # a single question can be laid out, so it is the conversation's form
            raise InvalidRequestError(f"the model's chat format has no place for {list(roles)}: {error}") from error
        missing = [role for role, text in zip(roles, texts, strict=True) if text not in rendered]
        if missing:
            raise InvalidRequestError(
                f"the model's chat format has no place for a {missing[0]} message; put its text into the question"
            )
        if rendered.count(self._placeholder) != 1:
            raise InvalidRequestError(
                f"the model's chat format has no place for {list(roles)}: it renders the {self._part} "
                f"{rendered.count(self._placeholder)} times instead of once"
            )
        return rendered

    def _with_runs(self, rendered: str, num_runs: int) -> str:
        """A placeholder per run in place of the one that the template renders."""
        if num_runs == 1:
            return rendered
        labels = [self._frame_label.replace(_NUMBER, str(number)) for number in range(1, num_runs + 1)]
        runs = _BETWEEN_RUNS.join(label + self._placeholder for label in labels)
        if self._frame_label:
            found = self._count_reserved(self._tokenizer(runs, add_special_tokens=False)["input_ids"])
            if found != {self._placeholder_id: num_runs}:
                names = self._tokenizer.convert_ids_to_tokens(sorted(found))
                raise InvalidRequestError(
                    f"the frame label {self._frame_label!r} is read as reserved tokens, or spoils them: of {num_runs} "
                    f"runs, {names} are left; choose another label"
                )
        return rendered.replace(self._placeholder, runs)

    def _checked_pieces(self, ids: list[int], roles: Sequence[Role], num_runs: int) -> list[list[int]]:
        """Ids cut at the placeholders, unless a text got between them or brought reserved ids of its own.

        Whatever a tokenizer's normaliser makes of a text: what is reserved must be what the chat format has with any
        other text, and so must be what stands between the runs.
        """
        probe = self._tokenize(self._with_runs(self._render(roles, [_PROBE_TEXT] * len(roles)), num_runs))
        extra = self._count_reserved(ids) - self._count_reserved(probe)
        if extra:
            names = self._tokenizer.convert_ids_to_tokens(sorted(extra))
            raise InvalidRequestError(f"the question is read as the reserved token {names[0]!r}; rephrase it")
        pieces, expected = (_cut(these, self._placeholder_id) for these in (ids, probe))
        if len(pieces) != num_runs + 1 or pieces[1:-1] != expected[1:-1]:
            raise InvalidRequestError(f"the question changes how the {self._part} before it is read; rephrase it")
        return pieces

    def _count_reserved(self, ids: Sequence[int]) -> Counter[int]:
        return Counter(i for i in ids if i in self._reserved_ids)

    def _render(self, roles: Sequence[str], texts: Sequence[str]) -> str:
        conversation: list[dict[str, Any]] = []  # annotated as dict[str, str] where it goes, but lists are meant
        first = list(roles).index("user")
        for turn, (role, text) in enumerate(zip(roles, texts, strict=True)):
            content = [{"type": self._part}] if turn == first else []
            conversation.append({"role": role, "content": [*content, {"type": "text", "text": text}]})
        try:
            rendered = self._tokenizer.apply_chat_template(
                conversation, chat_template=self._template, add_generation_prompt=True, tokenize=False
            )
        except (TemplateError, TypeError) as error:
            what = "an image" if self._part == "image" else "a video"
            raise CheckpointError(f"the chat template cannot lay out {what} and a question: {error}") from error
        return str(rendered)

    def _tokenize(self, rendered: str) -> list[int]:
        bos = self._tokenizer.bos_token
        written_out = bos is not None and rendered.startswith(bos)  # the tokenizer must not add a second one
        return list(self._tokenizer(rendered, add_special_tokens=not written_out)["input_ids"])

    def _check_template(self) -> None:
        rendered = self._render(["user"], [_PROBE_TEXT])
        places = rendered.count(self._placeholder)
        if places != 1:
            raise CheckpointError(
                f"the chat template renders {self._placeholder!r} {places} times instead of once: {rendered!r}"
            )
        if rendered.find(_PROBE_TEXT) < rendered.index(self._placeholder):
            raise CheckpointError(
                f"the chat template must put the {self._part} before the question, but renders {rendered!r}; "
                f"every question about one {self._part} shares the prefix that ends with it"
            )
        ids = self._tokenize(rendered)
        bos_id = self._tokenizer.bos_token_id
        if bos_id is not None and ids.count(bos_id) > 1:
            raise CheckpointError(f"the prompt would begin with {ids.count(bos_id)} BOS tokens: {rendered!r}")

    def _check_label(self) -> None:
        label = self._frame_label
        if len(label) > _MAX_LABEL_CHARS:
            raise InvalidRequestError(
                f"the frame label must have at most {_MAX_LABEL_CHARS} characters, got {len(label)}: {label!r}"
            )
        self._check_characters(label, "the frame label")
        self._with_runs(self._placeholder, num_runs=2)


def _checked_runs(runs: int | Sequence[int]) -> tuple[int, ...]:
    counts = (runs,) if isinstance(runs, int) else tuple(runs)
    if not counts or min(counts) < 0:
        raise InvalidRequestError(
            f"the number of visual tokens must not be negative, in one run at least, got {list(counts)}"
        )
    return counts


def _cut(ids: Sequence[int], at: int) -> list[list[int]]:
    """The pieces around each occurrence of an id."""
    pieces: list[list[int]] = [[]]
    for i in ids:
        if i == at:
            pieces.append([])
        else:
            pieces[-1].append(i)
    return pieces
