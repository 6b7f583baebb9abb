"""The Grafana dashboard, asked of a real Prometheus that reads a real service."""

import json
import re
from pathlib import Path

import yaml

from scripts.check_dashboard import DASHBOARD, make_traffic, queries, running_prometheus, wait_for_data
from tests.integration.conftest import Service

OPS = DASHBOARD.parent.parent.parent


def test_every_panel_has_data(service: Service, tmp_path: Path) -> None:
    asked = queries(json.loads(DASHBOARD.read_text()))
    assert len(asked) > 20
    port = service.settings.metrics_port
    assert port is not None
    with running_prometheus(port, tmp_path) as prometheus:
        found = wait_for_data(prometheus, asked, lambda: make_traffic(service.client))
    assert [query for query, numbers in found.items() if not numbers] == []
    for query, numbers in found.items():
        if "Share" in query.panel:
            assert all(0 <= number <= 1 for number in numbers), query


def test_what_grafana_is_given() -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    source = yaml.safe_load((OPS / "grafana/provisioning/datasources/prometheus.yml").read_text())["datasources"][0]
    panels = [panel for panel in dashboard["panels"] if panel["type"] != "row"]
    assert {panel["datasource"]["uid"] for panel in panels} == {source["uid"]}
    ids, titles = [panel["id"] for panel in dashboard["panels"]], [panel["title"] for panel in panels]
    assert len(set(ids)) == len(ids)
    assert len(set(titles)) == len(titles)
    assert all(panel["description"].endswith(".") for panel in panels)
    taken = [(p["gridPos"]["x"], p["gridPos"]["y"]) for p in dashboard["panels"]]
    assert len(set(taken)) == len(taken)


def test_every_metric_of_ours_is_on_the_dashboard_or_is_a_detail() -> None:
    shown = set(re.findall(r"ray_(fastervlm_\w+)", DASHBOARD.read_text()))
    documented = set(re.findall(r"``(fastervlm_[a-z_]+)``", (OPS.parent / "services/metrics.py").read_text()))
    base = {re.sub(r"_(bucket|sum|count)$", "", name) for name in shown}
    assert {name for name in base if not name.startswith("fastervlm_cache_")} <= documented
    assert documented - base <= {"fastervlm_decoded_videos_total", "fastervlm_encoded_videos_total"}
