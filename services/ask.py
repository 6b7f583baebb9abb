"""The simple form: one question, one answer, in this service's own words.

::

    event: video   once, first: frames, tokens kept, cache hit or miss
    event: delta   pieces of the answer as they come
    event: done    once, last: the same object that an unstreamed request returns
    event: error   instead of the rest, if something fails on the way
"""

import json
import time
from typing import Any

from fastervlm_video.config import Medium
from fastervlm_video.language import Message
from services.answers import AnswerBuilder, CompleteAnswer
from services.inquiry import FileSource, Inquiry, RemoteFile, StoredFile
from services.schemas import AskRequest, AskResponse
from services.uploads import SpooledFile

__all__ = ["AskDialect", "ask_inquiry"]


def ask_inquiry(ask: AskRequest, file: SpooledFile | None) -> Inquiry:
    """What a question asks, about the one video or picture that it names or brings along."""
    return Inquiry(
        messages=(Message("user", ask.question),),
        source=_source(ask, file),
        num_frames=ask.num_frames,
        method=ask.method,
        keep_ratio=ask.keep_ratio,
        keep_tokens=ask.keep_tokens,
        keep_cls=ask.keep_cls,
        max_tokens=ask.max_tokens,
        temperature=ask.temperature,
        top_p=ask.top_p,
        seed=ask.seed,
        stream=ask.stream,
    )


def _source(ask: AskRequest, file: SpooledFile | None) -> FileSource:
    if file is not None:
        return file
    if ask.file_id:
        return StoredFile(ask.file_id)
    return RemoteFile(ask.image_url, Medium.IMAGE) if ask.image_url else RemoteFile(ask.video_url or "", Medium.VIDEO)


class AskDialect:
    """An answer as ``video.answer``, or as named events.

    Args:
        request_id: of the request.
        model: name of the model.
    """

    def __init__(self, *, request_id: str, model: str) -> None:
        self._id, self._model = f"ask-{request_id}", model

    def whole(self, answer: CompleteAnswer) -> AskResponse:
        """The answer to a request without ``stream``."""
        return AskResponse(
            id=self._id,
            created=int(time.time()),
            model=self._model,
            answer=answer.text,
            finish_reason=answer.finish_reason,
            usage=answer.usage,
            video=answer.video,
        )

    def begin(self, answer: AnswerBuilder) -> str:
        """What is known of the video or picture."""
        return _event("video", answer.video().model_dump_json())

    def piece(self, text: str) -> str:
        """The next piece of text."""
        return _event("delta", json.dumps({"text": text}))

    def end(self, answer: CompleteAnswer) -> str:
        """The whole answer."""
        return _event("done", self.whole(answer).model_dump_json())

    def error(self, body: dict[str, Any]) -> str:
        """What went wrong."""
        return _event("error", json.dumps(body))


def _event(name: str, data: str) -> str:
    return f"event: {name}\ndata: {data}\n\n"
