"""The hyper-parameter search: stopped, continued, blind after T2, and through its command on a small trained home."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

import pipelines.config
from pipelines.config import PipelineConfig, config_for, read_tuned, with_tuned
from pipelines.pipeline import Pipeline, open_pipeline
from pipelines.studies import objectives, tuning
from pipelines.studies.cli import app
from pipelines.studies.objectives import Past, RankerTrials
from pipelines.studies.tuning_report import TuningStudy
from pipelines.training_set import TrainingSet
from recsys.atomic_io import read_json, write_json
from recsys.bundle import save_retrievers
from recsys.columns import ITEM_ID, POPULARITY, RATING, RETRIEVERS, TIMESTAMP, TWO_TOWER
from recsys.data.tables import Tables
from recsys.errors import ConfigError, MissingArtefactError
from recsys.settings import read_settings
from recsys.workspace import Workspace
from tests.conftest import TrainedHome, use_small_settings
from tests.planted import (
    RANKER,
    RECOMMENDER,
    planted_retrievers,
    planted_split,
    planted_tables,
)

LINES: list[str] = []


def job_at(root: Path, tables: Tables | None = None, config: PipelineConfig | None = None) -> Pipeline:
    """A pipeline on the planted tables, which are cheap, with nothing trained. What it reports is in LINES."""
    tables = tables or planted_tables()
    LINES.clear()
    data = TrainingSet(tables, tables.info)
    config = config or config_for(tables.events)
    return Pipeline(Workspace(root).dataset("planted"), read_settings(root), config, data, LINES.append)


def leave_retrievers(job: Pipeline) -> Pipeline:
    """What a training leaves, as far as the search reads it."""
    for stage, cutoff in (("retrievers_t0", planted_split().t0), ("retrievers_t1", planted_split().t1)):
        save_retrievers(planted_retrievers(cutoff), (job.home.work / stage))
        write_json((job.home.work / stage) / "log.json", {"cutoff": cutoff})
    return job


def official(root: Path, fingerprint: str = "0" * 64) -> Pipeline:
    """The planted tables under the name of an official data set."""
    tables = planted_tables()
    info = replace(tables.info, name="ml-1m", synthetic=False, fingerprint=fingerprint)
    return job_at(root, replace(tables, info=info))


def no_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> float:
        raise AssertionError("a trial has begun")

    monkeypatch.setattr(objectives, "retriever_ndcg", fails)


def values(found: TuningStudy, part: str) -> list[float]:
    return [trial.value for trial in found.parts[part].trials]


def settings(found: TuningStudy, part: str) -> list[dict[str, Any]]:
    return [trial.settings for trial in found.parts[part].trials]


# Nothing after T2.


def with_other_future(tables: Tables) -> Tables:
    """The same moments after T2, with other items and ratings."""
    events = tables.events.copy()
    after = events[TIMESTAMP] > planted_split().t2
    assert after.any()
    items = np.sort(tables.items[ITEM_ID].to_numpy())
    events.loc[after, ITEM_ID] = items[::-1][np.searchsorted(items, events.loc[after, ITEM_ID])]
    events.loc[after, RATING] = np.float32(0.5)
    assert not events.equals(tables.events)
    return replace(tables, events=events)


def test_what_lies_after_t2_changes_nothing(tmp_path: Path) -> None:
    parts = ("ease", "popularity", "covisitation", "rrf_weights")
    one = tuning.run(leave_retrievers(job_at(tmp_path / "one")), parts, trials=2)
    two = tuning.run(leave_retrievers(job_at(tmp_path / "two", with_other_future(planted_tables()))), parts, trials=2)
    assert [values(one, p) for p in parts] == [values(two, p) for p in parts]
    assert Past.of(planted_tables()).events[TIMESTAMP].max() == planted_split().t2
    assert Past.of(planted_tables()).histories.timestamps.max() == planted_split().t2
    future = Past.of(with_other_future(planted_tables()))
    ranked = [
        RankerTrials(p, planted_retrievers(p.split.t0), planted_retrievers(p.split.t1), RANKER, RECOMMENDER)
        for p in (future, Past.of(planted_tables()))
    ]
    np.testing.assert_array_equal(ranked[0].table.features, ranked[1].table.features)
    assert ranked[0].ndcg(RANKER) == ranked[1].ndcg(RANKER)


# Studies.


def test_trial_0_is_the_default_and_settings_stay_in_their_space(tmp_path: Path) -> None:
    job = job_at(tmp_path)
    result = tuning.run(job, ["ials", "ease"], trials=4)
    assert list(result.parts) == ["ease", "ials"]
    tuned = read_json(job.home.reports / "tuned.json")
    for name, part in result.parts.items():
        assert part.default.settings == job.config.retrievers[name]
        assert len({str(tried) for tried in settings(result, name)}) == 4
        for tried in settings(result, name):
            for key, value in tried.items():
                space = tuning.SPACES[name][key]
                assert space.low <= value <= space.high  # type: ignore[attr-defined]
        assert part.best.value == max(values(result, name))
        assert tuned["retrievers"][name] == part.best.settings
        assert tuned["about"]["validation"][name]["default"] == part.default.value
    kept = read_json(job.home.reports / "tuning.json")["parts"]
    assert {name: [t["value"] for t in part["trials"]] for name, part in kept.items()} == {
        name: values(result, name) for name in result.parts
    }
    page = (job.home.reports / "tuning.md").read_text(encoding="utf-8")
    assert "planted (synthetic, not MovieLens)" in page
    assert page.count("\n| 3 ") == 2


def test_every_default_lies_in_its_space() -> None:
    """For the largest and the smallest data, whose rules end at their bounds."""
    for n, days in ((60, 1), (400_000, 1e4)):
        times = (np.linspace(0, days, n) * 86_400).astype(np.int64)
        config = config_for(pd.DataFrame({TIMESTAMP: times}))
        whole: dict[str, Any] = {**config.retrievers, "ranker": vars(config.ranker), "tower": vars(config.tower)}
        for name, space in tuning.SPACES.items():
            for key, distribution in space.items():
                value = whole[name][key]
                assert distribution._contains(distribution.to_internal_repr(value)), (name, key, value)
    assert set(tuning.SPACES) == {*config.retrievers, "ranker", "tower"}


def test_a_search_that_was_stopped_goes_on_as_if_it_had_not_been(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tuning.run(job_at(tmp_path / "whole"), ["popularity"], trials=13)
    original = objectives.retriever_ndcg
    calls = 0

    def stops(*arguments: Any) -> float:
        nonlocal calls
        calls += 1
        if calls == 12:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(objectives, "retriever_ndcg", stops)
    with pytest.raises(KeyboardInterrupt):
        tuning.run(job_at(tmp_path / "parts"), ["popularity"], trials=13)
    job = job_at(tmp_path / "parts")
    again = tuning.run(job, ["popularity"], trials=13)
    assert "popularity, 2 of 13 trials to do" in "\n".join(LINES)
    assert calls == 12 + 2
    assert settings(again, "popularity") == settings(whole, "popularity")
    tuning.run(job, ["popularity"], trials=13)
    assert "popularity has 13 trials, none to do" in "\n".join(LINES)
    assert calls == 12 + 2


def test_minutes_are_shared_and_end_a_part(tmp_path: Path) -> None:
    job = job_at(tmp_path)
    result = tuning.run(job, ["popularity", "covisitation"], trials=30, minutes=0)
    assert [len(values(result, name)) for name in ("popularity", "covisitation")] == [1, 1]
    assert "\n".join(LINES).count("stops after its share of the minutes") == 2


def test_other_data_and_another_default_begin_a_new_study(tmp_path: Path) -> None:
    tables = planted_tables()
    tuning.run(job_at(tmp_path), ["popularity"], trials=3)
    other = replace(tables, info=replace(tables.info, fingerprint="1" * 64))
    assert len(values(tuning.run(job_at(tmp_path, other), ["popularity"], trials=1), "popularity")) == 1
    config = config_for(tables.events)
    config = replace(config, retrievers={**config.retrievers, POPULARITY: {"half_life_days": 3.0}})
    moved = tuning.run(job_at(tmp_path, config=config), ["popularity"], trials=2)
    assert moved.parts["popularity"].default.settings == {"half_life_days": 3.0}
    assert len(values(tuning.run(job_at(tmp_path), ["popularity"], trials=1), "popularity")) == 3, "the first is kept"


@pytest.mark.parametrize(("part", "lacks"), [("ranker", "retrievers_t0"), ("rrf_weights", "retrievers_t1")])
def test_a_part_that_cannot_run_is_refused_before_any_trial(
    part: str, lacks: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_trial(monkeypatch)
    job, parts = job_at(tmp_path), ["popularity", part]
    with pytest.raises(MissingArtefactError, match=rf"{part} cannot .*{lacks} is not there. Run `recsys train` first"):
        tuning.run(job, parts, trials=1)
    write_json((job.home.work / lacks) / "log.json", {"cutoff": 1})
    with pytest.raises(MissingArtefactError, match=rf"{part} cannot .*{lacks} was fitted on other data"):
        tuning.run(job, parts, trials=1)
    shutil.rmtree(job.home.work / lacks)
    leave_retrievers(job)
    shutil.rmtree((job.home.work / lacks) / TWO_TOWER)
    with pytest.raises(MissingArtefactError, match=rf"{part} cannot .*{lacks} lacks the two-tower model"):
        tuning.run(job, parts, trials=1)
    assert not (job.home.reports / "tuning.json").exists()


def test_of_the_usual_parts_what_cannot_run_is_left_out(tmp_path: Path) -> None:
    job = job_at(tmp_path)
    assert list(tuning.run(job, trials=1).parts) == list(tuning.SINGLES)
    for part, lacks in (("rrf_weights", "retrievers_t1"), ("ranker", "retrievers_t0")):
        assert (
            f"tune: {part} is left out. {(job.home.work / lacks)} is not there. Run `recsys train` first."
            in "\n".join(LINES)
        )


# On a trained home, through the command.


@pytest.fixture(scope="module")
def home(trained_home: TrainedHome, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TrainedHome]:
    """A copy that the search may write to."""
    root = tmp_path_factory.mktemp("tuning") / "home"
    shutil.copytree(trained_home.root, root)
    with pytest.MonkeyPatch.context() as patch:
        use_small_settings(patch)
        yield TrainedHome(root, trained_home.raw)


def test_every_part_runs_on_what_train_left(home: TrainedHome) -> None:
    arguments = ["tune", "--home", str(home.root), "--dataset", home.name, "--trials", "2"]
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert done.exit_code == 0
    parts = read_json(home.dataset.reports / "tuning.json")["parts"]
    assert set(parts) == set(tuning.USUAL)
    for name, part in parts.items():
        default, other = (trial["value"] for trial in part["trials"])
        line = next(line for line in done.stdout.splitlines() if line.startswith(f"| {name} "))
        _, _, made, _, first, best, _ = (cell.strip() for cell in line.split("|")[1:-1])
        assert (made, first, best) == ("2", f"{default:.4f}", f"{max(default, other):.4f}")
    tuned = read_json(home.dataset.reports / "tuned.json")
    assert set(tuned) == {"about", "rrf_weights", "ranker", "retrievers"}
    assert set(tuned["rrf_weights"]) == set(RETRIEVERS)
    job = open_pipeline(home.name, read_settings(home.root))
    over = with_tuned(job.config, read_tuned(home.dataset.reports / "tuned.json"))
    assert over.retrievers == tuned["retrievers"]
    assert over.recommender.rrf_weights == tuned["rrf_weights"]
    assert replace(job.config.ranker, **tuned["ranker"]) == over.ranker
    assert job.config.ranker.objective == "binary"
    assert set(tuned["ranker"]) == set(tuning.SPACES["ranker"]) - {"truncation"}
    done = CliRunner().invoke(app, [*arguments, "--parts", "tower, ease"], catch_exceptions=False)
    assert done.exit_code == 0
    assert set(read_json(home.dataset.reports / "tuned.json")["tower"]) == set(tuning.SPACES["tower"])


# In the repository.


@pytest.fixture
def saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where `--save` writes for ml-1m, in a folder of the test's own."""
    monkeypatch.setattr(pipelines.config, "TUNED", tmp_path / "tuned")
    return tmp_path / "tuned" / "ml-1m.json"


