"""Everything that people read of an evaluation, written into one folder: tables, pictures, and a page."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from recsys.arrays import IntArray
from recsys.atomic_io import replacing_file
from recsys.evaluation.leaderboard import Leaderboard
from recsys.evaluation.plots import cohorts_png, importance_png, leaderboard_png, retrieval_png
from recsys.evaluation.report_html import report_html
from recsys.evaluation.tables import (
    beyond_accuracy_markdown,
    cohorts_markdown,
    leaderboard_markdown,
    leaderboard_text,
    with_facts,
)


def write_report(
    folder: Path,
    leaderboard: Leaderboard,
    *,
    compared: Sequence[str] = (),
    retrieval_ranks: Mapping[str, IntArray] | None = None,
    importance: Mapping[str, float] | None = None,
    calibration: bytes | None = None,
    about: Mapping[str, str] | None = None,
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
        pictures["retrieval"] = retrieval_png(retrieval_ranks, leaderboard.data)
    if importance:
        pictures["importance"] = importance_png(importance, leaderboard.data)
    if calibration:
        pictures["calibration"] = calibration
    texts = {
        "leaderboard.txt": leaderboard_text(leaderboard),
        "leaderboard.md": with_facts(leaderboard_markdown(leaderboard), about or {}),
        "cohorts.md": with_facts(cohorts_markdown(leaderboard), about or {}),
        "beyond_accuracy.md": with_facts(beyond_accuracy_markdown(leaderboard), about or {}),
        "report.html": report_html(leaderboard, pictures, about or {}, stages or {}),
    }
    files = {f"{name}.png": png for name, png in pictures.items()} | {n: t.encode() for n, t in texts.items()}
    for name, content in files.items():
        with replacing_file(folder / name) as beside:
            beside.write_bytes(content)
    return folder / "report.html"
