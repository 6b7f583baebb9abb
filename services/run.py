"""Start the service on this machine (or on the Ray cluster this machine belongs to), and stop it cleanly."""

import importlib
import logging
import math
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from fastervlm_video.errors import InvalidRequestError, UnavailableError
from services.proxy import PROXY_CALLBACK
from services.settings import STAGES, Settings
from services.stores import open_blob_store

if TYPE_CHECKING:
    from ray.serve.schema import ServeStatus

__all__ = ["running_service", "wait_for_signal"]

logger = logging.getLogger(__name__)

_LOOPBACK = "127.0.0.1"
_ANYWHERE = "0.0.0.0"  # noqa: S104 - where Ray shows its metrics
_SIGNAL_POLL_SECONDS = 0.2
_LEAVING_SECONDS = 5.0


def _prepare_environment() -> None:
    """What Ray and Serve read from the environment when they are imported; what is set already stays."""
    os.environ.setdefault("RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH", PROXY_CALLBACK)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")


def _set_ray_log_level(level: int) -> None:
    """Of what Ray and Serve log in this process; the replicas' own logs are not concerned."""
    for name in ("ray", "ray.serve"):
        logging.getLogger(name).setLevel(level)


@contextmanager
def _own_signal_handlers() -> Iterator[None]:
    """Signals are handled after the block as before it.

    Ray puts a handler of its own in the place of SIGTERM's, which ends the process whatever it is doing.
    """
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():  # no other may
            for number, handler in handlers.items():
                signal.signal(number, handler)


def _joins_a_cluster() -> bool:
    """Whether ``RAY_ADDRESS`` names a cluster; if not, the service has a private Ray."""
    return bool(os.environ.get("RAY_ADDRESS"))


def _start_ray(settings: Settings, *, show_logs: bool) -> None:
    """Join the cluster that ``RAY_ADDRESS`` names, or start a private one."""
    import ray

    level = logging.WARNING if show_logs else logging.ERROR
    _set_ray_log_level(level)
    if _joins_a_cluster():
        ray.init(log_to_driver=show_logs, logging_level=level)
        return
    needed = sum(settings.stage(name).num_cpus * settings.stage(name).max_replicas for name in STAGES)
    ray.init(
        _metrics_export_port=settings.metrics_port,
        num_cpus=max(os.cpu_count() or 1, round(needed) + 1),
        resources=_custom_resources(settings),
        include_dashboard=False,
        log_to_driver=show_logs,
        logging_level=level,
    )


def _impatient(settings: Settings) -> Settings:
    """Settings under which Ctrl-C on a private Ray waits a moment for requests, and not for minutes."""
    if _joins_a_cluster() or settings.graceful_shutdown_seconds is not None:
        return settings
    return settings.model_copy(update={"graceful_shutdown_seconds": _LEAVING_SECONDS})


def _custom_resources(settings: Settings) -> dict[str, float]:
    """What all replicas together may ask for: a private Ray has one machine, which offers all of it."""
    total: dict[str, float] = {}
    for stage in map(settings.stage, STAGES):
        for name, amount in stage.resources.items():
            total[name] = total.get(name, 0.0) + amount * stage.max_replicas
    return {name: float(math.ceil(amount)) for name, amount in total.items()}


def _check_port_is_free(host: str, port: int, named_by: str) -> None:
    """Ray's proxy shares a port with whoever else is on it, and each would then get some of the other's requests.

    Args:
        host: to listen on.
        port: likewise.
        named_by: the settings that choose them.

    Raises:
        InvalidRequestError: the port is in use, or the host is not an address of this machine.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # but not SO_REUSEPORT
            probe.bind(address)
    except OSError as exc:
        raise InvalidRequestError(
            f"cannot listen on {host} port {port}: {exc.strerror}; set {named_by} to what is free"
        ) from exc


def _why_not_started(status: "ServeStatus", app_name: str) -> str:
    """What the failed stages said, in one line: the last line of a traceback names the error."""
    reasons = []
    for name, stage in status.applications[app_name].deployments.items():
        lines = [line.strip() for line in stage.message.splitlines() if re.match(r"\s*[\w.]+(Error|Exception): ", line)]
        if stage.status in {"UNHEALTHY", "DEPLOY_FAILED"}:
            reasons.append(f"{name}: {lines[-1].rpartition('errors.')[2] if lines else stage.message.strip()}")
    return "the service did not start: " + ("; ".join(reasons) or "see the log")


@contextmanager
def running_service(settings: Settings, *, show_logs: bool = True) -> Iterator[str]:
    """The whole service, ready to answer, for as long as the block runs.

    Args:
        settings: of the service.
        show_logs: whether the replicas' logs appear on this process's standard error.

    Yields:
        The service's base URL.

    Raises:
        InvalidRequestError: the runtime folder, the blob store or the port cannot be used.
        UnavailableError: a stage failed to start; the message says which and why.
    """
    _prepare_environment()
    import ray
    from ray import serve

    from services.logs import serve_logging

    if not _joins_a_cluster():  # a cluster's proxies may have been listening before, and on other machines
        _check_port_is_free(settings.host, settings.port, "FASTERVLM_HOST and FASTERVLM_PORT")
        if settings.metrics_port is not None:  # else Ray would do without, in silence
            _check_port_is_free(_ANYWHERE, settings.metrics_port, "FASTERVLM_METRICS_PORT")
    open_blob_store(settings)  # for its checks, before the stages would fail at it
    settings.keyring()  # likewise
    runtime_dir = settings.prepare_runtime_dir()
    with ExitStack() as stack:
        # The application's packages take as long to import as Ray to start, which is mostly other processes' work.
        importing = stack.enter_context(ThreadPoolExecutor(1)).submit(importlib.import_module, "services.app")
        with _own_signal_handlers():
            _start_ray(settings, show_logs=show_logs)
        stack.callback(ray.shutdown)
        serve.start(
            http_options={"host": settings.host, "port": settings.port, "request_timeout_s": None},
            logging_config=serve_logging(settings),
        )
        importing.result()
        from fastervlm_video.cache import EmbeddedRedis
        from services.app import APP_NAME, build_app

        if settings.redis_url is None:  # owned here, so that it lives as long as the service does
            redis = EmbeddedRedis(runtime_dir, max_memory_bytes=settings.cache_max_memory_bytes)
            redis.ensure_running()
            stack.callback(redis.close)
        stack.callback(serve.delete, APP_NAME)  # other applications on a shared cluster are left alone
        try:
            serve.run(build_app(_impatient(settings)), name=APP_NAME, route_prefix="/", logging_config=None)
        except RuntimeError as exc:
            raise UnavailableError(_why_not_started(serve.status(), APP_NAME)) from exc
        host = _LOOPBACK if settings.host in ("0.0.0.0", "::") else settings.host  # noqa: S104
        yield f"http://{host}:{settings.port}"


def wait_for_signal() -> None:
    """Block until SIGINT or SIGTERM; a second one ends the process at once."""
    asked = False

    def stop(number: int, _frame: object) -> None:
        nonlocal asked
        signal.signal(number, signal.SIG_DFL)
        asked = True

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    while not asked:  # a signal that another thread receives wakes nobody, so look now and then
        time.sleep(_SIGNAL_POLL_SECONDS)
