"""The running service of the integration tests, once more for these."""

from tests.integration.conftest import service

__all__ = ["service"]
