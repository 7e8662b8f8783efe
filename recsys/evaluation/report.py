"""Everything that people read of an evaluation, written into one folder.

Stage: evaluate. In: the dict of `leaderboard`, and what the run knows about itself. Out: tables, PNG files,
`report.html`. Absent: what is in them (`tables`, `plots`, `report_html`), measuring.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from recsys.arrays import IntArray
from recsys.atomic_io import replacing_file
from recsys.evaluation.plots import cohorts_png, importance_png, leaderboard_png, retrieval_png
from recsys.evaluation.report_html import report_html
from recsys.evaluation.tables import (
    beyond_accuracy_markdown,
    cohorts_markdown,
    differences_table,
    markdown_table,
    text_table,
    with_facts,
)


def write_report(
    folder: Path,
    leaderboard: Mapping[str, Any],
    *,
    compared: Sequence[str] = (),
    retrieval_ranks: Mapping[str, IntArray] | None = None,
    importance: Mapping[str, float] | None = None,
    calibration: bytes | None = None,
    about: Mapping[str, Any] | None = None,
    stages: Mapping[str, float] | None = None,
) -> Path:
    """Write the tables, the pictures that were given data, and `report.html`, whose path is returned.

    compared         methods in the picture of cohorts      retrieval_ranks  ranks (E,) by retrieval method
    importance       gain by feature of the ranker          about            machine, versions, date, command, bundle
    stages           seconds by stage, in order             calibration      the picture of `calibration`
    """
    pictures = {"leaderboard": leaderboard_png(leaderboard)}
    if compared:
        pictures["cohorts"] = cohorts_png(leaderboard, compared)
    if retrieval_ranks:
        pictures["retrieval"] = retrieval_png(retrieval_ranks, leaderboard["data"])
    if importance:
        pictures["importance"] = importance_png(importance, leaderboard["data"])
    if calibration:
        pictures["calibration"] = calibration
    for name, png in pictures.items():
        with replacing_file(folder / f"{name}.png") as beside:
            beside.write_bytes(png)
    page = folder / "report.html"
    texts = {
        "leaderboard.txt": f"{text_table(leaderboard)}\n\n{differences_table(leaderboard)}\n",
        "leaderboard.md": with_facts(markdown_table(leaderboard), about or {}),
        "cohorts.md": with_facts(cohorts_markdown(leaderboard), about or {}),
        "beyond_accuracy.md": with_facts(beyond_accuracy_markdown(leaderboard), about or {}),
        page.name: report_html(leaderboard, pictures, about or {}, stages or {}),
    }
    for name, text in texts.items():
        with replacing_file(folder / name) as beside:
            beside.write_text(text, encoding="utf-8")
    return page
