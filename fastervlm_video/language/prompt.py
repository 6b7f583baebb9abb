r"""Prompt layout: from a question to token ids, with room for the visual tokens before it.

The whole conversation is rendered by the checkpoint's chat template and tokenised **once**, with a single
placeholder, then cut at the placeholder's id. The ids are therefore those of Hugging Face's processor,
which repeats the placeholder once per visual token before it tokenises::

    "USER: <video>\nWhat moves? ASSISTANT:"
     <s> USER :   <video>   \n What moves ? ASSISTANT :
     -- before --  x n      ---------- after ----------

The video stands before the question, so that every question about one video shares a long prefix.
"""

import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase

from fastervlm_video.errors import CheckpointError, ContextLengthError, InvalidRequestError

__all__ = ["VICUNA_CHAT_TEMPLATE", "VIDEO_TOKEN", "Message", "Prompt", "PromptBuilder", "Role", "check_context"]

VIDEO_TOKEN = "<video>"  # noqa: S105 - a placeholder, not a password

# Vicuna 1.1, in which Video-LLaVA was trained; used where a checkpoint brings no template of its own.
VICUNA_CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] != 'system' %}{{ message['role'].upper() + ': ' }}{% endif %}"
    "{% for part in message['content'] %}{% if part['type'] == 'video' %}{{ '<video>\n' }}{% endif %}{% endfor %}"
    "{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}"
    "{{ eos_token or '' if message['role'] == 'assistant' else ' ' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)

_PROBE_TEXT = "probe"
_ALLOWED_CONTROLS = "\t\n\r"


Role: TypeAlias = Literal["system", "user", "assistant"]


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation about a video, or the instructions before it (``system``).

    The video itself belongs to the user's first turn.
    """

    role: Role
    text: str


@dataclass(frozen=True, slots=True)
class Prompt:
    """Token ids around a run of visual tokens.

    Attributes:
        ids_before: ids in front of the video, BOS included if the tokenizer has one.
        num_visual: how many visual tokens stand between.
        ids_after: ids behind the video: the question and the opening of the answer.
    """

    ids_before: tuple[int, ...]
    num_visual: int
    ids_after: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.num_visual < 0:
            raise InvalidRequestError(f"the number of visual tokens must not be negative, got {self.num_visual}")

    @property
    def num_text(self) -> int:
        """Text tokens, the chat format's own included."""
        return len(self.ids_before) + len(self.ids_after)

    def __len__(self) -> int:
        return self.num_text + self.num_visual

    def __repr__(self) -> str:
        return f"Prompt({len(self.ids_before)} ids, {self.num_visual} visual, {len(self.ids_after)} ids)"


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


