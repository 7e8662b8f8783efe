"""What watches the service watches things that exist: dashboard and alerts against the metrics that are exposed.

Stage: tests of serving. In: `serving/monitoring`, docker-compose.yml. Out: pass or fail. Absent: Prometheus and Grafana
themselves. Where `promtool` is installed, it checks the configuration and runs the alerts on made-up series.
"""

import ast
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from serving import metrics as listed
from serving.metrics import Metrics
from tests.stores.native import binary
from tests.test_containers import MONITORING, ROOT, compose

DASHBOARD = MONITORING / "grafana" / "service.json"
ALERTS = MONITORING / "alerts.yml"
OF_PROMETHEUS = {"up": {"job", "instance"}}
OF_TARGETS = {"job", "instance"}  # labels that Prometheus puts on everything it scrapes
METRIC = re.compile(r"\b(?:recsys|process)_\w+|\bup\b")
GROUPING = re.compile(r"\b(by|on|without|ignoring|group_left|group_right)\s*\(([^)]*)\)")
MATCHER = re.compile(r"(\w+)\s*(?:=~|!~|!=|=)\s*\"")


def exposed() -> dict[str, set[str]]:
    """Every series' name with its labels, as a service exposes it that has answered once; `pid` comes with several
    workers. No cache is counted so far: when one is, it is exposed, and wants a panel."""
    metrics = Metrics()
    metrics.request("/v1/model", "GET", 200, 0.001)
    metrics.model(1, "one", "ml-100k", 1, 1.0, 1)
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(metrics.exposition()[0].decode()):
        for sample in family.samples:
            more = {"pid"} if sample.name.startswith("process_") else set()
            found.setdefault(sample.name, set()).update(sample.labels, OF_TARGETS, more)
    return found | OF_PROMETHEUS


def dashboard() -> dict[str, Any]:
    return dict(json.loads(DASHBOARD.read_text(encoding="utf-8")))


def panels() -> list[dict[str, Any]]:
    return [panel for panel in dashboard()["panels"] if panel["type"] != "row"]


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(ALERTS.read_text(encoding="utf-8"))["groups"] for rule in group["rules"]]


def expressions() -> list[str]:
    of_panels = [target["expr"] for panel in panels() for target in panel["targets"]]
    of_annotations = [each["expr"] for each in dashboard()["annotations"]["list"]]
    return [*of_panels, *of_annotations, *(rule["expr"] for rule in rules())]


def names(expression: str) -> set[str]:
    """The metrics of an expression; what stands in braces or quotes is none."""
    return set(METRIC.findall(re.sub(r"\"[^\"]*\"|\{[^}]*\}", "", GROUPING.sub("", expression))))


@pytest.mark.parametrize("expression", expressions())
def test_an_expression_asks_for_what_is_exposed(expression: str) -> None:
    found = exposed()
    asked = names(expression)
    assert asked, "an expression without a metric"
    assert asked <= set(found), f"not exposed: {asked - set(found)}"
    labels: set[str] = set().union(*(found[name] for name in asked))
    for name, matchers in re.findall(r"(\w+)\{([^}]*)\}", expression):
        strange = set(MATCHER.findall(matchers)) - found[name]
        assert not strange, f"{name} has no label {strange}"
    for _, group in GROUPING.findall(expression):
        strange = {label.strip() for label in group.split(",") if label.strip()} - labels
        assert not strange, f"grouped by {strange}, which nothing in it has"


def test_everything_that_is_exposed_is_shown() -> None:
    """Of the service's own metrics, the same set on both sides; a histogram counts as one."""
    shown = {re.sub(r"_(bucket|sum|count)$", "", name) for each in expressions() for name in names(each)}
    own = {re.sub(r"_(bucket|sum|count)$", "", name) for name in exposed() if name.startswith("recsys_")}
    assert {name for name in shown if name.startswith("recsys_")} == own


def test_label_values_in_expressions_exist() -> None:
    """A value that nothing ever has would make a panel or an alert no_score for good."""
    allowed = {
        "operation": listed.COUNTS,
        "outcome": listed.EVENTS + listed.RELOADS,
        "stage": listed.STAGES,
        "reason": listed.SHED,
        "part": listed.PARTS,
        "status_class": ("2xx",),
    }
    for expression in expressions():
        for label, value in re.findall(r"(\w+)\s*(?:=~|!~|!=|=)\s*\"([^\"]*)\"", expression):
            if label in allowed:
                for each in value.split("|"):
                    assert any(re.fullmatch(each, v) for v in allowed[label]), f'{label}="{each}" in {expression}'
            elif label == "le":
                bounds = {str(b) for b in listed.REQUEST_BOUNDS}
                assert value in bounds
            else:
                assert label in {"route", "status", "job"}, expression
                assert label != "job" or value == "recsys"


COUNTING = {
    "stage": listed.STAGES,
    "degraded": listed.PARTS,
    "shed": listed.SHED,
    "event": listed.EVENTS,
    "reload": listed.RELOADS,
    "count": listed.COUNTS,
}


def counted() -> list[tuple[str, str, str]]:
    """File, method and name of each call such as `metrics.count("similar")` in the service's code."""
    found = []
    for path in sorted((ROOT / "serving").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute) or not node.args:
                continue
            name = node.args[0]
            if "metrics" in ast.unparse(node.func.value) and isinstance(name, ast.Constant):
                found.append((path.name, node.func.attr, str(name.value)))
            if node.func.attr == "_count" and isinstance(name, ast.Constant):
                found.append((path.name, "count", str(name.value)))
    return found


