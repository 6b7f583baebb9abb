"""Paths of the routes that take work, for everything that treats them specially."""

__all__ = ["ASK_PATH", "FILES_PATH", "WORK_PATHS"]

ASK_PATH = "/v1/ask"
FILES_PATH = "/v1/files"
WORK_PATHS = (ASK_PATH, FILES_PATH)
"""Paths whose POST requests carry large bodies and make work."""
