"""What every measured number carries."""

import os
import re
import subprocess

import pytest

from recsys.evaluation.about import about, code_version
from recsys.evaluation.tables import FACTS_OF_A_RUN


def test_the_facts_are_those_that_tables_show() -> None:
    found = about("recsys x", packages=("numpy", "torch"))
    assert set(found) == set(FACTS_OF_A_RUN) - {"bundle"}
    assert found["command"] == "recsys x"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", found["date (UTC)"])
    assert re.fullmatch(r"numpy [\d.]+, torch [\d.]+\S*", found["versions"])
    assert f"{os.cpu_count()} cores" in found["machine"]


@pytest.mark.parametrize(("dirty", "shown"), [("", "abc123"), (" M recsys/x.py\n", "abc123-dirty")])
def test_a_changed_file_marks_the_version(dirty: str, shown: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 0, "abc123\n" if "rev-parse" in command else dirty)

    monkeypatch.setattr(subprocess, "run", run)
    assert code_version() == shown
