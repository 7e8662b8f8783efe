"""The rule by which stages run or are skipped: the real list of stages, whose work is to write one file."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipelines import stage_runner
from pipelines.config import PipelineConfig, config_for
from pipelines.pipeline import Pipeline
from pipelines.stage_runner import REPOSITORY, Stage, code_fingerprint, progress, reachable_code, run_stages
from pipelines.stages import stages
from pipelines.training_set import TrainingSet
from recsys.errors import ConfigError, MissingArtefactError
from recsys.settings import Settings
from recsys.workspace import Workspace
from tests import planted

TABLES = planted.planted_tables()
CONFIG = config_for(TABLES.events)


class Notes:
    """Runs the stages of `pipelines.stages` with their settings; each writes one file into `work`."""

    def __init__(self, folder: Path) -> None:
        self.home = Workspace(folder).dataset("planted")
        self.ran: list[str] = []
        self.reported: list[str] = []
        self.fails_at: str | None = None

    def stages(self, config: PipelineConfig = CONFIG) -> list[Stage]:
        pipeline = Pipeline(self.home, Settings(), config, TrainingSet(TABLES, TABLES.info))
        return [self._harmless(stage) for stage in stages(pipeline)]

    def _harmless(self, stage: Stage) -> Stage:
        file = self.home.work / stage.name

        def run() -> None:
            if stage.name == self.fails_at:
                raise RuntimeError(f"killed in {stage.name}")
            self.ran.append(stage.name)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("made")

        return replace(stage, run=run, outputs=lambda: [file])

    def run(self, config: PipelineConfig = CONFIG, data: str = "data", **options: Any) -> list[str]:
        """Names of the stages that ran."""
        self.ran.clear()
        self.reported.clear()
        run_stages(self.stages(config), self.home.stages, data, self.reported.append, **options)
        return list(self.ran)


ALL = [
    *("features", "retrievers_t0", "retrievers_t1", "ranker_t2", "retrievers_t2", "evaluate"),
    *("ranker_all", "retrievers_all", "production", "register"),
]
FROM_T0 = ALL[1:]
FROM_RANKER = ["ranker_t2", "evaluate", "ranker_all", "production", "register"]


@pytest.fixture
def notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Notes:
    monkeypatch.setattr(stage_runner, "code_fingerprint", lambda _: "code")
    return Notes(tmp_path)


@pytest.mark.parametrize("refit", [True, False])
def test_every_stage_reads_only_earlier_ones(notes: Notes, refit: bool) -> None:
    in_order = notes.stages(replace(CONFIG, refit=refit))
    assert [s.name for s in in_order] == [name for name in ALL if refit or not name.endswith("_all")]
    for place, stage in enumerate(in_order):
        assert set(stage.depends_on) <= {s.name for s in in_order[:place]}
        assert stage.description


def test_everything_once_then_nothing_and_the_records_stay(notes: Notes) -> None:
    assert notes.run() == ALL
    assert notes.reported[-1].startswith("[10/10] register: done in")
    times = {p.name: p.stat().st_mtime_ns for p in notes.home.stages.iterdir()}
    assert notes.run() == []
    assert all("up to date" in line for line in notes.reported)
    assert {p.name: p.stat().st_mtime_ns for p in notes.home.stages.iterdir()} == times
    assert notes.run(force=True) == ALL
    assert notes.run(only="features", force=True) == ["features"]
    assert notes.run() == [], "the same features again are no reason to train"


def changed(part: str, **values: Any) -> PipelineConfig:
    old = getattr(CONFIG, part)
    return replace(CONFIG, **{part: {**old, **values} if isinstance(old, dict) else replace(old, **values)})


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (changed("tower", epochs=3), FROM_T0),
        (changed("retrievers", ease={"power": 0.3}), FROM_T0),
        (changed("ranker", learning_rate=0.2), FROM_RANKER),
        (changed("ranker", seed=99), ["features", *FROM_RANKER]),
        (changed("ranker", max_contexts=5), ["features", *FROM_RANKER]),
        (changed("recommender", fetch=77), FROM_RANKER),
        (replace(CONFIG, index="ivf"), FROM_T0),
        (replace(CONFIG, latency_budget_ms=1.0), ["register"]),
        (replace(CONFIG, refit=False), ["production", "register"]),
        (replace(CONFIG, feature_store="redis elsewhere:6379"), ["features", *FROM_RANKER]),
    ],
)
def test_a_setting_reruns_what_lies_downstream_and_nothing_else(
    notes: Notes, config: PipelineConfig, expected: list[str]
) -> None:
    notes.run()
    assert notes.run(config) == expected


def test_other_data_and_other_code_rerun_everything(notes: Notes, monkeypatch: pytest.MonkeyPatch) -> None:
    notes.run()
    assert notes.run(data="other data") == ALL
    monkeypatch.setattr(stage_runner, "code_fingerprint", lambda _: "other code")
    assert notes.run(data="other data") == ALL


def test_a_lost_output_and_a_damaged_record_are_made_again(notes: Notes) -> None:
    notes.run()
    (notes.home.work / "evaluate").unlink()
    assert notes.run() == ["evaluate"], "the same again, so that nothing downstream differs"
    for text in ("{", "[]", '{"key": 7}'):
        (notes.home.stages / "ranker_t2.json").write_text(text)
        assert notes.run() == ["ranker_t2"]


def test_only_runs_one_stage_whose_inputs_are_there(notes: Notes) -> None:
    with pytest.raises(MissingArtefactError, match=r"Stage retrievers_t1 reads what retrievers_t0 writes, and .*not"):
        notes.run(only="retrievers_t1")
    assert notes.run(only="retrievers_t0") == ["retrievers_t0"]
    assert notes.run(only="retrievers_t0") == [], "up to date"
    assert notes.run(only="retrievers_t0", force=True) == ["retrievers_t0"]
    assert notes.run() == ["features", *ALL[2:]]
    with pytest.raises(ConfigError, match="no stage 'polish'; the stages are features, retrievers_t0,"):
        notes.run(only="polish")


def test_only_on_top_of_a_stale_stage_does_not_pass_for_fresh(notes: Notes) -> None:
    """retrievers_t1 is run alone with new settings on the old retrievers_t0: the whole run has to repair that."""
    notes.run()
    other = changed("tower", epochs=3)
    assert notes.run(other, only="retrievers_t1", force=True) == ["retrievers_t1"]
    assert notes.run(other) == FROM_T0


@pytest.mark.parametrize("at", ALL)
def test_killed_anywhere_a_second_run_completes(at: str, notes: Notes) -> None:
    notes.fails_at = at
    with pytest.raises(RuntimeError, match=at):
        notes.run()
    assert notes.ran == ALL[: ALL.index(at)]
    assert {p.stem for p in notes.home.stages.glob("*")} == set(notes.ran)
    notes.fails_at = None
    assert notes.run() == ALL[ALL.index(at) :]
    notes.fails_at = at
    with pytest.raises(RuntimeError):
        notes.run(force=True)
    notes.fails_at = None
    assert notes.run() == [at], "its old record does not count"


def test_progress_says_what_is_left_every_few_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([100.0, 101.0, 106.0, 107.0, 112.0])
    monkeypatch.setattr(stage_runner.time, "perf_counter", lambda: next(clock))
    reported: list[str] = []
    show = progress(reported.append, "counting")
    for done in (10, 60, 70, 1_200):
        show(done, 1_200)
    assert reported == ["counting: 60 of 1,200, about 114 s left"]


# ---- the code that counts

MODULE = '''"""What it is for."""
from recsys import deep
from pipelines import reached


def double(x):
    """Twice."""
    return 2 * x  # plainly
'''


@pytest.mark.parametrize(
    ("file", "text", "counts"),
    [
        ("pipelines/a.py", MODULE.replace("Twice.", "Two times."), False),
        ("pipelines/a.py", MODULE.replace("What it is for.", "Another purpose."), False),
        ("pipelines/a.py", MODULE.replace("  # plainly", "\n"), False),
        ("pipelines/a.py", MODULE.replace("2 * x", "3 * x"), True),
        ("pipelines/reached.py", "import recsys.deep\nx = 2", True),
        ("recsys/deep/__init__.py", "x = 2", True),
        ("pipelines/not_reached.py", "x = 2", False),
        ("feature_repo/definitions.py", "x = 2", True),
    ],
)
def test_what_a_stage_can_reach_counts_and_words_do_not(tmp_path: Path, file: str, text: str, counts: bool) -> None:
    def fingerprint(root: Path, changes: dict[str, str]) -> str:
        plain = ("pipelines/reached.py", "recsys/deep/__init__.py", "pipelines/not_reached.py")
        files = {"pipelines/a.py": MODULE, "feature_repo/definitions.py": "x = 1", **dict.fromkeys(plain, "x = 1")}
        for name, content in {**files, **changes}.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(content)
        return code_fingerprint("pipelines.a", root)

    before = fingerprint(tmp_path / "before", {})
    assert before == fingerprint(tmp_path / "same", {})
    assert (before != fingerprint(tmp_path / "after", {file: text})) is counts


def test_models_do_not_depend_on_the_code_that_shows_and_serves_them() -> None:
    reached = [path.relative_to(REPOSITORY).as_posix() for path in reachable_code("pipelines.retrievers")]
    assert "recsys/retrieval/two_tower_training.py" in reached
    assert not [path for path in reached if path.startswith(("recsys/evaluation", "recsys/registry", "pipelines/cli"))]
