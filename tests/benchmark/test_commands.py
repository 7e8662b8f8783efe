"""`recsys bench latency` and `recsys bench freshness` from end to end, against a stub of the service."""

import json
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from recsys import command
from recsys.atomic_io import write_json
from recsys.columns import USER_ID
from recsys.data.tables import DatasetInfo
from recsys.events import EventTable, NewEvent, sqlite_url
from recsys.workspace import Workspace
from serving.benchmark.freshness import scratch_events
from serving.benchmark.in_process import InProcess
from serving.benchmark.latency import Options, OverHttp, Report
from serving.benchmark.load import Load, Percentiles
from serving.benchmark.report import markdown, save, verdict
from serving.benchmark.sweep import Step, Sweep

from .stub_service import RatedItems, Stub, listening


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """All that a measurement over HTTP needs of a home: who there is to ask for, and what the data are called."""
    workspace = Workspace(tmp_path / "home")
    there = workspace.dataset("planted")
    there.data.mkdir(parents=True)
    pd.DataFrame({USER_ID: [3, 5, 8]}).to_parquet(there.data / "users.parquet")
    write_json(there.data / "dataset.json", vars(DatasetInfo("planted", True, "ml-1m", "0" * 64, 9, 9, 3)))
    workspace.remember("planted")
    return workspace.root


@pytest.mark.parametrize(("budget_ms", "code", "word"), [("5000", 0, "within"), ("0.1", 1, "OVER")])
def test_latency_of_a_running_service(
    home: Path,
    budget_ms: str,
    code: int,
    word: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("serving.benchmark.sweep.MOST_STEPS", 2)
    monkeypatch.setattr("serving.benchmark.latency.QUICK_STEP_AND_OPEN_S", (0.2, 0.2))
    options = ("--quick", "-n", "20", "--budget-ms", budget_ms, "--home", str(home))
    with listening(Stub()) as stub:
        assert command.run(["bench", "latency", "--base-url", stub.url, *options]) == code
    printed = capsys.readouterr().out
    assert f"{word} the budget of {float(budget_ms):g} ms" in printed
    stored = json.loads((home / "planted" / "reports" / "latency.json").read_text())
    assert stored["http"]["closed"]["1"]["latency"]["n"] == 20
    assert stored["in_process"] is None
    assert {path.name for path in (home / "planted" / "reports").iterdir()} == {
        *("latency.json", "latency.md", "latency.png")
    }


def test_a_service_that_is_not_there_is_named(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.run(["bench", "latency", "--base-url", "http://127.0.0.1:9", "--home", str(home)]) == 2
    assert "No ready service at http://127.0.0.1:9" in capsys.readouterr().err


@pytest.mark.parametrize(("forgets", "code"), [(0, 0), (1, 1)])
def test_freshness(home: Path, forgets: int, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    """A list that does not know an accepted rating is a failure, however soon the next one does."""
    rated = RatedItems(forgets)
    options = ("-n", "6", "--budget-ms", "5000", "--home", str(home))
    with listening(Stub(rated)) as stub:
        assert command.run(["bench", "freshness", "--base-url", stub.url, *options]) == code
    assert sum(map(len, rated.rated.values())) == 6
    assert set(rated.rated) == {"3", "5", "8"}
    assert f"{6 * forgets} lists did not know the rating" in capsys.readouterr().out
    assert json.loads((home / "planted" / "reports" / "freshness.json").read_text())["fresh"]["n"] == 6


def test_a_rating_that_is_refused_ends_the_measurement(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refusing(number: int, method: str, path: str, body: bytes) -> tuple[int, bytes]:
        return (401, b"no key") if method == "POST" else RatedItems()(number, method, path, body)

    with listening(Stub(refusing)) as stub:
        assert command.run(["bench", "freshness", "--base-url", stub.url, "--home", str(home)]) == 2
    assert "did not accept a rating: 401 no key" in capsys.readouterr().err


def test_a_scratch_table_counts_on_from_the_services_own(tmp_path: Path) -> None:
    """A stored state knows the events through some number; those of the benchmark must come after it."""
    own = EventTable(sqlite_url(tmp_path / "own.db"))
    rating = NewEvent("a", 1, 2, "rating", 4.0, 1_000, 1_000.0)
    own.append([rating, replace(rating, event_id="b")])
    (tmp_path / "scratch").mkdir()
    assert scratch_events(tmp_path / "scratch", own).startswith("sqlite:///")
    scratch = EventTable(sqlite_url(tmp_path / "scratch" / "events.db"))
    assert scratch.append([rating])[0].seq == own.safe_seq() + 1
    own.close()
    scratch.close()


def report() -> Report:
    found = Percentiles(100, 2.0, 3.0, 9.0, 11.0, 12.0)
    load = Load(100, 1.0, found, 0, 0, 0)
    steps = (Step(10.0, load, ""), Step(20.0, replace(load, latency=None, failed=100), "100 failed"))
    inside = InProcess(300, {"retrieval": found, "total": found}, {"lightgbm": 1.5, "index": 0.5}, 2.0, 1.0, 0.9, 0.8)
    return Report(
        facts={"command": "recsys bench latency", "bundle": "b-1"},
        dataset="planted",
        options=Options(budget_ms=9.0),
        in_process=inside,
        larger={62_000: {"total": found}},
        device=None,
        http=OverHttp({1: load, 4: load}, Sweep(steps, 10.0), load),
    )


def test_a_report_says_what_was_measured_and_how(tmp_path: Path) -> None:
    text = markdown(report())
    assert "| total | 2.00 | 3.00 | 9.00 | 11.00 | 12.00 |" in text
    assert "| sum | 2.000 |" in text
    assert "In process, 62,000 items" in text
    assert "Saturation: 10 requests a second." in text
    assert text.splitlines()[-1] == "Measured: command: recsys bench latency; bundle: b-1."
    save(report(), tmp_path)
    assert json.loads((tmp_path / "latency.json").read_text())["http"]["sweep"]["saturation"] == 10.0
    assert (tmp_path / "latency.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("change", "within", "words"),
    [
        ({}, True, "9.0 ms, within"),
        ({"latency": Percentiles(100, 2.0, 3.0, 9.1, 11.0, 12.0)}, False, "9.1 ms, OVER"),
        ({"requests": 102, "shed": 2}, False, "9.0 ms, OVER"),
        ({"latency": None}, False, "no full answer, OVER"),
    ],
)
def test_the_verdict(change: dict[str, object], within: bool, words: str) -> None:
    """Fast answers to some are no success where others are turned away."""
    made = report()
    one = replace(made.http.closed[1], **change)  # type: ignore[arg-type]
    made = replace(made, http=replace(made.http, closed={1: one}))
    assert made.within_budget is within
    assert words in verdict(made)
