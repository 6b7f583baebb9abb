"""What queries in docs/operations.md and on the dashboard count, asked of Prometheus' own evaluator."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import yaml

from scripts.check_dashboard import DASHBOARD, queries

ROOT = Path(__file__).parent.parent
OPERATIONS = (ROOT / "docs" / "operations.md").read_text()
REQUESTS = "ray_fastervlm_requests_total"
PER_MINUTE = {
    ("2xx", "ok"): 70,
    ("4xx", "overloaded"): 8,
    ("2xx", "client_left"): 7,
    ("5xx", "internal_error"): 5,
    ("5xx", "unavailable"): 4,
    ("2xx", "unavailable"): 3,  # streams that broke after they had begun
    ("2xx", "deadline_exceeded"): 3,
}


def documented() -> dict[str, str]:
    """Queries of the table in docs/operations.md by the question that they answer."""
    return dict(re.findall(r"^\| ([^|`]+\?) \| `([^`]+)`", OPERATIONS, re.MULTILINE))


def requests(status: str, code: str, values: str) -> dict[str, str]:
    """A series of requests; ``values`` in promtool's notation, a minute apart."""
    return {"series": f'{REQUESTS}{{status="{status}",code="{code}"}}', "values": values}


def evaluate(folder: Path, series: list[dict[str, str]], expected: dict[str, float | None]) -> None:
    """Fails unless each query has its number after ten minutes; None is no answer at all."""
    assert shutil.which("promtool"), "Debian: apt-get install prometheus"
    asked = [
        {
            "expr": expr,
            "eval_time": "10m",
            "exp_samples": [] if value is None else [{"labels": "{}", "value": value}],
        }
        for expr, value in expected.items()
    ]
    path = folder / "tests.yml"
    path.write_text(yaml.safe_dump({"tests": [{"interval": "1m", "input_series": series, "promql_expr_test": asked}]}))
    done = subprocess.run(["promtool", "test", "rules", path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_faults_are_counted_whether_the_answer_had_begun_or_not(tmp_path: Path) -> None:
    series = [requests(*tags, f"0+{amount}x10") for tags, amount in PER_MINUTE.items()]
    shares = [query.expr for query in queries(json.loads(DASHBOARD.read_text())) if query.panel == "Share of faults"]
    assert len(shares) == 2
    total = sum(PER_MINUTE.values())
    evaluate(
        tmp_path,
        series,
        {
            documented()["Do requests fail through our fault?"]: 15 / total,
            shares[0].replace("[1m]", "[2m]"): 9 / total,  # a sample a minute, and rates want two
            shares[1].replace("[1m]", "[2m]"): 6 / total,
        },
    )


def test_faults_that_a_rate_does_not_see(tmp_path: Path) -> None:
    """A series begins with its first count."""
    (since,) = re.findall(r"```promql\n(.+?)```", OPERATIONS, re.DOTALL)
    (seen_by_rates,) = re.findall(r"^sum\(rate\(.+?\)\)", documented()["Do requests fail through our fault?"])
    series = [requests("2xx", "ok", "0+70x10"), requests("5xx", "internal_error", "_x7 4 4 4 4")]
    evaluate(tmp_path, series, {seen_by_rates: 0.0, since: 4.0})
    series.append(requests("2xx", "unavailable", "3 3 3 3 3 3 3 5 5 5 5"))
    evaluate(tmp_path, series, {since: 6.0})


def test_all_of_them_can_be_read_and_name_metrics_that_there_are(tmp_path: Path) -> None:
    found = documented()
    assert len(found) >= 8
    evaluate(tmp_path, [requests("4xx", "overloaded", "0+1x10")], {f"({expr}) > Inf": None for expr in found.values()})
    ours = set(re.findall(r"``(fastervlm_[a-z_]+)``", (ROOT / "services" / "metrics.py").read_text()))
    named = {
        re.sub(r"_(bucket|sum|count)$", "", name) for expr in found.values() for name in re.findall(r"ray_(\w+)", expr)
    }
    assert {name for name in named if not name.startswith("fastervlm_cache_")} <= ours
