"""Paths of the routes that take work, for everything that treats them specially."""

__all__ = ["ASK_PATH", "CHAT_PATH", "FILES_PATH", "INLINE_PATHS", "QUESTION_PATHS", "UPLOAD_PATHS"]

ASK_PATH = "/v1/ask"
CHAT_PATH = "/v1/chat/completions"
FILES_PATH = "/v1/files"

QUESTION_PATHS = (ASK_PATH, CHAT_PATH)
"""Paths whose POST requests are answered by the model."""

UPLOAD_PATHS = (ASK_PATH, FILES_PATH)
"""Paths whose POST requests may bring a file, as multipart."""

INLINE_PATHS = (CHAT_PATH,)
"""Paths whose POST requests may bring a small video in their JSON."""
