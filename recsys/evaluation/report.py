"""Everything that people read of an evaluation, written into one folder.

Stage: evaluate. In: the dict of `ladder`, and what the run knows about itself. Out: tables, PNG files, `report.html`.
Absent: what is in them (`tables`, `plots`, `report_html`), measuring.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from recsys.artefacts import replacing_file
from recsys.evaluation.metrics import Ints
from recsys.evaluation.plots import cohorts_png, importance_png, ladder_png, retrieval_png
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
    ladder: Mapping[str, Any],
    *,
    compared: Sequence[str] = (),
    retrieval_ranks: Mapping[str, Ints] | None = None,
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
    pictures = {"ladder": ladder_png(ladder)}
    if compared:
        pictures["cohorts"] = cohorts_png(ladder, compared)
    if retrieval_ranks:
        pictures["retrieval"] = retrieval_png(retrieval_ranks, ladder["data"])
    if importance:
        pictures["importance"] = importance_png(importance, ladder["data"])
    if calibration:
        pictures["calibration"] = calibration
    for name, png in pictures.items():
        with replacing_file(folder / f"{name}.png") as beside:
            beside.write_bytes(png)
    page = folder / "report.html"
    texts = {
        "ladder.txt": f"{text_table(ladder)}\n\n{differences_table(ladder)}\n",
        "ladder.md": with_facts(markdown_table(ladder), about or {}),
        "cohorts.md": with_facts(cohorts_markdown(ladder), about or {}),
        "beyond_accuracy.md": with_facts(beyond_accuracy_markdown(ladder), about or {}),
        page.name: report_html(ladder, pictures, about or {}, stages or {}),
    }
    for name, text in texts.items():
        with replacing_file(folder / name) as beside:
            beside.write_text(text, encoding="utf-8")
    return page