def test_names_that_are_counted_are_listed() -> None:
    """So that they are exposed at zero before they happen, and a typing error is no new series."""
    calls = [(file, method, name) for file, method, name in counted() if method in COUNTING]
    assert len(calls) >= 5
    for file, method, name in calls:
        assert name in COUNTING[method], f"{file}: serving.metrics does not list {name!r} for {method}()"


def test_the_dashboard_is_what_grafana_loads() -> None:
    document = dashboard()
    assert document["id"] is None
    assert document["uid"] == "recsys-service"
    assert document["schemaVersion"] >= 39
    (retriever,) = yaml.safe_load((MONITORING / "grafana" / "datasources.yml").read_text(encoding="utf-8"))[
        "datasources"
    ]
    assert retriever["type"] == "prometheus"
    assert retriever["url"] == "http://prometheus:9090"
    ids = [panel["id"] for panel in document["panels"]]
    assert len(set(ids)) == len(ids)
    titles = [panel["title"] for panel in document["panels"]]
    assert len(set(titles)) == len(titles)
    for panel in panels():
        assert panel["type"] in ("timeseries", "stat")
        assert panel["description"]
        assert panel["fieldConfig"]["defaults"]["unit"]
        for asked in (panel, *panel["targets"]):
            assert asked["datasource"] == {"type": "prometheus", "uid": retriever["uid"]}
        letters = [target["refId"] for target in panel["targets"]]
        assert letters == [chr(ord("A") + place) for place in range(len(letters))]


def test_panels_fill_the_width_and_do_not_overlap() -> None:
    taken: dict[tuple[int, int], str] = {}
    for panel in dashboard()["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert (x, y) not in taken, f"{panel['title']} lies over {taken[x, y]}"
                taken[x, y] = panel["title"]
    height = max(y for _, y in taken) + 1
    assert len(taken) == 24 * height, "a hole"


def test_dashboard_files_are_mounted_where_grafana_looks() -> None:
    grafana = compose()["services"]["grafana"]
    mounted = {mount.split(":")[0]: mount.split(":")[1] for mount in grafana["volumes"]}
    (provider,) = yaml.safe_load((MONITORING / "grafana" / "dashboards.yml").read_text(encoding="utf-8"))["providers"]
    place = mounted["./serving/monitoring/grafana/service.json"]
    assert str(Path(place).parent) == provider["options"]["path"]
    assert grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"] == place
    assert set(mounted) >= {f"./{path.relative_to(ROOT)}" for path in (MONITORING / "grafana").iterdir()}


def test_every_alert_says_what_to_do() -> None:
    assert len({rule["alert"] for rule in rules()}) == len(rules())
    for rule in rules():
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert set(rule["annotations"]) == {"summary", "action"}
        for label in re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"]):
            assert label in exposed_by(rule["expr"]), f"{rule['alert']} shows {label}, which its result does not have"


def exposed_by(expression: str) -> set[str]:
    """Labels that the result of an expression may have: those grouped by, or all where nothing is summed."""
    grouped = {
        label.strip() for kind, group in GROUPING.findall(expression) if kind == "by" for label in group.split(",")
    }
    return grouped or set().union(*(exposed()[name] for name in names(expression)))


# -- by Prometheus itself ---------------------------------------------------------------------------------------------


def promtool(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    program = binary("promtool", "prometheus")
    return subprocess.run([program, *map(str, arguments)], capture_output=True, text=True, check=False, timeout=60)


def test_promtool_accepts_the_configuration() -> None:
    done = promtool("check", "config", MONITORING / "prometheus.yml")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(rules())} rules found" in done.stdout + done.stderr


def test_alerts_fire_where_they_should_and_nowhere_else() -> None:
    done = promtool("test", "rules", MONITORING / "alerts_test.yml")
    assert done.returncode == 0, done.stdout + done.stderr
    text = (MONITORING / "alerts_test.yml").read_text(encoding="utf-8")
    assert set(re.findall(r'alertname="(\w+)"', text)) == {rule["alert"] for rule in rules()}


def test_promtool_can_fail(tmp_path: Path) -> None:
    shutil.copy(ALERTS, tmp_path)
    text = (MONITORING / "alerts_test.yml").read_text(encoding="utf-8")
    (tmp_path / "broken.yml").write_text(text.replace('values: "0+1x120"', 'values: "0x120"'), encoding="utf-8")
    assert promtool("test", "rules", tmp_path / "broken.yml").returncode == 1


def test_promtool_parses_the_dashboard(tmp_path: Path) -> None:
    """As rules, since that is what it reads; Grafana's interval stands for some minutes."""
    made = [
        {"record": f"panel_{n}", "expr": expression.replace("$__rate_interval", "5m")}
        for n, expression in enumerate(expressions())
    ]
    (tmp_path / "panels.yml").write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": made}]}))
    done = promtool("check", "rules", tmp_path / "panels.yml")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(made)} rules found" in done.stdout + done.stderr


def test_promtool_accepts_the_exposition() -> None:
    program = binary("promtool", "prometheus")
    metrics = Metrics()
    metrics.request("/v1/model", "GET", 200, 0.001)
    metrics.model(1, "one", "ml-100k", 1, 1.0, 1)
    body, _ = metrics.exposition()
    done = subprocess.run([program, "check", "metrics"], input=body, capture_output=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
