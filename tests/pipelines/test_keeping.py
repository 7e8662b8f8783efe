"""`recsys keep`: what of the reports lands in the documentation. Stage: studies."""

from pathlib import Path

import pytest

from tests.conftest import TrainedHome


def test_tables_and_pictures_are_copied_byte_by_byte(trained_home: TrainedHome, tmp_path: Path) -> None:
    assert trained_home.run("keep", str(tmp_path / "results"), "--dataset", trained_home.name) == 0
    reports = trained_home.dataset.reports
    expected = {p.name for p in reports.iterdir() if p.suffix in {".md", ".png"}}
    assert {"ladder.md", "ladder.png", "cohorts.md", "cohorts.png", "calibration.png"} <= expected
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
