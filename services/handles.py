"""Calls to the other stages, typed; together with :mod:`services.app` the only place that knows Ray's handles."""

import logging
from dataclasses import dataclass
from typing import Any, Self, cast

from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, RayServeException
from ray.serve.handle import DeploymentHandle, DeploymentResponse, DeploymentResponseGenerator

from fastervlm_video.errors import FasterVLMError, OverloadedError, UnavailableError
from services.logs import calls_logged_as
from services.stages import AnswerOrder, DecodeOrder, EncodeOrder, StageEvent

__all__ = ["STAGE_FAILURES", "AnswerStream", "Encoding", "Stages", "as_own_error"]

logger = logging.getLogger(__name__)

STAGE_FAILURES = (FasterVLMError, RayError, RayServeException)
"""What a call to a stage may raise."""


@dataclass(frozen=True, slots=True, eq=False)
class Encoding:
    """A decode and an encode under way. The frames between them, and the tokens that come out, stay in Ray's
    object store until the stage that needs them takes them from there.
    """

    decoded: DeploymentResponse[Any]
    encoded: DeploymentResponse[Any]

    def cancel(self) -> None:
        """Stop both, as far as they are not done."""
        for call in (self.encoded, self.decoded):
            cast("Any", call).cancel()


class AnswerStream:
    """Events of a Generator's answer. Leaving the ``async with`` block through an error cancels the call."""

    def __init__(self, call: DeploymentResponseGenerator[Any]) -> None:
        self._call = call

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> StageEvent:
        event: StageEvent = await self._call.__anext__()
        return event

    async def first(self) -> StageEvent:
        """The first event.

        Raises:
            UnavailableError: the stream ended before it.
        """
        try:
            return await self.__anext__()
        except StopAsyncIteration as exc:
            raise UnavailableError("a stage ended its answer before it began; try again") from exc

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            cast("Any", self._call).cancel()


class Stages:
    """The other deployments.

    Args:
        decoder: handle of the Decoder.
        encoder: handle of the Encoder.
        generator: handle of the Generator.
    """

    def __init__(
        self, decoder: DeploymentHandle[Any], encoder: DeploymentHandle[Any], generator: DeploymentHandle[Any]
    ) -> None:
        self._decode = decoder.options(method_name="decode")
        self._encode = encoder.options(method_name="encode")
        self._generate = generator.options(method_name="generate", stream=True)

    def begin_encoding(self, decode: DecodeOrder, encode: EncodeOrder, *, request_id: str) -> Encoding:
        """Have a video decoded, and its frames encoded and pruned.

        Args:
            decode: to the Decoder.
            encode: to the Encoder.
            request_id: for the stages' logs; of the request that asked first, if several wait for this.
        """
        with calls_logged_as(request_id):
            decoded = cast("DeploymentResponse[Any]", self._decode.remote(decode))
            return Encoding(decoded, cast("DeploymentResponse[Any]", self._encode.remote(decoded, encode)))

    def generate(self, order: AnswerOrder, encoding: Encoding | None = None) -> AnswerStream:
        """Have a question answered, from an encoding's result or from the cache.

        Questions about one token set go to one replica, as long as it has room: it has computed the video's keys and
        values already.
        """
        generate = self._generate.options(session_id=order.token_set)
        call = generate.remote(order, encoding.encoded if encoding else None)
        return AnswerStream(cast("DeploymentResponseGenerator[Any]", call))


def _is_loss(exc: BaseException) -> bool:
    """Whether Ray lost something, rather than that a stage's code failed; Ray makes one class of both where a call's
    argument is what was lost.
    """
    kinds = {kind for kind in type(exc).__mro__ if issubclass(kind, RayError) and not issubclass(kind, RayTaskError)}
    return bool(kinds - {RayError}) or type(exc) is RayError


def as_own_error(exc: BaseException) -> FasterVLMError:
    """A stage's failure in this project's terms. Ray wraps what a remote function raised, in ``cause``."""
    while isinstance(exc, RayTaskError) and isinstance(exc.cause, BaseException):
        exc = exc.cause
    if isinstance(exc, FasterVLMError):
        return exc
    if isinstance(exc, BackPressureError):
        return OverloadedError("a stage's queue is full; try again")
    if isinstance(exc, RayServeException) and isinstance(exc.__cause__, RayError):
        exc = exc.__cause__  # the stage before the called one died, and this one's argument with it
    if isinstance(exc, DeploymentUnavailableError) or _is_loss(exc):
        # Replicas, workers, nodes or objects that are lost: the next attempt finds others.
        return UnavailableError(f"a part of the service was lost ({type(exc).__name__}); try again")
    logger.error("a stage failed unexpectedly", exc_info=exc)
    return FasterVLMError(f"a stage failed: {type(exc).__name__}: {exc}")
