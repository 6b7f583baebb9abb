"""One request inside an engine: what it has said so far, and whom it tells."""

import logging
import threading
import time
from collections.abc import Callable, Collection

from transformers import PreTrainedTokenizerBase

from fastervlm_video.errors import FasterVLMError, UnavailableError
from fastervlm_video.language.detokenize import Detokenizer
from fastervlm_video.language.engine import (
    EngineTimings,
    Event,
    EventCallback,
    Failed,
    Finished,
    FinishReason,
    GenerationRequest,
    TextDelta,
    Usage,
)
from fastervlm_video.language.sharing import PrefixKey, VisualKey
from fastervlm_video.language.stop import StopMatcher

__all__ = ["Job"]

logger = logging.getLogger(__name__)


class Job:
    """Turns a request's tokens into events; the engine feeds it, its submitter may cancel it.

    Args:
        request: what was submitted.
        on_event: the submitter's callback; if it raises, the job ends.
        tokenizer: for the answer's text.
        end_ids: ids that end an answer.
        on_cancel: told when the submitter cancels, from the submitter's thread.

    Attributes:
        request: what was submitted.
        visual_key: equal for requests whose embedded visual tokens are equal; None for nobody's.
        prefix_key: equal for requests whose prompts are equal up to the last visual token; None for nobody's.
        cached_tokens: of its prompt, how many were computed before; the engine says so.
    """

    def __init__(
        self,
        request: GenerationRequest,
        on_event: EventCallback,
        tokenizer: PreTrainedTokenizerBase,
        end_ids: Collection[int],
        on_cancel: Callable[["Job"], None],
    ) -> None:
        self.request = request
        self.visual_key = VisualKey.of(request)
        self.prefix_key = PrefixKey.of(self.visual_key, request.prompt) if self.visual_key is not None else None
        self.cached_tokens = 0
        self._on_event = on_event
        self._end_ids = end_ids
        self._on_cancel = on_cancel
        self._detokenizer = Detokenizer(tokenizer)
        self._stop = StopMatcher(request.sampling.stop)
        self._token_ids: list[int] = []
        self._reported = 0  # tokens whose text has been sent
        self._lock = threading.Lock()  # guards _ended
        self._ended = False
        self._submitted = time.monotonic()
        self._queued_seconds = 0.0
        self._ttft_seconds = 0.0

    @property
    def most_tokens(self) -> int:
        """Cache slots it may come to take: prompt and longest answer."""
        return len(self.request.prompt) + self.request.sampling.max_tokens

    @property
    def ended(self) -> bool:
        """Whether it needs no more tokens: finished, failed or cancelled."""
        return self._ended

    def cancel(self) -> None:
        """Ask for no more events. See :class:`~fastervlm_video.language.engine.CancelHandle`."""
        if self._end():
            self._on_cancel(self)

    def begin(self) -> None:
        """Its prompt is about to be computed."""
        self._queued_seconds = self._elapsed()

    def accept(self, token_id: int | None) -> None:
        """Take its next token; None if the model had none to offer. Failures concern this job only."""
        try:
            if token_id is None:
                raise UnavailableError(
                    "the model's output was not finite (an overflow?); try again, or load it in a wider dtype"
                )
            self._accept(token_id)
        except FasterVLMError as error:
            self.fail(error)
        except Exception as error:
            logger.exception("request %s: token %s could not be turned into text", self.request.request_id, token_id)
            self.fail(UnavailableError(f"the answer could not be turned into text ({error!r}); send it again"))

    def fail(self, error: FasterVLMError) -> None:
        """End it, unless it has ended, and say why."""
        if self._end():
            self._tell(Failed(error))

    def _accept(self, token_id: int) -> None:
        if not self._token_ids:
            self._ttft_seconds = self._elapsed()
        self._token_ids.append(token_id)
        if token_id in self._end_ids:
            self._finish("stop")
            return
        self._tell_text(self._stop.push(self._detokenizer.push(token_id)))
        if self._stop.stopped:
            self._finish("stop")
        elif len(self._token_ids) == self.request.sampling.max_tokens:
            self._finish("length")

    def _finish(self, reason: FinishReason) -> None:
        self._tell_text(self._stop.push(self._detokenizer.flush()) + self._stop.flush())
        reason = "stop" if self._stop.stopped else reason  # what was held back may complete a stop string
        prompt = self.request.prompt
        timings = EngineTimings(self._queued_seconds, self._ttft_seconds, total_seconds=self._elapsed())
        usage = Usage(len(prompt), prompt.num_visual, len(self._token_ids), self.cached_tokens)
        if self._end():
            self._tell(Finished(reason, usage, timings, tuple(self._token_ids)))

    def _tell_text(self, text: str) -> None:
        if text and not self._ended:
            count = len(self._token_ids) - self._reported
            self._reported = len(self._token_ids)
            self._tell(TextDelta(text, count))

    def _tell(self, event: Event) -> None:
        try:
            self._on_event(event)
        except Exception:
            logger.exception("request %s: its callback raised, so it is dropped", self.request.request_id)
            self._end()

    def _end(self) -> bool:
        """Mark as ended; False if somebody else did before."""
        with self._lock:
            first, self._ended = not self._ended, True
            return first

    def _elapsed(self) -> float:
        return time.monotonic() - self._submitted
