"""What this package and the library log belongs into the log of the replica that runs them.

Serve writes a log for each replica (``logs/serve/`` in Ray's session folder) of what goes to its own logger. Without
more, records of all other loggers would be lost below WARNING, and appear without a time above.

Serve adds to each record the id of the request whose call it is written in, and hands it on with every call that is
made there. Work that several requests wait for is in no request's call, so it is told whose id to go by.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

from ray import serve
from ray.serve.context import _RequestContext, _serve_request_context
from ray.serve.exceptions import RayServeException
from ray.serve.schema import EncodingType, LoggingConfig

from services.settings import Settings

__all__ = ["calls_logged_as", "join_replica_log", "serve_logging"]

_SERVE = logging.getLogger("ray.serve")
_OURS = ("fastervlm_video", "services")


class _ToServe(logging.Handler):
    """Hands records on as they are; Serve's own handlers, which it may exchange, add the request's id."""

    def emit(self, record: logging.LogRecord) -> None:
        _SERVE.handle(record)


def join_replica_log() -> None:
    """From now on log to where this replica logs, and from the same level on. Outside of a replica nothing happens."""
    try:
        serve.get_replica_context()
    except RayServeException:
        return
    for name in _OURS:
        logger = logging.getLogger(name)
        logger.setLevel(_SERVE.level)
        if not any(isinstance(handler, _ToServe) for handler in logger.handlers):
            logger.addHandler(_ToServe())


@contextmanager
def calls_logged_as(request_id: str) -> Iterator[None]:
    """Calls to other stages that are begun in the block are logged with this id, there and wherever they lead to.

    They are not of that request: they are not cancelled with it.
    """
    before = cast("Any", _serve_request_context).set(_RequestContext(request_id=request_id))
    try:
        yield
    finally:
        _serve_request_context.reset(before)


def serve_logging(settings: Settings) -> LoggingConfig:
    """How Serve is to log: from which level on, and as lines of text or of JSON."""
    encoding = EncodingType.JSON if settings.log_format == "json" else EncodingType.TEXT
    return LoggingConfig(log_level=settings.log_level, encoding=encoding)
