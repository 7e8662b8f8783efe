"""The rule by which stages run or are skipped: the real list of stages, with functions that only take notes."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from pipelines import job as module
from pipelines.config import PipelineConfig, config_for
from pipelines.job import Job, Stage, run_stages
from pipelines.stages import stages
from recsys.data.tables import load_tables, save_tables
from recsys.errors import ConfigError, MissingArtefactError
from recsys.settings import Settings
from recsys.workspace import Workspace
from tests import planted


class Notes:
    """The stages of `pipelines.stages` in their order and with their settings, each of which writes one file."""

    def __init__(self, folder: Path) -> None:
        self.home = Workspace(folder).dataset("planted")
        save_tables(planted.planted_tables(), self.home.data)
        self.config = config_for(planted.planted_tables().events)
        self.ran: list[str] = []
        self.said: list[str] = []
        self.fails_at: str | None = None

    def stages(self, refit: bool = True) -> list[Stage]:
        return [replace(s, run=self._note(s.name), outputs=self._outputs(s.name)) for s in stages(refit)]

    def _note(self, name: str) -> Any:
        def run(job: Job) -> None:
            if name == self.fails_at:
                raise RuntimeError(f"killed in {name}")
            self.ran.append(name)
            job.work(name).parent.mkdir(parents=True, exist_ok=True)
            job.work(name).write_text("made")

        return run

    def _outputs(self, name: str) -> Any:
        return lambda job: [job.work(name)]

    def run(self, config: PipelineConfig | None = None, refit: bool = True, **options: Any) -> list[str]:
        """Names of the stages that ran."""
        self.ran.clear()
        self.said.clear()
        tables = load_tables(self.home.data)
        settings = config or self.config
        job = Job(Workspace(self.home.root.parent), self.home, Settings(), settings, tables, report=self.said.append)
        run_stages(job, self.stages(refit), **options)
        return list(self.ran)


ALL = [s.name for s in stages(refit=True)]
FROM_T0 = [name for name in ALL if name != "features"]


@pytest.fixture
def notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Notes:
    monkeypatch.setattr(module, "code_fingerprint", lambda: "code")
    return Notes(tmp_path)


def test_the_list_reads_in_order_and_every_stage_reads_only_earlier_ones() -> None:
    assert [
        *("features", "retrievers_t0", "retrievers_t1", "ranker_t2", "retrievers_t2", "evaluate"),
        *("ranker_all", "retrievers_all", "production", "register"),
    ] == ALL
    assert [s.name for s in stages(refit=False)] == [n for n in ALL if not n.endswith("_all")]
    for refit in (True, False):
        earlier: set[str] = set()
        for stage in stages(refit):
            assert set(stage.after) <= earlier
            assert stage.says
            earlier.add(stage.name)


def test_everything_once_then_nothing(notes: Notes) -> None:
    assert notes.run() == ALL
    assert notes.said[-1].startswith("[10/10] register: done in")
    times = {p.name: p.stat().st_mtime_ns for p in notes.home.stages.iterdir()}
    assert notes.run() == []
    assert [line for line in notes.said if "up to date" in line] == notes.said
    assert {p.name: p.stat().st_mtime_ns for p in notes.home.stages.iterdir()} == times


def changed(config: PipelineConfig, part: str, **values: Any) -> PipelineConfig:
    old = getattr(config, part)
    return replace(config, **{part: {**old, **values} if isinstance(old, dict) else replace(old, **values)})


AFTER_RETRIEVERS = FROM_T0
AFTER_RANKER = ["ranker_t2", "evaluate", "ranker_all", "production", "register"]


@pytest.mark.parametrize(
    ("part", "values", "expected"),
    [
        ("tower", {"epochs": 3}, FROM_T0),
        ("retrievers", {"ease": {"power": 0.3}}, FROM_T0),
        ("ranker", {"learning_rate": 0.2}, AFTER_RANKER),
        ("ranker", {"seed": 99}, ["features", *AFTER_RANKER]),
        ("ranker", {"max_contexts": 5}, ["features", *AFTER_RANKER]),
        ("recommender", {"fetch": 77}, AFTER_RANKER),
    ],
)
def test_a_setting_reruns_what_lies_downstream_and_nothing_else(
    part: str, values: dict[str, Any], expected: list[str], notes: Notes
) -> None:
    notes.run()
    assert notes.run(changed(notes.config, part, **values)) == expected


def test_plain_settings(notes: Notes) -> None:
    notes.run()
    assert notes.run(replace(notes.config, latency_budget_ms=1.0)) == ["register"]
    assert notes.run(replace(notes.config, index="hnsw", latency_budget_ms=1.0)) == FROM_T0


def test_without_refit_production_is_made_anew(notes: Notes) -> None:
    notes.run()
    assert notes.run(replace(notes.config, refit=False), refit=False) == ["production", "register"]
    assert notes.run() == ["production", "register"]


def test_other_data_or_other_code_reruns_everything(notes: Notes, monkeypatch: pytest.MonkeyPatch) -> None:
    notes.run()
    tables = planted.planted_tables()
    save_tables(replace(tables, info=replace(tables.info, fingerprint="1" * 64)), notes.home.data)
    assert notes.run() == ALL
    monkeypatch.setattr(module, "code_fingerprint", lambda: "other code")
    assert notes.run() == ALL


def test_the_code_that_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("recsys/deep", "pipelines", "feature_repo", "tests"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "a.py").write_text("1")
    monkeypatch.setattr(module, "REPOSITORY", tmp_path)
    before = module.code_fingerprint()
    (tmp_path / "tests" / "a.py").write_text("2")
    assert module.code_fingerprint() == before
    for folder in ("recsys/deep", "pipelines", "feature_repo"):
        (tmp_path / folder / "a.py").write_text("2")
        assert module.code_fingerprint() != before
        (tmp_path / folder / "a.py").write_text("1")
    assert module.code_fingerprint() == before


def test_a_lost_output_is_made_again_with_all_that_was_made_from_it(notes: Notes) -> None:
    notes.run()
    (notes.home.work / "evaluate").unlink()
    assert notes.run() == ["evaluate", "production", "register"]
    (notes.home.work / "register").unlink()
    assert notes.run() == ["register"]


def test_force_skips_nothing(notes: Notes) -> None:
    notes.run()
    assert notes.run(force=True) == ALL


def test_only_runs_one_stage(notes: Notes) -> None:
    with pytest.raises(
        MissingArtefactError, match=r"Stage retrievers_t1 reads what retrievers_t0 writes, and .*not there"
    ):
        notes.run(only="retrievers_t1")
    assert notes.run(only="features") == ["features"]
    assert notes.run(only="retrievers_t0") == ["retrievers_t0"]
    assert notes.run(only="retrievers_t0") == [], "up to date"
    assert notes.run(only="retrievers_t0", force=True) == ["retrievers_t0"]
    assert notes.run() == [n for n in ALL if n not in ("features", "retrievers_t0")]
    assert notes.run(only="retrievers_t2", force=True) == ["retrievers_t2"]
    assert notes.run() == ["evaluate", "ranker_all", "production", "register"], "what was made from the old one"


def test_only_on_top_of_a_stale_stage_does_not_pass_for_fresh(notes: Notes) -> None:
    """retrievers_t1 is run alone with new settings on the old retrievers_t0: the whole run has to repair that."""
    notes.run()
    other = changed(notes.config, "tower", epochs=3)
    assert notes.run(other, only="retrievers_t1") == ["retrievers_t1"]
    assert notes.run(other) == FROM_T0


def test_an_unknown_stage_is_named_with_those_there_are(notes: Notes) -> None:
    with pytest.raises(ConfigError, match="no stage 'polish'; the stages are features, retrievers_t0,"):
        notes.run(only="polish")
    assert not notes.home.stages.exists()


@pytest.mark.parametrize("at", ALL)
def test_killed_anywhere_a_second_run_completes(at: str, notes: Notes) -> None:
    notes.fails_at = at
    with pytest.raises(RuntimeError, match=at):
        notes.run()
    before = list(notes.ran)
    assert before == ALL[: ALL.index(at)]
    assert {p.stem for p in notes.home.stages.glob("*")} == set(before)
    if at in {name for s in stages(True) for name in s.after}:
        following = next(s.name for s in stages(True) if at in s.after)
        with pytest.raises(MissingArtefactError):
            notes.run(only=following)
    notes.fails_at = None
    assert notes.run() == ALL[ALL.index(at) :]
    assert notes.run() == []


def test_killed_while_running_again_the_old_record_does_not_count(notes: Notes) -> None:
    notes.run()
    notes.fails_at = "retrievers_t1"
    with pytest.raises(RuntimeError):
        notes.run(force=True)
    with pytest.raises(MissingArtefactError, match="that stage has not finished"):
        notes.run(only="ranker_t2")
    notes.fails_at = None
    assert notes.run() == [n for n in ALL if n not in ("features", "retrievers_t0")]


def test_progress_says_what_is_left_every_few_seconds(notes: Notes, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([100.0, 101.0, 106.0, 107.0, 112.0])
    monkeypatch.setattr(module.time, "perf_counter", lambda: next(clock))
    said: list[str] = []
    tables = planted.planted_tables()
    job = Job(Workspace(notes.home.root.parent), notes.home, Settings(), notes.config, tables, report=said.append)
    tell = job.progress("counting")
    for done in (10, 60, 70, 1_200):
        tell(done, 1_200)
    assert said == ["counting: 60 of 1,200, about 114 s left"]


def test_a_window_is_open_below_and_closed_above(notes: Notes) -> None:
    tables = planted.planted_tables()
    job = Job(Workspace(notes.home.root.parent), notes.home, Settings(), notes.config, tables, report=print)
    events = planted.planted_tables().events
    split = job.split
    parts: Sequence[pd.DataFrame] = [
        job.window(0, split.t1), job.window(split.t1, split.t2), job.window(split.t2, split.end)
    ]  # fmt: skip
    assert sum(map(len, parts)) == len(events)
    assert parts[0]["timestamp"].max() == split.t1
    assert parts[1]["timestamp"].min() > split.t1
    assert parts[2]["timestamp"].max() == split.end
