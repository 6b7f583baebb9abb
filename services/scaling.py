"""When a stage gets more replicas, and when fewer: by the work that there is, rather than by the number of requests.

A request to the Encoder may be a picture or 64 frames, one to the Generator 60 tokens or 3000, so requests say little
about load. Replicas say how much they have in hand, waiting or running; Serve's controller hands that to a policy, a
pure function of what it is given::

    replica: WorkInHand ── record_autoscaling_stats ──▶ controller ── AutoscalingContext ──▶ WorkPolicy ──▶ replicas
    caller's handle: requests that no replica has taken yet ──▶  │

    replicas = (work in hand + requests waiting at handles x work of a usual request) / target for each replica,
               but no more than there are requests, for none is divided

Serve applies what it has for all policies afterwards: bounds, delays, and that a stage without replicas gets one as
soon as a request waits for it. The Api and the Decoder are scaled by Serve's own policy, by requests.

Serve sends this module to its controller by value, so it may only import what is installed there: Python and Ray.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ray.serve.config import AutoscalingContext

__all__ = ["FRAMES", "TOKENS", "WorkInHand", "WorkPolicy"]

FRAMES, TOKENS = "frames", "tokens"
"""Units of work of the Encoder and of the Generator; the names of their metrics."""


class WorkInHand:
    """What a replica has taken on and not finished. For use from one event loop.

    Args:
        unit: what is counted.
    """

    def __init__(self, unit: str) -> None:
        self._unit, self._amount = unit, 0

    @contextmanager
    def holding(self, amount: int) -> Iterator[None]:
        """Count ``amount`` for the length of the block, however it ends."""
        self._amount += amount
        try:
            yield
        finally:
            self._amount -= amount

    def stats(self) -> dict[str, float]:
        """What ``record_autoscaling_stats`` returns."""
        return {self._unit: float(self._amount)}


class WorkPolicy:
    """An autoscaling policy for Serve: as many replicas as the work needs at ``target_per_replica`` for each.

    Args:
        unit: name of the metric that replicas report.
        target_per_replica: work that one replica should have in hand, waiting and running.
        usual_per_request: work taken for a request's as long as no replica has reported any.

    Raises:
        ValueError: a number is not above 0.
    """

    def __init__(self, unit: str, target_per_replica: float, usual_per_request: float) -> None:
        if not (0 < target_per_replica < math.inf and 0 < usual_per_request < math.inf):
            raise ValueError(f"must be above 0: {target_per_replica=}, {usual_per_request=}")
        self._unit, self._target, self._usual = unit, target_per_replica, usual_per_request

    def __call__(self, ctx: AutoscalingContext) -> tuple[float, dict[str, Any]]:
        """Replicas wanted, before bounds and delays, and the state that Serve keeps for the policy (none)."""
        if ctx.current_num_replicas == 0:
            return float(ctx.target_num_replicas), {}  # nobody can report; Serve has seen to those who wait
        wanted, requests = self.work(ctx) / self._target, ctx.total_num_requests
        return (min(wanted, requests) if requests > 0 else wanted), {}  # handles may not have reported yet

    def work(self, ctx: AutoscalingContext) -> float:
        """Work in hand and on its way, each a mean over the look-back period."""
        reports = (ctx.aggregated_metrics or {}).get(self._unit)
        running, waiting = ctx.total_running_requests, max(0.0, ctx.total_queued_requests)
        if not reports:  # replicas that have just started, or whose reports are lost
            return (running + waiting) * self._usual
        reported = sum(reports.values())
        per_request = reported / running if reported > 0 and running > 0 else self._usual
        return reported + waiting * per_request
