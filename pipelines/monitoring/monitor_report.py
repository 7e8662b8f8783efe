"""The report of `recsys monitor` as tables, a page, JSON and Prometheus gauges, and the command that makes it."""

import math
import sys
import time
from contextlib import suppress
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import Final

import pandas as pd

from pipelines.monitoring.monitor import DAY_S, MonitorReport, Thresholds, measure
from pipelines.monitoring.reference import REFERENCE_FILE
from pipelines.pipeline import Pipeline
from recsys.atomic_io import replacing_file, write_json
from recsys.errors import RegistryError
from recsys.evaluation.about import about, command_line
from recsys.evaluation.bootstrap import Estimate
from recsys.evaluation.report import page_environment
from recsys.evaluation.tables import Table, number
from recsys.monitoring.outcomes import HORIZON_S
from recsys.monitoring.prediction_log import predictions_folder, read_answers

GAUGES_FILE: Final = "monitor.prom"  # GET /metrics of the service ends with it
LISTED: Final = 15  # inputs in the terminal
GAUGES: Final = {
    "timestamp_seconds": "End of the window of the last report.",
    "alarms": "Alarms of the last report.",
    "input_psi": "How far an input lies from its reference.",
    "input_alarm": "1 where an input alarms.",
    "events_per_day": "Events received a day.",
    "degraded_share": "Share of the answers that left out a part.",
    "coverage_share": "Share of the catalogue that was shown.",
    "popularity_share": "Share of what was shown that is among the most popular items.",
    "ctr": "Share of the shown items that were watched or rated within a day.",
    "liked_rate": "Share of the shown items that were rated well within a day.",
    "ndcg": "Mean NDCG of the answers by what was watched or rated.",
    "ece": "Expected calibration error of a probability.",
}


def monitor(pipeline: Pipeline, until: datetime | None, days: int, thresholds: Thresholds) -> MonitorReport:
    """Measure, and write monitor.html, .json and .prom to the data set's reports."""
    home = pipeline.home
    until_s = int(time.time() if until is None else until.replace(tzinfo=until.tzinfo or UTC).timestamp())

    def reference_of(bundle_id: str) -> pd.DataFrame | None:
        path = home.bundles / bundle_id / REFERENCE_FILE
        return pd.read_parquet(path) if path.exists() else None

    promised = dict[int, Estimate]()
    with suppress(RegistryError):  # what came of the answers is known without what was promised
        promised = {info.version: ndcg for info in pipeline.registry.versions() if (ndcg := info.ndcg) is not None}
    answers = read_answers(predictions_folder(home), since=until_s - days * DAY_S - HORIZON_S)
    report = measure(
        answers,
        pipeline.event_table,
        pipeline.data.tables,
        reference_of,
        promised,
        until_s=until_s,
        days=days,
        thresholds=thresholds,
    )
    report = replace(report, about=about(command_line(sys.argv[1:])))
    write_json(home.reports / "monitor.json", _without_nan(asdict(report)))
    texts = {"monitor.html": page(report), GAUGES_FILE: gauges(report)}
    for name, text in texts.items():
        with replacing_file(home.reports / name) as beside:
            beside.write_text(text, encoding="utf-8")
    return report


def page(report: MonitorReport) -> str:
    template = page_environment().get_template("monitor.html.j2")
    return template.render(report=report, window=_window(report), tables=_tables(report))


def text(report: MonitorReport) -> str:
    """For a terminal."""
    lines = [f"Data: {report.data}; {_window(report)}", *(f"ALARM  {alarm}" for alarm in report.alarms)]
    for name, (how, table) in _tables(report).items():
        shown = replace(table, rows=table.rows[:LISTED])
        lines += ["", f"## {name}", how, *([shown.markdown()] if table.rows else [])]
    return "\n".join(lines) + "\n"


