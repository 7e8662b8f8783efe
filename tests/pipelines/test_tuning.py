"""The hyper-parameter search: stopped, continued, blind after T2, and through its command on a small trained home.

Stage: tests. Absent: the objectives (`test_objectives`), how tuned settings are read (`test_config`), quality.
"""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd
import pytest
from typer.testing import CliRunner

import pipelines.config
from pipelines.config import PipelineConfig, config_for, tuned_path, with_tuned
from pipelines.job import Job
from pipelines.studies import objectives, tuning
from pipelines.studies.cli import app
from pipelines.studies.objectives import Past, RankerTrials
from pipelines.training import open_job
from recsys.artefacts import read_json, write_json
from recsys.columns import ITEM_ID, POPULARITY, RATING, SOURCES, TIMESTAMP, TWO_TOWER
from recsys.data.tables import Tables
from recsys.errors import ConfigError, MissingArtefactError
from recsys.home import Home
from recsys.settings import read_settings
from tests.conftest import TrainedHome, use_small_settings
from tests.planted import (
    RANKER,
    RECOMMENDER,
    planted_sources,
    planted_split,
    planted_tables,
)


def job_at(root: Path, tables: Tables | None = None, config: PipelineConfig | None = None) -> Job:
    """A job on the planted tables, which are cheap, with nothing trained."""
    tables = tables or planted_tables()
    home = Home(root)
    lines: list[str] = []
    job = Job(
        home, home.dataset("planted"), read_settings(root), config or config_for(tables.events), tables, lines.append
    )
    job.lines = lines  # type: ignore[attr-defined]
    return job


def lines_of(job: Job) -> str:
    return "\n".join(job.lines)  # type: ignore[attr-defined]


def values(result: dict[str, Any], part: str) -> list[float]:
    return [trial["value"] for trial in result["parts"][part]["trials"]]


# Nothing after T2.


def with_other_future(tables: Tables) -> Tables:
    """The same moments after T2, with other movies and ratings."""
    events = tables.events.copy()
    after = events[TIMESTAMP] > planted_split().t2
    assert after.any()
    movies = np.sort(tables.movies[ITEM_ID].to_numpy())
    events.loc[after, ITEM_ID] = movies[::-1][np.searchsorted(movies, events.loc[after, ITEM_ID])]
    events.loc[after, RATING] = np.float32(0.5)
    assert not events.equals(tables.events)
    return replace(tables, events=events)


def test_what_lies_after_t2_changes_nothing(tmp_path: Path) -> None:
    parts = ("ease", "popularity", "covisitation", "fusion")
    one = tuning.run(job_at(tmp_path / "one"), parts, trials=2)
    two = tuning.run(job_at(tmp_path / "two", with_other_future(planted_tables())), parts, trials=2)
    assert [values(one, p) for p in parts] == [values(two, p) for p in parts]
    assert Past.of(planted_tables()).events[TIMESTAMP].max() == planted_split().t2
    assert Past.of(planted_tables()).histories.timestamps.max() == planted_split().t2
    future = Past.of(with_other_future(planted_tables()))
    ranked = [
        RankerTrials(p, planted_sources(p.split.t0), planted_sources(p.split.t1), RANKER, RECOMMENDER)
        for p in (future, Past.of(planted_tables()))
    ]
    np.testing.assert_array_equal(ranked[0].table.features, ranked[1].table.features)
    assert ranked[0].ndcg(RANKER) == ranked[1].ndcg(RANKER)


# Studies.


def test_trial_0_is_the_default_and_settings_stay_in_their_space(tmp_path: Path) -> None:
    job = job_at(tmp_path)
    result = tuning.run(job, ["ials", "ease"], trials=4)
    assert list(result["parts"]) == ["ease", "ials"]
    for name, part in result["parts"].items():
        assert part["trials"][0]["settings"] == job.config.sources[name]
        assert len(part["trials"]) == 4
        assert len({str(t["settings"]) for t in part["trials"]}) == 4
        for trial in part["trials"]:
            for key, value in trial["settings"].items():
                space = tuning.SPACES[name][key]
                assert space.low <= value <= space.high  # type: ignore[attr-defined]
        best = part["trials"][part["best"]]
        assert best["value"] == max(values(result, name))
        tuned = read_json(job.home.reports / "tuned.json")
        assert tuned["sources"][name] == best["settings"]
        assert tuned["about"]["validation"][name]["default"] == part["trials"][0]["value"]
    assert read_json(job.home.reports / "tuning.json") == result
    page = (job.home.reports / "tuning.md").read_text(encoding="utf-8")
    assert "planted (synthetic, not MovieLens)" in page
    assert page.count("\n| 3 | ") == 2


