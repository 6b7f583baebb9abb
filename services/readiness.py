"""Whether every stage can serve, as Serve's controller sees it."""

import asyncio
import contextvars
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ray import serve
from ray.serve.schema import ApplicationStatus, ServeStatus

from fastervlm_video.errors import UnavailableError

__all__ = ["ReadinessProbe", "StageStates"]

logger = logging.getLogger(__name__)

_FRESH_SECONDS_WHEN_READY = 5.0
_FRESH_SECONDS_WHEN_NOT = 0.5
_PATIENCE_SECONDS = 2.0
_RUNNING = "RUNNING"
_SCALING = {"HEALTHY", "UPSCALING", "DOWNSCALING"}
_BROKEN = {"UNHEALTHY", "DEPLOY_FAILED"}


@dataclass(frozen=True, slots=True)
class StageStates:
    """State of each stage by name; ``ready`` if every one has a replica or may have none.

    Attributes:
        ready: whether requests can be served.
        states: ``running``, ``idle`` (scaled to zero, starts on demand), ``starting``, ``failed`` or
            ``not deployed``.
    """

    ready: bool
    states: dict[str, str]

    @classmethod
    def from_status(cls, status: ServeStatus, app_name: str, min_replicas: Mapping[str, int]) -> "StageStates":
        """Read Serve's status.

        Args:
            status: what :func:`ray.serve.status` returned.
            app_name: the application's name.
            min_replicas: by stage, as configured; a stage with 0 may be scaled away.
        """
        app = status.applications.get(app_name)
        if app is None or app.status in {ApplicationStatus.DELETING, ApplicationStatus.NOT_STARTED}:
            return cls(False, dict.fromkeys(min_replicas, "not deployed"))
        states = {}
        for name, fewest in min_replicas.items():
            stage = app.deployments.get(name)
            replicas = stage.replica_states if stage else {}
            running = any(state == _RUNNING and count > 0 for state, count in replicas.items())
            if stage is None:
                states[name] = "starting"
            elif running:
                states[name] = "running"
            elif stage.status in _BROKEN:
                states[name] = "failed"
            else:
                # On its way up from zero it still counts as idle: what is cached does not wait for it.
                states[name] = "idle" if fewest == 0 and stage.status in _SCALING else "starting"
        return cls(all(state in {"running", "idle"} for state in states.values()), states)


class ReadinessProbe:
    """Asks the controller, and remembers the answer for a little while. For use from one event loop.

    Replicas go on serving when the controller is down, so while it cannot be asked its last answer stands.

    Args:
        app_name: the application's name.
        min_replicas: by stage.
        fetch: where the status comes from.
    """

    def __init__(
        self,
        app_name: str,
        min_replicas: Mapping[str, int],
        fetch: Callable[[], ServeStatus] = serve.status,
    ) -> None:
        self._app_name, self._min_replicas, self._fetch = app_name, min_replicas, fetch
        self._states = StageStates(False, dict.fromkeys(min_replicas, "starting"))
        self._fresh_until = 0.0
        self._was_ready = False
        self._refreshing: asyncio.Task[None] | None = None

    async def states(self) -> StageStates:
        """The stages' states, at most a few seconds old, or the last known if the controller does not answer."""
        if time.monotonic() >= self._fresh_until:
            if self._refreshing is None:  # one at a time, however long it takes; it belongs to no request
                self._refreshing = asyncio.create_task(self._refresh(), context=contextvars.Context())
            await asyncio.wait({self._refreshing}, timeout=_PATIENCE_SECONDS)
        return self._states

    async def require(self) -> None:
        """Return if the service has been ready before, or is now.

        Once every stage has been up, requests are let through even while one of them is replaced: what is cached
        needs no Encoder, and Serve holds calls to a stage until it is back or the request's time is over.

        Raises:
            UnavailableError: a stage is still starting, for the first time.
        """
        if self._was_ready:
            return
        states = await self.states()
        self._was_ready = states.ready
        if not states.ready:
            listing = ", ".join(f"{name} is {state}" for name, state in states.states.items() if state != "running")
            raise UnavailableError(f"the service is not ready: {listing}; try again in a few seconds")

    async def _refresh(self) -> None:
        fresh_seconds = _FRESH_SECONDS_WHEN_NOT
        try:
            status = await asyncio.to_thread(self._fetch)
            self._states = StageStates.from_status(status, self._app_name, self._min_replicas)
            if self._states.ready:
                fresh_seconds = _FRESH_SECONDS_WHEN_READY
        except Exception as exc:  # whatever Ray raises when its controller is away
            logger.warning("the state of the stages is not known: %s: %s", type(exc).__name__, exc)
        finally:
            self._fresh_until = time.monotonic() + fresh_seconds
            self._refreshing = None