def gauges(report: MonitorReport) -> str:
    """In Prometheus' text format. Names come from this code and from features, so that nothing needs escaping."""
    inputs, outputs = report.inputs, report.outputs
    families: dict[str, dict[str, float | None]] = {name: {} for name in GAUGES} | {
        "timestamp_seconds": {"": report.until_s},
        "alarms": {"": len(report.alarms)},
        "input_psi": {f'input="{row.name}"': row.drift.psi for row in inputs.compared},
        "input_alarm": {f'input="{row.name}"': row.alarm for row in inputs.compared},
        "events_per_day": {"": inputs.event_rate.per_day} if inputs.event_rate else {},
        "degraded_share": {"": outputs.degraded},
        "coverage_share": {"": outputs.coverage},
        "popularity_share": {"": outputs.popularity},
    }
    for outcome in report.outcomes:
        labels = f'version="{outcome.version}",cohort="{outcome.cohort}"'
        for name, rate in (("ctr", outcome.ctr), ("liked_rate", outcome.liked), ("ndcg", outcome.ndcg)):
            families[name][labels] = rate.mean if rate else None
        for name, ece in (("watch", outcome.watch_ece), ("like", outcome.like_ece)):
            families["ece"][f'{labels},probability="{name}"'] = ece
    lines = []
    for name, samples in families.items():
        known = {labels: value for labels, value in samples.items() if value is not None}
        if known:
            lines += [f"# HELP recsys_monitor_{name} {GAUGES[name]}", f"# TYPE recsys_monitor_{name} gauge"]
        for labels, value in known.items():
            lines.append(f"recsys_monitor_{name}{f'{{{labels}}}' if labels else ''} {float(value)}")
    return "\n".join(lines) + "\n"


def _tables(report: MonitorReport) -> dict[str, tuple[str, Table]]:
    """By heading: a sentence, and a table that may have no rows."""
    inputs, outputs, limits = report.inputs, report.outputs, report.thresholds
    how = inputs.not_compared or (
        f"{inputs.visits:,} starts of visits by {inputs.users:,} users, answered by {inputs.bundle_id}, against those "
        f"of {inputs.reference_users:,} users at its training. Alarm: PSI of {limits.smallest_psi:g} or more, which "
        f"chance explains in {limits.false_alarms:.0%} of the reports at most (Holm over all inputs)."
    )
    if events := inputs.event_rate:
        how += f" Events a day: {events.per_day:,.1f}, before {events.before:,.1f} (p {events.p_value:.2g})."
    input_rows = [
        [
            row.name,
            f"{row.drift.psi:.3f}",
            number(row.drift.ks, ".3f"),
            f"{row.drift.p_value:.2g}",
            f"{row.drift.missing_before:.1%}",
            f"{row.drift.missing:.1%}",
            "ALARM" if row.alarm else "",
        ]
        for row in inputs.compared
    ]
    shown = (
        f"{outputs.answers:,} answers to {outputs.users:,} users; degraded {outputs.degraded:.2%}; "
        f"{outputs.coverage:.1%} of the catalogue was shown; {outputs.popularity:.1%} of what was shown is among the "
        "tenth of the items with most ratings."
    )
    output_rows = [[d.name, *(f"{v:.4g}" for v in (d.mean, d.p05, d.p50, d.p95))] for d in outputs.distributions]
    outcome_rows = [
        [
            f"{row.version}, {row.cohort}",
            f"{row.shown:,}",
            f"{row.users:,}",
            *(_with_interval(value) for value in (row.ctr, row.liked, row.ndcg)),
            number(row.watch_ece),
            number(row.like_ece),
            _with_interval(row.promised_ndcg),
        ]
        for row in report.outcomes
    ]
    position_rows = [
        [f"{row.version}, {row.position}", f"{row.shown:,}", f"{row.ctr:.2%}", f"{row.liked:.2%}"]
        for row in report.positions
    ]
    outcome_header = (
        "Version, cohort",
        "Shown",
        "Users",
        "CTR",
        "Liked",
        "NDCG",
        "ECE watch",
        "ECE like",
        "Offline NDCG",
    )
    promise = (
        "Shares of what was shown that was watched or rated, and liked, within a day; in brackets 95 % by users. "
        "Offline NDCG is that of the version's evaluation, which knows one event an answer: another quantity."
    )
    input_header = ("Input", "PSI", "KS", "p", "Missing before", "Missing", "")
    return {
        "Inputs": (how, Table(input_header, input_rows)),
        "Outputs": (shown, Table(("Output", "Mean", "5 %", "Median", "95 %"), output_rows)),
        "Outcomes": (promise, Table(outcome_header, outcome_rows)),
        "By position": ("Of all cohorts.", Table(("Version, position", "Shown", "CTR", "Liked"), position_rows)),
    }


def _window(report: MonitorReport) -> str:
    ends = (datetime.fromtimestamp(s, UTC).strftime("%Y-%m-%d %H:%M") for s in (report.since_s, report.until_s))
    return f"answers from {' to '.join(ends)} UTC"


def _with_interval(value: Estimate | None) -> str:
    if value is None or value.low is None or value.high is None:
        return number(value.mean if value else None)
    return f"{value.mean:.4f} [{value.low:.4f}, {value.high:.4f}]"


def _without_nan(value: object) -> object:
    """JSON has no NaN, which stands for what is not known."""
    if isinstance(value, dict):
        return {name: _without_nan(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(each) for each in value]
    return None if isinstance(value, float) and math.isnan(value) else value
