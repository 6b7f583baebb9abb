"""Ending an answer at a stop string, without ever showing a part of one."""

__all__ = ["StopMatcher"]


class StopMatcher:
    r"""Passes an answer's text on, piece by piece, up to the first stop string.

    The first one is the one that is complete first; of several that are complete at the same character, the
    longest. So the outcome does not depend on how the text was cut into pieces. Held back is what may turn
    out to begin a stop string::

        stop strings "\n\nQ"       pieces  "A cat.\n"   "\n"      "So "         "\n\nQ: why"
                                  shown   "A cat."    ""        "\n\nSo "    ""  (stopped)

    Args:
        stops: none of them empty; none at all lets everything pass.
    """

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops = stops
        self._longest = max(map(len, stops), default=0)
        self._held = ""
        self.stopped = False

    def push(self, piece: str) -> str:
        """Take the text's next piece; returns what is now certain to come before any stop string."""
        if self.stopped:
            return ""
        text, self._held = self._held + piece, ""
        found = [(at + len(stop), at) for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            self.stopped = True
            return text[: min(found)[1]]
        certain = len(text) - self._undecided(text)
        self._held = text[certain:]
        return text[:certain]

    def flush(self) -> str:
        """What was held back, when the text is over."""
        held, self._held = self._held, ""
        return held

    def _undecided(self, text: str) -> int:
        """Length of the longest end of ``text`` that is the beginning of a stop string."""
        longest = min(self._longest - 1, len(text))
        return next((n for n in range(longest, 0, -1) if self._begins_a_stop(text[-n:])), 0)

    def _begins_a_stop(self, end: str) -> bool:
        return any(stop.startswith(end) for stop in self._stops)