def test_save_is_for_official_data(tmp_path: Path, saved: Path) -> None:
    with pytest.raises(ConfigError, match=r"--save keeps settings for official data sets, and planted \(synthetic"):
        tuning.run(job_at(tmp_path), ["popularity"], trials=1, save=True)
    job = official(tmp_path)
    tuning.run(job, ["popularity"], trials=2, save=True)
    assert read_json(saved) == read_json(job.home.reports / "tuned.json")
    assert f"git add {saved}" in "\n".join(LINES)


def test_save_takes_the_named_parts_and_leaves_the_others_with_their_facts(tmp_path: Path, saved: Path) -> None:
    facts = {name: {"best": 0.25, "run": {"machine": f"of {name}"}} for name in ("ials", "popularity", "ranker")}
    earlier = {
        "retrievers": {"ials": {"power": 0.5}, "popularity": {"half_life_days": 3.0}},
        "ranker": {"leaves": 9},
        "about": {"data": {"fingerprint": "0" * 64}, "validation": facts},
    }
    write_json(saved, earlier)
    tuning.run(official(tmp_path), ["ease"], trials=1)  # a short trial run of another part is not saved
    found = tuning.run(official(tmp_path), ["popularity"], trials=2, save=True)
    assert list(found.parts) == ["ease", "popularity"]
    content = read_json(saved)
    assert content["retrievers"] == {"ials": {"power": 0.5}, "popularity": found.parts["popularity"].best.settings}
    assert content["ranker"] == {"leaves": 9}
    validation = content["about"]["validation"]
    assert {name: validation.pop(name) for name in ("ials", "ranker")} == {n: facts[n] for n in ("ials", "ranker")}
    assert list(validation) == ["popularity"]
    assert (validation["popularity"]["trials"], validation["popularity"]["run"]) == (2, found.run.about)


def test_save_begins_the_file_of_other_data_anew(tmp_path: Path, saved: Path) -> None:
    tuning.run(official(tmp_path / "one"), ["ease", "popularity"], trials=1, save=True)
    tuning.run(official(tmp_path / "two", fingerprint="1" * 64), ["popularity"], trials=1, save=True)
    assert read_tuned(saved).fingerprint == "1" * 64
    assert set(read_json(saved)["retrievers"]) == set(read_json(saved)["about"]["validation"]) == {"popularity"}


def test_save_refuses_a_bad_file_before_any_trial(tmp_path: Path, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    no_trial(monkeypatch)
    bad = {"ranker": {"leaves": 7.5}, "about": {"data": {"fingerprint": "0" * 64}}}
    write_json(saved, bad)
    with pytest.raises(ConfigError, match=r"ml-1m.json: ranker.leaves"):
        tuning.run(official(tmp_path), ["popularity"], trials=1, save=True)
    assert read_json(saved) == bad
