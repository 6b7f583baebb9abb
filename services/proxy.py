"""What runs in Serve's HTTP proxy: the body limit, so that too large an upload is cut where it comes in.

The proxy reads a request's body as fast as it arrives and forwards it to a replica. Cutting only in the
replica would let the proxy's memory grow by whatever arrives until the replica has counted to the limit. Bodies
are let in at a rate that a replica keeps up with, and only so many uploads at a time. A question whose replica dies is
put to another one.
"""

from starlette.middleware import Middleware

from services.admission import Admission
from services.body_limit import DEFAULT_SMALL_LIMIT_BYTES, BodyLimitMiddleware
from services.lost_replica import LostReplicaMiddleware
from services.middleware import AdmissionMiddleware
from services.pacing import PacingMiddleware
from services.paths import INLINE_PATHS, QUESTION_PATHS, UPLOAD_PATHS
from services.request_log import RequestIdMiddleware, RequestMeterMiddleware
from services.settings import load_settings

__all__ = ["PROXY_CALLBACK", "proxy_middleware"]

PROXY_CALLBACK = "services.proxy.proxy_middleware"
"""Value for Serve's ``RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH``."""


def proxy_middleware() -> list[Middleware]:
    """Called by Serve in the proxy's process, which has the environment's settings. The last one is outermost."""
    settings = load_settings()
    uploads = Admission(settings.max_concurrent_uploads)
    return [
        Middleware(AdmissionMiddleware, admission=uploads, paths=UPLOAD_PATHS, content_type="multipart/form-data"),
        Middleware(
            AdmissionMiddleware, admission=uploads, paths=INLINE_PATHS, larger_than_bytes=DEFAULT_SMALL_LIMIT_BYTES
        ),
        Middleware(PacingMiddleware, bytes_per_second=settings.max_upload_bytes_per_second),
        Middleware(
            BodyLimitMiddleware,
            upload_limit_bytes=settings.max_upload_bytes,
            upload_paths=UPLOAD_PATHS,
            inline_limit_bytes=settings.inline_limit_bytes,
            inline_paths=INLINE_PATHS,
        ),
        Middleware(LostReplicaMiddleware, repeated_paths=QUESTION_PATHS),
        Middleware(RequestMeterMiddleware, only_refused=True),
        Middleware(RequestIdMiddleware),
    ]
