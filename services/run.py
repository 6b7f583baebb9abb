"""Start the service on this machine (or on the Ray cluster this machine belongs to), and stop it cleanly."""

import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from fastervlm_video.cache import EmbeddedRedis
from services.proxy import PROXY_CALLBACK
from services.settings import STAGES, Settings

__all__ = ["running_service", "wait_for_signal"]

logger = logging.getLogger(__name__)

_LOOPBACK = "127.0.0.1"


def _prepare_environment() -> None:
    """What Ray and Serve read from the environment when they are imported; what is set already stays."""
    os.environ.setdefault("RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH", PROXY_CALLBACK)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if not os.environ.get("RAY_ADDRESS"):
        # A private Ray's own ports listen on all interfaces; without the token nobody can use them.
        os.environ.setdefault("RAY_AUTH_MODE", "token")


def _set_ray_log_level(level: int) -> None:
    """Of what Ray and Serve log in this process; the replicas' own logs are not concerned."""
    for name in ("ray", "ray.serve"):
        logging.getLogger(name).setLevel(level)


def _start_ray(settings: Settings, *, show_logs: bool) -> None:
    """Join the cluster that ``RAY_ADDRESS`` names, or start a private one."""
    import ray

    level = logging.WARNING if show_logs else logging.ERROR
    _set_ray_log_level(level)
    if os.environ.get("RAY_ADDRESS"):
        ray.init(log_to_driver=show_logs, logging_level=level)
        return
    needed = sum(settings.stage(name).num_cpus * settings.stage(name).max_replicas for name in STAGES)
    ray.init(
        num_cpus=max(os.cpu_count() or 1, round(needed) + 1),
        include_dashboard=False,
        log_to_driver=show_logs,
        logging_level=level,
    )


@contextmanager
def running_service(settings: Settings, *, show_logs: bool = True) -> Iterator[str]:
    """The whole service, ready to answer, for as long as the block runs.

    Args:
        settings: of the service.
        show_logs: whether the replicas' logs appear on this process's standard error.

    Yields:
        The service's base URL.

    Raises:
        InvalidRequestError: the runtime folder cannot be used.
        RuntimeError: a stage failed to start; Serve's message says which and why.
    """
    _prepare_environment()
    import ray
    from ray import serve
    from ray.serve.schema import LoggingConfig

    from services.app import APP_NAME, build_app

    with ExitStack() as stack:
        runtime_dir = settings.prepare_runtime_dir()
        if settings.redis_url is None:  # owned here, so that it lives as long as the service does
            redis = EmbeddedRedis(runtime_dir, max_memory_bytes=settings.cache_max_memory_bytes)
            redis.ensure_running()
            stack.callback(redis.close)
        _start_ray(settings, show_logs=show_logs)
        stack.callback(ray.shutdown)
        serve.start(
            http_options={"host": settings.host, "port": settings.port, "request_timeout_s": None},
            logging_config=LoggingConfig(log_level=settings.log_level),
        )
        stack.callback(serve.delete, APP_NAME)  # other applications on a shared cluster are left alone
        serve.run(build_app(settings), name=APP_NAME, route_prefix="/", logging_config=None)
        host = _LOOPBACK if settings.host in ("0.0.0.0", "::") else settings.host  # noqa: S104
        yield f"http://{host}:{settings.port}"


def wait_for_signal() -> None:
    """Block until SIGINT or SIGTERM; a second one ends the process at once."""
    asked = threading.Event()

    def stop(number: int, _frame: object) -> None:
        signal.signal(number, signal.SIG_DFL)
        asked.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    asked.wait()
