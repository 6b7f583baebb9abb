"""What this package and the library log belongs into the log of the replica that runs them.

Serve writes a log for each replica (``logs/serve/`` in Ray's session folder) of what goes to its own logger. Without
more, records of all other loggers would be lost below WARNING, and appear without a time above.
"""

import logging

from ray import serve
from ray.serve.exceptions import RayServeException

__all__ = ["join_replica_log"]

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
