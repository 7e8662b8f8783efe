"""`recsys keep`: which reports land in the documentation."""

import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.pipeline import open_pipeline
from pipelines.studies.keeping import keep
from recsys.atomic_io import read_json
from recsys.evaluation.tables import with_facts
from recsys.settings import read_settings
from tests.conftest import TrainedHome


def test_tables_and_pictures_are_copied_byte_by_byte(trained_home: TrainedHome, tmp_path: Path) -> None:
    assert trained_home.run("keep", str(tmp_path / "results"), "--dataset", trained_home.name) == 0
    reports = trained_home.dataset.reports
    expected = {p.name for p in reports.iterdir() if p.suffix in {".md", ".png"}}
    assert {"leaderboard.md", "leaderboard.png", "cohorts.md", "cohorts.png", "calibration.png"} <= expected
    kept = tmp_path / "results" / trained_home.name
    assert {p.name for p in kept.iterdir()} == expected
    for name in expected:
        assert (kept / name).read_bytes() == (reports / name).read_bytes()


def test_without_a_report_it_says_what_to_run(
    trained_home: TrainedHome, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from recsys import command

    home = tmp_path / "home"
    assert command.run(["data", "--data-dir", str(trained_home.raw), "--home", str(home)]) == 0
    assert command.run(["keep", str(tmp_path / "results"), "--home", str(home)]) == 2
    assert "recsys train" in capsys.readouterr().err
    assert not (tmp_path / "results").exists()


@pytest.fixture
def copied(trained_home: TrainedHome, tmp_path: Path) -> TrainedHome:
    """Tables and reports alone, to be changed."""
    home = TrainedHome(tmp_path / "home", trained_home.raw)
    for folder in ("data", "reports"):
        shutil.copytree(trained_home.root / trained_home.name / folder, home.root / home.name / folder)
    return home


def warned(home: TrainedHome, folder: Path) -> list[str]:
    """What is said while keeping, line by line."""
    said: list[str] = []
    keep(replace(open_pipeline(home.name, read_settings(home.root)), report=said.append), folder)
    return said


def test_every_table_of_an_evaluation_names_its_bundle(
    copied: TrainedHome, trained_home: TrainedHome, tmp_path: Path
) -> None:
    bundle = read_json(trained_home.dataset.work / "evaluation.json")["bundle_id"]
    for name in ("leaderboard.md", "cohorts.md", "beyond_accuracy.md", "calibration.md"):
        last = (copied.dataset.reports / name).read_text(encoding="utf-8").splitlines()[-1]
        # another test of the session may have measured the same bundle again with `recsys evaluate`
        assert re.match(rf"Measured: command: recsys (train|evaluate); bundle: {re.escape(bundle)}; code: ", last), name
        for fact in ("date (UTC): 20", "machine: ", "versions: torch "):
            assert f"; {fact}" in last, name
    assert warned(copied, tmp_path / "kept") == []


def test_tables_of_another_model_are_named_and_kept(copied: TrainedHome, tmp_path: Path) -> None:
    reports = copied.dataset.reports
    about = {"command": "recsys x"}
    (reports / "ablation.md").write_text(with_facts("# Ablation\n", {**about, "bundle": "of-before"}))
    (reports / "diversity.md").write_text("# Of a time when nothing was said\n")
    (reports / "tuning.md").write_text(with_facts("# Search\n", about))
    (line,) = warned(copied, tmp_path / "kept")
    assert line.startswith("warning: ablation.md, diversity.md: measured on another model than leaderboard.md, or ")
    for name in ("ablation.md", "diversity.md", "tuning.md"):
        assert (tmp_path / "kept" / copied.name / name).read_bytes() == (reports / name).read_bytes()
