"""Text from token ids as they come, without half characters and without decoding everything every time."""

import re

from transformers import PreTrainedTokenizerBase

__all__ = ["Detokenizer"]

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"  # what decoders put where bytes are no (complete) character
_BYTE_TOKEN = re.compile(r"<0x[0-9A-Fa-f]{2}>")  # sentencepiece's byte fallback


class Detokenizer:
    """Turns one answer's token ids into text, piece by piece.

    The pieces, joined, equal ``tokenizer.decode(ids, skip_special_tokens=True).lstrip()``; blanks in front
    of an answer are an artefact of the prompt's end. What a token looks like depends on its neighbours
    (sentencepiece drops the first blank, a character's bytes may be spread over tokens), so a window is
    decoded twice, with and without what is new, and the difference is the piece::

        ids     . . . . a b | c d | e          a b: shown, kept as context
                        ^     ^                 c d e: pending
                        context shown           piece = decode(a b c d e) - decode(a b)

    Pieces are held back while they end inside a character, and through runs of byte-fallback tokens: one
    invalid byte makes replacement characters of its whole run.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._hidden = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
        self._ids: list[int] = []
        self._context = 0
        self._shown = 0
        self._shown_text = ""
        self._at_start = True

    def push(self, token_id: int) -> str:
        """Take one more id; returns the text that is now certain, often empty."""
        name = self._tokenizer.convert_ids_to_tokens(token_id)
        if token_id in self._hidden or name is None:  # a model may have more logits than there are tokens
            return ""
        self._ids.append(token_id)
        if _BYTE_TOKEN.fullmatch(str(name)):
            return ""
        text = self._decode(self._context)
        if text.endswith(_REPLACEMENT) or len(text) <= len(self._shown_text):
            return ""
        return self._show(text)

    def flush(self) -> str:
        """The rest, with replacement characters where the answer ends inside a character."""
        return self._show(self._decode(self._context))

    def _show(self, text: str) -> str:
        piece = text[len(self._shown_text) :]
        self._context, self._shown = self._shown, len(self._ids)
        self._shown_text = self._decode(self._context)
        if self._at_start:
            piece = piece.lstrip()
            self._at_start = not piece
        return piece

    def _decode(self, start: int) -> str:
        return str(self._tokenizer.decode(self._ids[start:], skip_special_tokens=True))
