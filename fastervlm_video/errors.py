"""Every error this package raises on purpose, as one tree.

::

    FasterVLMError
    ├── InvalidInputError            what the caller sent cannot be served, and a retry will not help
    │   ├── InvalidRequestError          a parameter is out of range or two contradict each other
    │   │   └── UnsupportedParameterError    a parameter of other services that this one does not have
    │   ├── AuthenticationError          the API key is missing or is none of ours
    │   ├── ModelNotFoundError           a model that is not served here
    │   ├── ContextLengthError           prompt + video + answer exceed the model's context
    │   ├── UrlNotAllowedError           a URL's scheme, host or resolved address is not allowed
    │   ├── UrlFetchError                an allowed URL that could not be downloaded
    │   ├── VideoNotFoundError           a path or file id that names nothing
    │   └── MediaError                   the video's bytes are the problem
    │       ├── UnsupportedMediaError        not a video, or a container/codec that is not allowed
    │       ├── NoVideoStreamError           a media file without a picture track
    │       ├── CorruptMediaError            truncated or damaged; the decoder crashed or hung on it
    │       └── MediaLimitError              larger, longer or costlier than the limits allow
    │           └── PayloadTooLargeError         more bytes than may be sent, seen before anything was decoded
    ├── CheckpointError              a model cannot be loaded, or its weights are not what they should be
    │   └── FingerprintMismatchError     tokens of one checkpoint were handed to another
    ├── TokenFormatError             cached or received token bytes are damaged, foreign or of another version
    ├── OverloadedError              no room now; try again after ``retry_after_seconds``
    ├── UnavailableError             a part that is needed is not there (yet, or any more); try again
    ├── StorageFullError             the blob store's quota is used up
    └── DeadlineExceededError        the time limit of a request or of a decode ran out

Each class carries a stable machine-readable ``code``. How a code maps to an HTTP status is the
service's business, not this module's. Messages say what was wrong, with the value, and what to do.
Every error is rebuilt from its message alone, so that it survives being sent between processes.
"""

from typing import ClassVar

__all__ = [
    "AuthenticationError",
    "CheckpointError",
    "ContextLengthError",
    "CorruptMediaError",
    "DeadlineExceededError",
    "FasterVLMError",
    "FingerprintMismatchError",
    "InvalidInputError",
    "InvalidRequestError",
    "MediaError",
    "MediaLimitError",
    "ModelNotFoundError",
    "NoVideoStreamError",
    "OverloadedError",
    "PayloadTooLargeError",
    "StorageFullError",
    "TokenFormatError",
    "UnavailableError",
    "UnsupportedMediaError",
    "UnsupportedParameterError",
    "UrlFetchError",
    "UrlNotAllowedError",
    "VideoNotFoundError",
]


class FasterVLMError(Exception):
    """Root of the tree. ``code`` is stable across releases; the message is for people."""

    code: ClassVar[str] = "internal_error"

    @property
    def message(self) -> str:
        """The human-readable text."""
        return str(self)


class InvalidInputError(FasterVLMError):
    """What the caller sent cannot be served, and sending it again will not help.

    Args:
        message: for people.
        param: the request's field at fault, if it is one.
    """

    code = "invalid_input"
    param: str | None = None

    def __init__(self, message: str = "", *, param: str | None = None) -> None:
        super().__init__(message)
        if param is not None:
            self.param = param


class InvalidRequestError(InvalidInputError, ValueError):
    """A parameter is out of range, of the wrong kind, or contradicts another one."""

    code = "invalid_request"


class UnsupportedParameterError(InvalidRequestError):
    """A parameter that other services have and this one does not; it is refused rather than ignored."""

    code = "unsupported_parameter"


class AuthenticationError(InvalidInputError):
    """The API key is missing, or is not one that this service knows."""

    code = "invalid_api_key"


class ModelNotFoundError(InvalidInputError):
    """A model that is not served here."""

    code = "model_not_found"


class ContextLengthError(InvalidInputError):
    """Prompt, visual tokens and requested answer together exceed the model's context window."""

    code = "context_length_exceeded"


class UrlNotAllowedError(InvalidInputError):
    """A video URL's scheme, host, redirect target or resolved address is not allowed."""

    code = "url_not_allowed"


class UrlFetchError(InvalidInputError):
    """An allowed URL that could not be downloaded: no such host, no connection, or a status other than 200."""

    code = "url_fetch_failed"


class VideoNotFoundError(InvalidInputError):
    """A path or file id that names nothing (any more)."""

    code = "not_found"


class MediaError(InvalidInputError):
    """The video's bytes are the problem."""

    code = "invalid_media"


class UnsupportedMediaError(MediaError):
    """Not a video at all, or a container or codec that is not allowed."""

    code = "unsupported_media"


class NoVideoStreamError(MediaError):
    """A media file without a picture track (for instance audio only)."""

    code = "no_video_stream"


class CorruptMediaError(MediaError):
    """Truncated or damaged, up to media on which the decoder crashed."""

    code = "corrupt_media"


class MediaLimitError(MediaError):
    """Larger, longer or costlier to decode than the limits allow."""

    code = "media_limit_exceeded"


class PayloadTooLargeError(MediaLimitError):
    """More bytes than may be sent or fetched; noticed while they arrive, before anything is decoded."""

    code = "payload_too_large"


class CheckpointError(FasterVLMError):
    """A model cannot be found or loaded, or its weights are not what its config promises."""

    code = "checkpoint_error"


class FingerprintMismatchError(CheckpointError):
    """Visual tokens made by one checkpoint's tower were handed to another checkpoint."""

    code = "fingerprint_mismatch"


class TokenFormatError(FasterVLMError):
    """Token bytes are damaged, foreign or of another format version."""

    code = "token_format_error"


class OverloadedError(FasterVLMError):
    """No room now; the request was not started and may be sent again."""

    code = "overloaded"
    retry_after_seconds: ClassVar[int] = 1


class UnavailableError(FasterVLMError):
    """A part that is needed is not there (yet, or any more); the request may be sent again."""

    code = "unavailable"
    retry_after_seconds: ClassVar[int] = 2


class StorageFullError(FasterVLMError):
    """The blob store's quota is used up by files that have not expired."""

    code = "storage_full"


class DeadlineExceededError(FasterVLMError):
    """The time limit of a request or of one of its steps ran out."""

    code = "deadline_exceeded"
