"""Dashboard and alerts ask for metrics that the service exposes; where `promtool` is there, it runs the alerts."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from pipelines.monitoring.monitor import Inputs, MonitorReport, Outputs, Thresholds
from pipelines.monitoring.monitor_report import gauges
from serving.observability import metrics as listed
from serving.observability.metrics import Metrics
from tests.stores.native import binary
from tests.test_containers import ROOT, compose

MONITORING = ROOT / "serving" / "monitoring"
DASHBOARD = MONITORING / "grafana" / "service.json"
ALERTS = MONITORING / "alerts.yml"
OF_TARGETS = {"job", "instance"}  # labels that Prometheus puts on everything it scrapes
METRIC = re.compile(r"\b(?:recsys|process)_\w+|\bup\b")
GROUPING = re.compile(r"\b(by|on|without|ignoring|group_left|group_right)\s*\(([^)]*)\)")
MATCHER = re.compile(r"(\w+)\s*(?:=~|!~|!=|=)\s*\"([^\"]*)\"")


def exposition() -> bytes:
    """Of a service that has answered once, with the gauges of a report."""
    metrics = Metrics()
    metrics.request("/v1/model", "GET", 200, 0.001)
    metrics.model(1, "one", "ml-100k", 1, 1.0, 1)
    report = MonitorReport("data", 0, 1, Thresholds(), Inputs(), Outputs(1, 1, 0, 0, 0, ()), (), (), ())
    return metrics.exposition()[0] + gauges(report).encode()


def exposed() -> dict[str, set[str]]:
    """The name of every series with its labels; several workers add `pid`."""
    found: dict[str, set[str]] = {"up": set(OF_TARGETS)}
    for family in text_string_to_metric_families(exposition().decode()):
        for sample in family.samples:
            more = {"pid"} if sample.name.startswith("process_") else set()
            found.setdefault(sample.name, set()).update(sample.labels, OF_TARGETS, more)
    return found


def panels() -> list[dict[str, Any]]:
    return [panel for panel in json.loads(DASHBOARD.read_text("utf-8"))["panels"] if panel["type"] != "row"]


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(ALERTS.read_text("utf-8"))["groups"] for rule in group["rules"]]


def expressions() -> list[str]:
    annotations = json.loads(DASHBOARD.read_text("utf-8"))["annotations"]["list"]
    of_panels = [target["expr"] for panel in panels() for target in panel["targets"]]
    return [*of_panels, *(each["expr"] for each in annotations), *(rule["expr"] for rule in rules())]


def names(expression: str) -> set[str]:
    """The metrics of an expression; what stands in braces or quotes is none."""
    return set(METRIC.findall(re.sub(r"\"[^\"]*\"|\{[^}]*\}", "", GROUPING.sub("", expression))))


@pytest.mark.parametrize("expression", expressions())
def test_an_expression_asks_for_what_is_exposed(expression: str) -> None:
    found = exposed()
    metrics = names(expression)
    assert metrics, "an expression without a metric"
    assert metrics <= set(found)
    for name, matchers in re.findall(r"(\w+)\{([^}]*)\}", expression):
        assert {label for label, _ in MATCHER.findall(matchers)} <= found[name]
    for _, group in GROUPING.findall(expression):
        assert {label.strip() for label in group.split(",") if label.strip()} <= set().union(
            *(found[n] for n in metrics)
        )


def test_label_values_in_expressions_exist() -> None:
    """A value that nothing ever has would make a panel or an alert silent for good."""
    allowed = {
        "operation": listed.COUNTS,
        "outcome": listed.EVENTS + listed.RELOADS,
        "stage": listed.STAGES,
        "reason": listed.SHED,
        "part": listed.PARTS,
        "moment": listed.MOMENTS,
        "status_class": ("2xx",),
        "le": tuple(str(bound) for bound in listed.REQUEST_BOUNDS),
        "job": ("recsys",),
    }
    for expression in expressions():
        for label, value in MATCHER.findall(expression):
            if label not in ("route", "status"):
                for each in value.split("|"):
                    assert any(re.fullmatch(each, v) for v in allowed[label]), f'{label}="{each}" in {expression}'


def test_dashboard_files_are_mounted_where_grafana_looks() -> None:
    grafana = compose()["services"]["grafana"]
    mounted = {mount.split(":")[0]: mount.split(":")[1] for mount in grafana["volumes"]}
    (provider,) = yaml.safe_load((MONITORING / "grafana" / "dashboards.yml").read_text("utf-8"))["providers"]
    place = mounted["./serving/monitoring/grafana/service.json"]
    assert str(Path(place).parent) == provider["options"]["path"]
    assert grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"] == place
    assert set(mounted) >= {f"./{path.relative_to(ROOT)}" for path in (MONITORING / "grafana").iterdir()}


def promtool(*arguments: str | Path, given: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
    program = binary("promtool", "prometheus")
    return subprocess.run([program, *map(str, arguments)], input=given, capture_output=True, check=False, timeout=60)


def test_promtool_accepts_the_configuration_and_the_exposition() -> None:
    done = promtool("check", "config", MONITORING / "prometheus.yml")
    assert done.returncode == 0, done.stdout + done.stderr
    done = promtool("check", "metrics", given=exposition())
    assert done.returncode == 0, done.stdout + done.stderr


def test_alerts_fire_where_they_should_and_nowhere_else(tmp_path: Path) -> None:
    done = promtool("test", "rules", MONITORING / "alerts_test.yml")
    assert done.returncode == 0, done.stdout + done.stderr
    text = (MONITORING / "alerts_test.yml").read_text("utf-8")
    assert set(re.findall(r'alertname="(\w+)"', text)) == {rule["alert"] for rule in rules()}
    shutil.copy(ALERTS, tmp_path)
    (tmp_path / "broken.yml").write_text(text.replace('values: "0+1x120"', 'values: "0x120"'), "utf-8")
    assert promtool("test", "rules", tmp_path / "broken.yml").returncode == 1, "the test can fail"


def test_promtool_parses_the_dashboard(tmp_path: Path) -> None:
    """As rules, since that is what it reads; Grafana's interval stands for some minutes."""
    made = [
        {"record": f"panel_{n}", "expr": expression.replace("$__rate_interval", "5m")}
        for n, expression in enumerate(expressions())
    ]
    (tmp_path / "panels.yml").write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": made}]}))
    done = promtool("check", "rules", tmp_path / "panels.yml")
    assert done.returncode == 0, done.stdout + done.stderr
