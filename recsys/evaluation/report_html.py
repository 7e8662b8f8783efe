"""Reports as one HTML page from `templates/`: pictures embedded, nothing loaded, nothing run, every value escaped."""

from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

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
    return _render(
        "report.html.j2",
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


@dataclass(frozen=True)
class Section:
    """A heading with what is below it. One without note, picture, pairs and rows is left out."""

    title: str
    note: str = ""
    picture: bytes | None = None
    table: Table | None = None
    pairs: Mapping[str, str] | None = None


def sections_html(title: str, label: str, finding: str, sections: Sequence[Section]) -> str:
    """A page of sections; `label` names the data."""
    shown = [s for s in sections if s.note or s.picture or s.pairs or (s.table and s.table.rows)]
    return _render("sections.html.j2", title=title, label=label, finding=finding, sections=shown)


def _render(template: str, **values: Any) -> str:
    return _environment().get_template(template).render(**values)


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
