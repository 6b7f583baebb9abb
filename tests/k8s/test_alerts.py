"""The alerts: what they are made of exists, they fire when they should, and they are the same everywhere."""

import dataclasses
import inspect
import re
import shutil
import subprocess
from typing import Any

import pytest
import yaml
from ray.serve._private import deployment_state

from fastervlm_video.cache import CacheStats
from services import metrics
from services.app import APP_NAME
from tests.k8s.build import ROOT, Choice, Manifests, Object

OPS = ROOT.parent / "ops"
CONFIG = OPS / "prometheus.yml"
ALERTS, SERIES = OPS / "prometheus" / "alerts.yml", OPS / "prometheus" / "alerts_test.yml"
RAYS_PREFIX, HISTOGRAM = "ray_", "_bucket"
OF_THE_CACHE = {f"fastervlm_cache_{field.name}_total" for field in dataclasses.fields(CacheStats)}
SERVES_SOURCE = inspect.getsource(deployment_state)


def groups() -> Any:
    return yaml.safe_load(ALERTS.read_text())["groups"]


def rules() -> list[Object]:
    return [rule for group in groups() for rule in group["rules"]]


def promtool(*arguments: object) -> str:
    """What it prints, if it is content."""
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not installed (Debian: the package prometheus)")
    command = ["promtool", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_prometheus_takes_them() -> None:
    assert f"{len(rules())} rules found" in promtool("check", "rules", ALERTS)
    assert "1 rule files found" in promtool("check", "config", CONFIG)


def test_each_fires_when_it_should_and_not_otherwise() -> None:
    promtool("test", "rules", SERIES)
    tested = re.findall(r'alertname="(\w+)"', SERIES.read_text())
    assert sorted(tested) == sorted(rule["alert"] for rule in rules())


def test_on_kubernetes_they_are_the_same() -> None:
    assert Manifests.of(Choice("gpu")).one("PrometheusRule")["spec"]["groups"] == groups()


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: str(rule["alert"]))
def test_what_an_alert_looks_at_is_counted(rule: Object) -> None:
    assert metrics.__doc__ is not None
    names = set(re.findall(r"\b((?:ray_|up\b)\w*)", re.sub(r'"[^"]*"', "", rule["expr"])))
    assert names
    for name in names - {"up"}:
        bare = name.removeprefix(RAYS_PREFIX).removesuffix(HISTOGRAM)
        assert f"``{bare}``" in metrics.__doc__ or bare in OF_THE_CACHE or f'"{bare}"' in SERVES_SOURCE
    for application in re.findall(r'application="([^"]*)"', rule["expr"]):
        assert application == APP_NAME


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: str(rule["alert"]))
def test_an_alert_says_how_bad_it_is_and_what_to_do(rule: Object) -> None:
    assert rule["labels"]["severity"] in {"critical", "warning"}
    assert rule["annotations"].keys() == {"summary", "action"}
    assert int(rule["for"].removesuffix("m")) >= 5


def test_jobs_are_found_by_the_names_that_they_have() -> None:
    (scrape,) = yaml.safe_load(CONFIG.read_text())["scrape_configs"]
    monitor = Manifests.of(Choice("gpu")).one("PodMonitor")["metadata"]
    (pattern,) = (found for rule in rules() for found in re.findall(r'job=~"([^"]*)"', rule["expr"]))
    for job in (scrape["job_name"], f"{monitor['namespace']}/{monitor['name']}"):
        assert re.fullmatch(pattern, job)
    assert not re.fullmatch(pattern, "another")