def test_every_default_lies_in_its_space() -> None:
    """For the largest and the smallest data, whose rules end at their bounds."""
    for n, days in ((60, 1), (400_000, 1e4)):
        times = (np.linspace(0, days, n) * 86_400).astype(np.int64)
        config = config_for(pd.DataFrame({TIMESTAMP: times}))
        whole: dict[str, Any] = {**config.sources, "ranker": vars(config.ranker), "tower": vars(config.tower)}
        for name, space in tuning.SPACES.items():
            for key, distribution in space.items():
                value = whole[name][key]
                assert distribution._contains(distribution.to_internal_repr(value)), (name, key, value)
    assert set(tuning.SPACES) == {*config.sources, "ranker", "tower"}


def test_a_search_that_was_stopped_goes_on_as_if_it_had_not_been(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tuning.run(job_at(tmp_path / "whole"), ["popularity"], trials=13)
    original = objectives.source_ndcg
    calls = 0

    def stops(*arguments: Any) -> float:
        nonlocal calls
        calls += 1
        if calls == 12:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(objectives, "source_ndcg", stops)
    with pytest.raises(KeyboardInterrupt):
        tuning.run(job_at(tmp_path / "parts"), ["popularity"], trials=13)
    job = job_at(tmp_path / "parts")
    again = tuning.run(job, ["popularity"], trials=13)
    assert "popularity, 2 of 13 trials to do" in lines_of(job)
    assert calls == 12 + 2
    assert [t["settings"] for t in again["parts"]["popularity"]["trials"]] == [
        t["settings"] for t in whole["parts"]["popularity"]["trials"]
    ]
    tuning.run(job, ["popularity"], trials=13)
    assert "popularity has 13 trials, none to do" in lines_of(job)
    assert calls == 12 + 2


def test_a_default_that_was_interrupted_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stops(*_: Any) -> float:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(objectives, "source_ndcg", stops)
        with pytest.raises(KeyboardInterrupt):
            tuning.run(job_at(tmp_path), ["popularity"], trials=2)
    result = tuning.run(job_at(tmp_path), ["popularity"], trials=2)
    assert result["parts"]["popularity"]["trials"][0]["settings"] == job_at(tmp_path).config.sources[POPULARITY]


def test_minutes_are_shared_and_end_a_part(tmp_path: Path) -> None:
    job = job_at(tmp_path)
    result = tuning.run(job, ["popularity", "covisitation"], trials=30, minutes=0)
    assert [len(values(result, name)) for name in ("popularity", "covisitation")] == [1, 1]
    assert lines_of(job).count("stops after its share of the minutes") == 2


def test_other_data_and_another_default_begin_a_new_study(tmp_path: Path) -> None:
    tables = planted_tables()
    tuning.run(job_at(tmp_path), ["popularity"], trials=3)
    other = replace(tables, source=replace(tables.source, fingerprint="1" * 64))
    assert len(values(tuning.run(job_at(tmp_path, other), ["popularity"], trials=1), "popularity")) == 1
    config = config_for(tables.events)
    config = replace(config, sources={**config.sources, POPULARITY: {"half_life_days": 3.0}})
    moved = tuning.run(job_at(tmp_path, config=config), ["popularity"], trials=2)
    assert moved["parts"]["popularity"]["trials"][0]["settings"] == {"half_life_days": 3.0}
    assert len(values(tuning.run(job_at(tmp_path), ["popularity"], trials=1), "popularity")) == 3, "the first is kept"


def test_another_search_space_begins_a_new_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tuning.run(job_at(tmp_path), ["popularity"], trials=3)
    wider = {"half_life_days": optuna.distributions.FloatDistribution(1, 2_000, log=True)}
    monkeypatch.setitem(tuning.SPACES, POPULARITY, wider)
    assert len(values(tuning.run(job_at(tmp_path), ["popularity"], trials=2), "popularity")) == 2
    monkeypatch.setattr(tuning, "VERSION", 2)
    assert len(values(tuning.run(job_at(tmp_path), ["popularity"], trials=1), "popularity")) == 1


def test_fusion_without_the_tower_is_measured_and_not_kept(tmp_path: Path) -> None:
    job = job_at(tmp_path)
    result = tuning.run(job, ["fusion", "ease"], trials=3)
    assert set(result["parts"]["fusion"]["trials"][0]["settings"]) == set(SOURCES) - {TWO_TOWER}
    assert result["parts"]["fusion"]["trials"][0]["settings"][POPULARITY] == 0.25
    assert set(read_json(job.home.reports / "tuned.json")) == {"about", "sources"}
    assert "fusion was searched without the two-tower model" in lines_of(job)
    more = tuning.run(job, ["ease"], trials=40)
    best = more["parts"]["ease"]["best"]
    assert (best == result["parts"]["ease"]["best"]) == ("fusion" in more["parts"]), "its sources have changed"


def test_an_unknown_part_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no part 'als'; the parts are ease, ials, .*tower"):
        tuning.run(job_at(tmp_path), ["ease", "als"], trials=1)
    assert not job_at(tmp_path).home.root.exists(), "nothing was begun"


def test_the_ranker_needs_what_train_leaves(tmp_path: Path) -> None:
    with pytest.raises(MissingArtefactError, match=r"sources_t0 is not there. Run `recsys train` first"):
        tuning.run(job_at(tmp_path), ["ranker"], trials=1)
    write_json(job_at(tmp_path).work("sources_t0") / "log.json", {"cutoff": 1})
    with pytest.raises(MissingArtefactError, match=r"sources_t0 was fitted on other data"):
        tuning.run(job_at(tmp_path), ["ranker"], trials=1)


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
    result = read_json(home.dataset.reports / "tuning.json")
    assert set(result["parts"]) == set(tuning.USUAL)
    assert all(len(values(result, name)) == 2 for name in tuning.USUAL)
    for name, part in result["parts"].items():
        best, default = max(values(result, name)), values(result, name)[0]
        row = f"| {name} | {part['objective']} | 2 | {part['seconds']:.1f} | {default:.4f} | {best:.4f} |"
        assert row in done.stdout
    tuned = read_json(home.dataset.reports / "tuned.json")
    assert set(tuned) == {"about", "fusion", "ranker", "sources"}
    assert set(tuned["fusion"]) == set(SOURCES)
    job = open_job(home.name, read_settings(home.root))
    over = with_tuned(job.config, home.dataset.reports / "tuned.json")
    assert over.sources == tuned["sources"]
    assert over.recommender.fusion == tuned["fusion"]
    assert replace(job.config.ranker, **tuned["ranker"]) == over.ranker
    assert job.config.ranker.objective == "binary"
    assert set(tuned["ranker"]) == set(tuning.SPACES["ranker"]) - {"truncation"}
    done = CliRunner().invoke(app, [*arguments, "--parts", "tower, ease"], catch_exceptions=False)
    assert done.exit_code == 0
    assert set(read_json(home.dataset.reports / "tuned.json")["tower"]) == set(tuning.SPACES["tower"])


def test_save_is_for_official_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipelines.config, "TUNED", tmp_path / "tuned")
    job = job_at(tmp_path)
    with pytest.raises(ConfigError, match=r"--save keeps settings for official data sets, and planted \(synthetic"):
        tuning.run(job, ["popularity"], trials=1, save=True)
    tables = planted_tables()
    source = replace(tables.source, name="ml-1m", synthetic=False)
    job = job_at(tmp_path, replace(tables, source=source))
    tuning.run(job, ["popularity"], trials=2, save=True)
    path = tuned_path("ml-1m")
    assert path == tmp_path / "tuned" / "ml-1m.json"
    assert read_json(path) == read_json(job.home.reports / "tuned.json")
    assert f"git add {path}" in lines_of(job)
