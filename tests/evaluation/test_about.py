"""What every measured number carries."""

import re
import subprocess

import pytest

from recsys.evaluation.about import about, code_version
from recsys.evaluation.tables import FACTS_OF_A_RUN


def test_the_facts_are_those_that_tables_show() -> None:
    facts = about("recsys x", packages=("numpy", "torch"))
    assert set(facts) == set(FACTS_OF_A_RUN) - {"bundle"}
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", facts["date (UTC)"])
    assert re.fullmatch(r"numpy [\d.]+, torch [\d.]+\S*", facts["versions"])


@pytest.mark.parametrize(("dirty", "shown"), [("", "abc123"), (" M recsys/x.py\n", "abc123-dirty")])
def test_a_changed_file_marks_the_version(dirty: str, shown: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 0, "abc123\n" if "rev-parse" in command else dirty)

    monkeypatch.setattr(subprocess, "run", run)
    assert code_version() == shown
