"""What tests of the stages share."""

import logging
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module")
def logs_as_they_were() -> Iterator[None]:
    """A stage that believes to be a replica has the library log to Serve; not beyond the module that started it."""
    loggers = [logging.getLogger(name) for name in ("fastervlm_video", "services")]
    before = [(logger, logger.level, list(logger.handlers)) for logger in loggers]
    yield
    for logger, level, handlers in before:
        logger.setLevel(level)
        logger.handlers[:] = handlers
