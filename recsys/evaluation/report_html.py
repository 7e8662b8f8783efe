"""The report as one HTML page from `templates/`: pictures embedded, nothing loaded or run, every value escaped."""

from base64 import b64encode
from collections.abc import Mapping
from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined

from recsys.evaluation.cohorts import SEGMENTS
from recsys.evaluation.leaderboard import ALL, Leaderboard
from recsys.evaluation.tables import (
    BEYOND_NOTE,
    Table,
    beyond_accuracy_table,
    cohort_table,
    difference_table,
    finding,
    segment_table,
)


def report_html(
    board: Leaderboard, pictures: Mapping[str, bytes], about: Mapping[str, str], stages: Mapping[str, float]
) -> str:
    seconds = {**stages, "total": sum(stages.values())}
    return (
        _environment()
        .get_template("report.html.j2")
        .render(
            board=board,
            finding=finding(board),
            overall=segment_table(board),
            differences=difference_table(board),
            cohorts=cohort_table(board),
            segments={name: segment_table(board, name) for name in SEGMENTS if name != ALL},
            meanings=SEGMENTS,
            beyond=beyond_accuracy_table(board),
            beyond_note=BEYOND_NOTE,
            pictures=pictures,
            about=about,
            stages=Table(["Stage", "Seconds"], [[name, f"{s:,.1f}"] for name, s in seconds.items()], "total"),
        )
    )


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("recsys.evaluation"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["base64"] = lambda data: b64encode(data).decode("ascii")
    environment.filters["thousands"] = "{:,}".format
    return environment
