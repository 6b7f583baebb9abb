"""How many users there are at which moment of a load test."""

from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["SHAPES", "Plan", "ramp", "soak", "spike"]

_STEPS = 6
_CALM_SHARE = 0.2
_SPIKE_BEGIN, _SPIKE_END = 0.35, 0.65
_WARM_UP_SHARE = 0.05


@dataclass(frozen=True)
class Plan:
    """The size of a load test.

    Attributes:
        seconds: that it takes.
        users: at its height.
    """

    seconds: float
    users: int

    def __post_init__(self) -> None:
        if self.seconds <= 0 or self.users < 1:
            raise ValueError(f"a load test takes some seconds and at least one user, got {self}")


def ramp(plan: Plan, at_seconds: float) -> int:
    """More users in equal steps, to see from which on it gets slow."""
    step = int(at_seconds / plan.seconds * _STEPS) + 1
    return max(1, round(plan.users * min(step, _STEPS) / _STEPS))


def spike(plan: Plan, at_seconds: float) -> int:
    """Few users, then for a third of the time all at once, then few again, to see whether it recovers."""
    calm = max(1, round(plan.users * _CALM_SHARE))
    return plan.users if _SPIKE_BEGIN <= at_seconds / plan.seconds < _SPIKE_END else calm


def soak(plan: Plan, at_seconds: float) -> int:
    """As many users all the time, after a short beginning, to see whether anything grows."""
    share = at_seconds / plan.seconds / _WARM_UP_SHARE
    return max(1, round(plan.users * min(1.0, share)))


SHAPES: dict[str, Callable[[Plan, float], int]] = {"ramp": ramp, "spike": spike, "soak": soak}
"""By name."""
