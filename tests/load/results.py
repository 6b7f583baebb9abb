"""What a load test has seen, and whether that is good enough."""

import json
import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["Results", "as_text", "percentile", "write"]

_TOO_MANY_REQUESTS = 429
_PERCENTS = (50, 95, 99)


def percentile(values: Sequence[float], percent: float) -> float | None:
    """The least value that this share of them does not exceed; None of none."""
    if not values:
        return None
    ordered = sorted(values)
    return ordered[max(1, math.ceil(len(ordered) * percent / 100)) - 1]


def _spread(seconds: Sequence[float]) -> dict[str, float | None]:
    found = {f"p{percent}": percentile(seconds, percent) for percent in _PERCENTS}
    return {name: None if value is None else round(value, 4) for name, value in found.items()}


@dataclass
class Results:
    """Counts and times. Not thread-safe; Locust's users take turns.

    Attributes:
        seconds: of each request that ended in an HTTP status, by name.
        ttft_seconds: from sending a question to the first text of its answer, where it was streamed.
        statuses: requests by HTTP status; 0 is none.
        failures: what was not as it should have been, by what was said.
        cache: answers by ``hit`` and ``miss``.
    """

    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    ttft_seconds: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)
    cache: Counter[str] = field(default_factory=Counter)

    def add(self, name: str, seconds: float, status: int, failure: str | None = None) -> None:
        """Take up one request."""
        self.seconds[name].append(seconds)
        self.statuses[status] += 1
        if failure is not None:
            self.failures[f"{name}: {failure}"] += 1

    @property
    def server_errors(self) -> int:
        """Requests that were answered with a fault of the server."""
        return sum(count for status, count in self.statuses.items() if status >= 500)

    @property
    def hit_share(self) -> float | None:
        """Answers whose tokens were cached, of all; None of none."""
        total = self.cache.total()
        return self.cache["hit"] / total if total else None

    @property
    def passed(self) -> bool:
        """Whether something was asked, nothing failed, and nothing was a fault of the server."""
        return self.statuses.total() > 0 and not self.server_errors and not self.failures

    def summary(self, took_seconds: float) -> dict[str, Any]:
        """All that matters, for machines."""
        everything = [value for values in self.seconds.values() for value in values]
        return {
            "passed": self.passed,
            "took_seconds": round(took_seconds, 1),
            "requests": len(everything),
            "requests_per_second": round(len(everything) / took_seconds, 2),
            "latency_seconds": _spread(everything),
            "by_name": {
                name: {"requests": len(values), **_spread(values)} for name, values in sorted(self.seconds.items())
            },
            "ttft_seconds": {"answers": len(self.ttft_seconds), **_spread(self.ttft_seconds)},
            "cache_hit_share": None if self.hit_share is None else round(self.hit_share, 3),
            "statuses": {str(status): count for status, count in sorted(self.statuses.items())},
            "refused_as_too_many": self.statuses[_TOO_MANY_REQUESTS],
            "server_errors": self.server_errors,
            "failures": dict(self.failures),
        }


def write(summary: dict[str, Any], path: Path) -> None:
    """As JSON."""
    path.write_text(json.dumps(summary, indent=2) + "\n")


def as_text(summary: dict[str, Any]) -> str:
    """A summary for people."""
    rows = [("all", {"requests": summary["requests"], **summary["latency_seconds"]}), *summary["by_name"].items()]
    ttft = summary["ttft_seconds"]
    rows.append(("time to first text", {"requests": ttft["answers"], **ttft}))
    lines = [f"{'':24}{'count':>7}" + "".join(f"{f'p{percent}':>9}" for percent in _PERCENTS)]
    for name, row in rows:
        times = "".join(_seconds(row[f"p{percent}"]) for percent in _PERCENTS)
        lines.append(f"{name:24}{row['requests']:>7}{times}")
    share = summary["cache_hit_share"]
    statuses = ", ".join(f"{count} x {status}" for status, count in summary["statuses"].items())
    lines += [
        f"{summary['requests_per_second']:.1f} requests per second for {summary['took_seconds']:.0f} s: {statuses}",
        f"answers from cached tokens: {'none' if share is None else f'{share:.0%}'}",
        f"refused as too many: {summary['refused_as_too_many']}; faults of the server: {summary['server_errors']}",
        *(f"FAILED {count} x {what}" for what, count in summary["failures"].items()),
        "passed" if summary["passed"] else "FAILED",
    ]
    return "\n".join(lines)


def _seconds(value: float | None) -> str:
    return f"{'-':>9}" if value is None else f"{value:>7.3f} s"
