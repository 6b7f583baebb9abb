"""What runs in Serve's HTTP proxy: the body limit, so that too large an upload is cut where it comes in.

The proxy reads a request's body as fast as it arrives and forwards it to a replica. Cutting only in the
replica would let the proxy's memory grow by whatever arrives until the replica has counted to the limit.
"""

from starlette.middleware import Middleware

from services.body_limit import BodyLimitMiddleware
from services.paths import WORK_PATHS
from services.settings import load_settings

__all__ = ["PROXY_CALLBACK", "proxy_middleware"]

PROXY_CALLBACK = "services.proxy.proxy_middleware"
"""Value for Serve's ``RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH``."""


def proxy_middleware() -> list[Middleware]:
    """Called by Serve in the proxy's process, which has the environment's settings."""
    limit_bytes = load_settings().max_upload_bytes
    return [Middleware(BodyLimitMiddleware, upload_limit_bytes=limit_bytes, upload_paths=WORK_PATHS)]
