"""The service as Prometheus sees it: what Ray's metrics address shows."""

import time
from collections.abc import Mapping
from dataclasses import dataclass

import httpx
import ray
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

PREFIX = "fastervlm_"
PATIENCE_SECONDS = 90.0
POLL_SECONDS = 0.3
UNDER_WAY_SECONDS = 4.0
"""A cache is looked after every two seconds, and what a replica has counted is sent every second."""


@dataclass(frozen=True)
class Scrape:
    """All samples of this project at one moment, and the kind of each metric by its name."""

    samples: tuple[Sample, ...]
    kinds: Mapping[str, str]

    def select(self, name: str, **labels: str) -> list[Sample]:
        """Samples with this name and at least these labels."""
        return [s for s in self.samples if s.name == f"ray_{name}" and labels.items() <= s.labels.items()]

    def values(self) -> list[tuple[str, float]]:
        """Every series with its value, for comparison."""
        return sorted((f"{s.name}{sorted(s.labels.items())}", s.value) for s in self.samples)

    def total(self, name: str, **labels: str) -> float:
        """Sum over them; 0 if there are none."""
        return sum(sample.value for sample in self.select(name, **labels))


def page() -> str:
    """All of it, as it is sent."""
    (node,) = ray.nodes()  # type: ignore[no-untyped-call]
    answer = httpx.get(f"http://127.0.0.1:{node['MetricsExportPort']}/metrics", timeout=PATIENCE_SECONDS)
    assert answer.status_code == 200
    return answer.text


def scrape() -> Scrape:
    ours = "".join(line for line in page().splitlines(keepends=True) if f"ray_{PREFIX}" in line)
    families = list(text_string_to_metric_families(ours))
    samples = tuple(sample for family in families for sample in family.samples)
    return Scrape(samples, {family.name: family.type for family in families})


def settled() -> Scrape:
    """A scrape with all in it that was done before: nothing has changed for longer than numbers are under way."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    last, since = scrape(), time.monotonic()
    while time.monotonic() < since + UNDER_WAY_SECONDS:
        assert time.monotonic() < deadline, "the numbers go on changing"
        time.sleep(POLL_SECONDS)
        if (now := scrape()).values() != last.values():
            last, since = now, time.monotonic()
    return last


def wait_for_growth(since: Scrape, name: str, amount: float = 1, **labels: str) -> Scrape:
    """The first scrape in which a total has grown by ``amount``."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while (now := scrape()).total(name, **labels) < since.total(name, **labels) + amount:
        assert time.monotonic() < deadline, f"{name}{labels} did not grow from {since.total(name, **labels)}"
        time.sleep(POLL_SECONDS)
    return now
