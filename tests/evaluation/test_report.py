"""What lies in the folder of a report."""

import base64
import subprocess
import sys
from pathlib import Path

import numpy as np

from recsys.evaluation.report import write_report
from recsys.evaluation.tables import (
    beyond_accuracy_markdown,
    cohorts_markdown,
    differences_table,
    markdown_table,
    text_table,
)
from tests.evaluation.leaderboards import PNG, TWO, make

TABLES = ["leaderboard.txt", "leaderboard.md", "cohorts.md", "beyond_accuracy.md"]


def test_every_table_and_picture_is_written(tmp_path: Path) -> None:
    leaderboard = make(TWO)
    page = write_report(
        tmp_path / "out",
        leaderboard,
        compared=["full", "popular"],
        retrieval_ranks={"popular": np.arange(1, 9)},
        importance={"retriever_score": 3.0, "age_days": 1.0},
        about={"machine": "2 cores", "command": "recsys evaluate", "bundle": "b1", "p50 ms": 3},
        stages={"data": 1.25, "train": 1000.0},
    )
    assert page == tmp_path / "out" / "report.html"
    pictures = ["cohorts.png", "importance.png", "leaderboard.png", "retrieval.png"]
    assert sorted(p.name for p in page.parent.iterdir()) == sorted([*pictures, *TABLES, "report.html"])
    text = page.read_text(encoding="utf-8")
    assert "recsys evaluate" in text
    for name in pictures:
        png = (page.parent / name).read_bytes()
        assert png.startswith(PNG)
        width, height = np.frombuffer(png[16:24], dtype=">u4")
        assert (width, height) > (1000, 300)
        assert base64.b64encode(png).decode("ascii") in text, name
    said = {name: (page.parent / name).read_text(encoding="utf-8") for name in TABLES}
    facts = "\nMeasured: command: recsys evaluate; bundle: b1; machine: 2 cores.\n"
    assert said["leaderboard.md"] == markdown_table(leaderboard) + facts
    assert said["leaderboard.txt"].startswith(text_table(leaderboard))
    assert differences_table(leaderboard) in said["leaderboard.txt"]
    assert said["cohorts.md"] == cohorts_markdown(leaderboard) + facts
    assert said["beyond_accuracy.md"] == beyond_accuracy_markdown(leaderboard) + facts


def test_without_data_there_is_no_picture(tmp_path: Path) -> None:
    write_report(tmp_path, make(TWO))
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(["leaderboard.png", *TABLES, "report.html"])
    assert (tmp_path / "leaderboard.md").read_text(encoding="utf-8") == markdown_table(make(TWO))


def test_importing_the_report_loads_no_matplotlib() -> None:
    code = "import sys, recsys.evaluation.report; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
