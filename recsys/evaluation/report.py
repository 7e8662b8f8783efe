"""The report of an evaluation: tables and pictures of a leaderboard, and one HTML page that holds them all.

The page comes from `templates/`: pictures are embedded, nothing is loaded or run, every value is escaped.
"""

from base64 import b64encode
from collections.abc import Mapping, Sequence
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from recsys.arrays import IntArray
from recsys.atomic_io import replacing_file, write_json
from recsys.evaluation import plots, tables
from recsys.evaluation.cohorts import SEGMENTS
from recsys.evaluation.leaderboard import ALL, Leaderboard


def write_report(
    folder: Path,
    leaderboard: Leaderboard,
    *,
    compared: Sequence[str],
    retrieval_ranks: Mapping[str, IntArray],
    importance: Mapping[str, float],
    calibration: bytes,
    about: Mapping[str, str],
    stages: Mapping[str, float],
) -> Path:
    """Write `leaderboard.json`, tables, pictures and `report.html`, whose path is returned.

    compared         methods in the picture of cohorts      retrieval_ranks  ranks (E,) by retrieval method
    importance       gain by feature of the ranker          about            machine, versions, date, command, bundle
    stages           seconds by stage, in order             calibration      the picture of `calibration`
    """
    pictures = {
        "leaderboard": plots.leaderboard_png(leaderboard),
        "cohorts": plots.cohorts_png(leaderboard, compared),
        "retrieval": plots.retrieval_png(retrieval_ranks, leaderboard.data),
        "importance": plots.importance_png(importance, leaderboard.data),
        "calibration": calibration,
    }
    texts = {
        "leaderboard.md": tables.with_facts(tables.leaderboard_markdown(leaderboard), about),
        "cohorts.md": tables.with_facts(tables.cohorts_markdown(leaderboard), about),
        "beyond_accuracy.md": tables.with_facts(tables.beyond_accuracy_markdown(leaderboard), about),
        "report.html": report_html(leaderboard, pictures, about, stages),
    }
    write_json(folder / "leaderboard.json", leaderboard.to_json())
    files = {f"{name}.png": png for name, png in pictures.items()} | {n: t.encode() for n, t in texts.items()}
    for name, content in files.items():
        with replacing_file(folder / name) as beside:
            beside.write_bytes(content)
    return folder / "report.html"


def page_environment() -> Environment:
    """The templates of pages: `table`, `pairs` and `picture` are in parts.html.j2."""
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


def report_html(
    board: Leaderboard, pictures: Mapping[str, bytes], about: Mapping[str, str], stages: Mapping[str, float]
) -> str:
    seconds = {**stages, "total": sum(stages.values())}
    return (
        page_environment()
        .get_template("report.html.j2")
        .render(
            board=board,
            finding=tables.finding(board),
            overall=tables.segment_table(board),
            differences=tables.difference_table(board),
            cohorts=tables.cohort_table(board),
            segments={name: tables.segment_table(board, name) for name in SEGMENTS if name != ALL},
            meanings=SEGMENTS,
            beyond=tables.beyond_accuracy_table(board),
            beyond_note=tables.BEYOND_NOTE,
            pictures=pictures,
            about=about,
            stages=tables.Table(["Stage", "Seconds"], [[name, f"{s:,.1f}"] for name, s in seconds.items()], "total"),
        )
    )
