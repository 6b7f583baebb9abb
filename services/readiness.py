"""Whether every stage can serve, as Serve's controller sees it."""

import asyncio
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
_RUNNING = "RUNNING"
_HEALTHY = "HEALTHY"
_BROKEN = {"UNHEALTHY", "DEPLOY_FAILED"}


@dataclass(frozen=True, slots=True)
class StageStates:
    """State of each stage by name; ``ready`` if every one has a replica or may have none.

    Attributes:
        ready: whether requests can be served.
        states: ``running``, ``idle`` (scaled to zero, starts on demand), ``starting`` or ``failed: …``.
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
                states[name] = "idle" if fewest == 0 and stage.status == _HEALTHY else "starting"
        return cls(all(state in {"running", "idle"} for state in states.values()), states)


class ReadinessProbe:
    """Asks the controller, and remembers the answer for a little while.

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
        self._lock = asyncio.Lock()

    async def states(self) -> StageStates:
        """The stages' states, at most a few seconds old."""
        if time.monotonic() < self._fresh_until:
            return self._states
        async with self._lock:
            if time.monotonic() >= self._fresh_until:
                status = await asyncio.to_thread(self._fetch)
                self._states = StageStates.from_status(status, self._app_name, self._min_replicas)
                fresh = _FRESH_SECONDS_WHEN_READY if self._states.ready else _FRESH_SECONDS_WHEN_NOT
                self._fresh_until = time.monotonic() + fresh
        return self._states

    async def require(self) -> None:
        """Return if the service can answer.

        Raises:
            UnavailableError: a stage is still starting or has failed.
        """
        states = await self.states()
        if not states.ready:
            listing = ", ".join(f"{name} is {state}" for name, state in states.states.items() if state != "running")
            raise UnavailableError(f"the service is not ready: {listing}; try again in a few seconds")