class PromptBuilder:
    """Lays out prompts in one checkpoint's chat format.

    Args:
        tokenizer: the checkpoint's tokenizer.
        video_token: its placeholder for visual tokens; one token.
        chat_template: Jinja source, for checkpoints that keep the template outside the tokenizer's files;
            by default the tokenizer's own, else Vicuna's.

    Raises:
        CheckpointError: the placeholder is no token, or the template does not put it, exactly once, before
            the question, or it renders BOS twice.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        video_token: str = VIDEO_TOKEN,
        *,
        chat_template: str | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        self._video_token = video_token
        template = chat_template or tokenizer.chat_template or VICUNA_CHAT_TEMPLATE.replace(VIDEO_TOKEN, video_token)
        if not isinstance(template, str):
            raise CheckpointError(f"the tokenizer has several chat templates ({sorted(template)}); name one of them")
        self._template = template
        video_id = tokenizer.get_vocab().get(video_token)
        if video_id is None:
            raise CheckpointError(f"the tokenizer has no token {video_token!r}; is this a video checkpoint?")
        self._video_id: int = video_id
        # Runs of blanks are ordinary text, even where a tokenizer lists them as added tokens.
        added = {i: token.content for i, token in tokenizer.added_tokens_decoder.items() if token.content.strip()}
        self._reserved = {video_token, *tokenizer.all_special_tokens, *added.values()}
        # <unk> stands for any word the tokenizer does not know, so its id proves nothing.
        self._reserved_ids = {video_id, *tokenizer.all_special_ids, *added} - {tokenizer.unk_token_id}
        self._check_template()

    def build(self, question: str, num_visual_tokens: int) -> Prompt:
        """The prompt of a single question. See :meth:`build_chat`."""
        return self.build_chat([Message("user", question)], num_visual_tokens)

    def build_chat(self, messages: Sequence[Message], num_visual_tokens: int) -> Prompt:
        """The prompt of a conversation about one video.

        Args:
            messages: turns, beginning and ending with the user's, after instructions of role ``system`` if there
                are any; blanks around each text are removed.
            num_visual_tokens: how many visual tokens the video was turned into.

        Returns:
            ids before and after the video.

        Raises:
            InvalidRequestError: a text is empty or contains a reserved token, a control character or half a
                surrogate pair; the turns do not alternate; or the chat format has no place for one of them.
        """
        roles = [message.role for message in messages]
        turns = roles[1:] if roles[:1] == ["system"] else roles
        if len(turns) % 2 == 0 or turns != ["user", "assistant"] * (len(turns) // 2) + ["user"]:
            raise InvalidRequestError(
                f"turns must alternate from user to user, with at most one system message before them, got {roles}"
            )
        texts = [self._checked_text(message.text) for message in messages]
        ids = self._tokenize(self._render_chat(roles, texts))
        self._check_no_injection(ids, roles)
        cut = ids.index(self._video_id)
        return Prompt(tuple(ids[:cut]), num_visual_tokens, tuple(ids[cut + 1 :]))

    def _checked_text(self, text: str) -> str:
        stripped = text.strip()
        if not stripped:
            raise InvalidRequestError(f"the question is empty (got {text!r}); ask something")
        for position, char in enumerate(stripped):
            if unicodedata.category(char) in ("Cc", "Cs") and char not in _ALLOWED_CONTROLS:
                raise InvalidRequestError(
                    f"the question has the control character U+{ord(char):04X} at position {position}; remove it"
                )
        found = sorted(token for token in self._reserved if token in stripped)
        if found:
            raise InvalidRequestError(
                f"the question contains {found[0]!r}, which the model reserves for its own use; rephrase it"
            )
        return stripped

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
        return rendered

    def _check_no_injection(self, ids: list[int], roles: Sequence[Role]) -> None:
        """Whatever a tokenizer's normaliser makes of a text: no reserved id beyond those of the chat format."""
        expected = self._count_reserved(self._tokenize(self._render(roles, [_PROBE_TEXT] * len(roles))))
        extra = self._count_reserved(ids) - expected
        if extra:
            names = self._tokenizer.convert_ids_to_tokens(sorted(extra))
            raise InvalidRequestError(f"the question is read as the reserved token {names[0]!r}; rephrase it")

    def _count_reserved(self, ids: list[int]) -> Counter[int]:
        return Counter(i for i in ids if i in self._reserved_ids)

    def _render(self, roles: Sequence[str], texts: Sequence[str]) -> str:
        conversation: list[dict[str, Any]] = []  # annotated as dict[str, str] where it goes, but lists are meant
        first = list(roles).index("user")
        for turn, (role, text) in enumerate(zip(roles, texts, strict=True)):
            content = [{"type": "video"}] if turn == first else []
            conversation.append({"role": role, "content": [*content, {"type": "text", "text": text}]})
        try:
            rendered = self._tokenizer.apply_chat_template(
                conversation, chat_template=self._template, add_generation_prompt=True, tokenize=False
            )
        except (TemplateError, TypeError) as error:
            raise CheckpointError(f"the chat template cannot lay out a video and a question: {error}") from error
        return str(rendered)

    def _tokenize(self, rendered: str) -> list[int]:
        bos = self._tokenizer.bos_token
        written_out = bos is not None and rendered.startswith(bos)  # the tokenizer must not add a second one
        return list(self._tokenizer(rendered, add_special_tokens=not written_out)["input_ids"])

    def _check_template(self) -> None:
        rendered = self._render(["user"], [_PROBE_TEXT])
        places = rendered.count(self._video_token)
        if places != 1:
            raise CheckpointError(
                f"the chat template renders {self._video_token!r} {places} times instead of once: {rendered!r}"
            )
        if rendered.find(_PROBE_TEXT) < rendered.index(self._video_token):
            raise CheckpointError(
                f"the chat template must put the video before the question, but renders {rendered!r}; "
                "every question about one video shares the prefix that ends with the video"
            )
        ids = self._tokenize(rendered)
        bos_id = self._tokenizer.bos_token_id
        if bos_id is not None and ids.count(bos_id) > 1:
            raise CheckpointError(f"the prompt would begin with {ids.count(bos_id)} BOS tokens: {rendered!r}")
