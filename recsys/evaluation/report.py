"""The report of an evaluation as files: tables and pictures of a leaderboard, and one page that holds them all."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from recsys.arrays import IntArray
from recsys.atomic_io import replacing_file, write_json
from recsys.evaluation.leaderboard import Leaderboard
from recsys.evaluation.plots import cohorts_png, importance_png, leaderboard_png, retrieval_png
from recsys.evaluation.report_html import report_html
from recsys.evaluation.tables import beyond_accuracy_markdown, cohorts_markdown, leaderboard_markdown, with_facts


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
        "leaderboard": leaderboard_png(leaderboard),
        "cohorts": cohorts_png(leaderboard, compared),
        "retrieval": retrieval_png(retrieval_ranks, leaderboard.data),
        "importance": importance_png(importance, leaderboard.data),
        "calibration": calibration,
    }
    texts = {
        "leaderboard.md": with_facts(leaderboard_markdown(leaderboard), about),
        "cohorts.md": with_facts(cohorts_markdown(leaderboard), about),
        "beyond_accuracy.md": with_facts(beyond_accuracy_markdown(leaderboard), about),
        "report.html": report_html(leaderboard, pictures, about, stages),
    }
    write_json(folder / "leaderboard.json", leaderboard.to_json())
    files = {f"{name}.png": png for name, png in pictures.items()} | {n: t.encode() for n, t in texts.items()}
    for name, content in files.items():
        with replacing_file(folder / name) as beside:
            beside.write_bytes(content)
    return folder / "report.html"
