"""The hyper-parameter search: stopped, continued, blind after T2, and through its command on a small trained home."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from pipelines.config import PipelineConfig, config_for, read_tuned, with_tuned
from pipelines.pipeline import Pipeline, open_pipeline
from pipelines.studies import objectives, tuning
from pipelines.studies.objectives import RankerTrials
from pipelines.studies.tuning_report import Trials, best_of
from pipelines.training_set import TrainingSet
from recsys.atomic_io import read_json, write_json
from recsys.bundle import save_retrievers
from recsys.columns import ITEM_ID, POPULARITY, RATING, RETRIEVERS, TIMESTAMP
from recsys.data.tables import Tables
from recsys.errors import ConfigError, MissingArtefactError
from recsys.settings import read_settings
from recsys.workspace import Workspace
from tests.conftest import TrainedHome
from tests.pipelines.conftest import run_command
from tests.planted import RANKER, RECOMMENDER, planted_retrievers, planted_split, planted_tables

SPLIT = planted_split()
LINES: list[str] = []


def pipeline_at(root: Path, tables: Tables | None = None, config: PipelineConfig | None = None) -> Pipeline:
    """A pipeline on the planted tables, which are cheap, with nothing trained. What it reports is in LINES."""
    tables = tables or planted_tables()
    LINES.clear()
    config = config or config_for(tables.events)
    data = TrainingSet(tables, tables.info)
    return Pipeline(Workspace(root).dataset("planted"), read_settings(root), config, data, LINES.append)


def leave_retrievers(pipeline: Pipeline) -> Pipeline:
    """What a training leaves, as far as the search reads it."""
    for stage, cutoff in (("retrievers_t0", SPLIT.t0), ("retrievers_t1", SPLIT.t1)):
        save_retrievers(planted_retrievers(cutoff), pipeline.home.work / stage)
        write_json(pipeline.home.work / stage / "log.json", {"cutoff": cutoff})
    return pipeline


def values(trials: Trials) -> list[float]:
    return [trial.values[0] for trial in trials]


def settings(trials: Trials) -> list[dict[str, Any]]:
    return [trial.params for trial in trials]


def with_other_future(tables: Tables) -> Tables:
    """The same moments after T2, with other items and ratings."""
    events = tables.events.copy()
    after = events[TIMESTAMP] > SPLIT.t2
    items = np.sort(tables.items[ITEM_ID].to_numpy())
    events.loc[after, ITEM_ID] = items[::-1][np.searchsorted(items, events.loc[after, ITEM_ID])]
    events.loc[after, RATING] = np.float32(0.5)
    assert not events.equals(tables.events)
    return replace(tables, events=events)


def test_what_lies_after_t2_changes_nothing(tmp_path: Path) -> None:
    parts = ("ease", "popularity", "covisitation", "rrf_weights")
    worlds = (planted_tables(), with_other_future(planted_tables()))
    pipelines = [leave_retrievers(pipeline_at(tmp_path / str(n), tables)) for n, tables in enumerate(worlds)]
    one, two = (tuning.run(pipeline, parts, trials=2) for pipeline in pipelines)
    assert [values(one[p]) for p in parts] == [values(two[p]) for p in parts]
    pasts = [tuning.Search(pipeline, None).data for pipeline in pipelines]  # type: ignore[arg-type]
    assert all(past.histories.timestamps.max() == SPLIT.t2 for past in pasts)
    before, after = planted_retrievers(SPLIT.t0), planted_retrievers(SPLIT.t1)
    first, second = (RankerTrials(past, before, after, RANKER, RECOMMENDER) for past in pasts)
    np.testing.assert_array_equal(first.table.features, second.table.features)
    assert first.ndcg(RANKER) == second.ndcg(RANKER)


def test_trial_0_is_the_default_and_settings_stay_in_their_space(tmp_path: Path) -> None:
    pipeline = pipeline_at(tmp_path)
    made = tuning.run(pipeline, ["ials", "ease"], trials=4)
    assert list(made) == ["ease", "ials"]
    tuned = read_json(pipeline.home.reports / "tuned.json")
    for name, trials in made.items():
        assert trials[0].params == pipeline.config.retrievers[name]
        assert len({str(tried) for tried in settings(trials)}) == 4
        for tried in settings(trials):
            for key, value in tried.items():
                space = tuning.SPACES[name][key]
                assert space.low <= value <= space.high  # type: ignore[attr-defined]
        assert best_of(trials).values[0] == max(values(trials))
        assert tuned["retrievers"][name] == best_of(trials).params
        assert tuned["about"]["validation"][name]["default"] == values(trials)[0]
    page = (pipeline.home.reports / "tuning.md").read_text(encoding="utf-8")
    assert "planted (synthetic, not MovieLens)" in page
    assert page.count("\n| 3 ") + page.count("\n| **3**") == 2


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
    whole = tuning.run(pipeline_at(tmp_path / "whole"), ["popularity"], trials=13)
    original, calls = objectives.retriever_ndcg, []

    def stops(*arguments: Any) -> float:
        calls.append(1)
        if len(calls) == 12:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(objectives, "retriever_ndcg", stops)
    with pytest.raises(KeyboardInterrupt):
        tuning.run(pipeline_at(tmp_path / "parts"), ["popularity"], trials=13)
    again = tuning.run(pipeline_at(tmp_path / "parts"), ["popularity"], trials=13)
    assert LINES[0] == "tune: popularity, 2 of 13 trials to do"
    assert settings(again["popularity"]) == settings(whole["popularity"])
    assert len(calls) == 12 + 2


def test_other_data_and_another_default_begin_a_new_study(tmp_path: Path) -> None:
    tables = planted_tables()
    tuning.run(pipeline_at(tmp_path), ["popularity"], trials=3)
    other = replace(tables, info=replace(tables.info, fingerprint="1" * 64))
    assert len(tuning.run(pipeline_at(tmp_path, other), ["popularity"], trials=1)["popularity"]) == 1
    config = config_for(tables.events)
    config = replace(config, retrievers={**config.retrievers, POPULARITY: {"half_life_days": 3.0}})
    moved = tuning.run(pipeline_at(tmp_path, config=config), ["popularity"], trials=2)
    assert moved["popularity"][0].params == {"half_life_days": 3.0}
    kept = tuning.run(pipeline_at(tmp_path), ["popularity"], trials=1)
    assert len(kept["popularity"]) == 3, "the first is kept"


@pytest.mark.parametrize(("part", "lacks"), [("ranker", "retrievers_t0"), ("rrf_weights", "retrievers_t1")])
def test_a_part_that_cannot_run_is_refused_before_any_trial(part: str, lacks: str, tmp_path: Path) -> None:
    pipeline, parts = pipeline_at(tmp_path), ["popularity", part]
    with pytest.raises(MissingArtefactError, match=rf"{part} cannot .*{lacks} is not there. Run `recsys train` first"):
        tuning.run(pipeline, parts, trials=1)
    write_json(pipeline.home.work / lacks / "log.json", {"cutoff": 1})
    with pytest.raises(MissingArtefactError, match=rf"{part} cannot .*{lacks} was fitted on other data"):
        tuning.run(pipeline, parts, trials=1)
    with pytest.raises(ConfigError, match="there is no part 'als'; the parts are ease, ials, "):
        tuning.run(pipeline, ["als"], trials=1)
    assert not (pipeline.home.reports / "tuning.md").exists()
    assert LINES == []


def test_every_part_runs_on_what_train_left(changed_home: TrainedHome) -> None:
    parts = ",".join((*tuning.USUAL, "tower"))
    at = ("--home", changed_home.root, "--dataset", changed_home.name)
    code, out, err = run_command("tune", "--trials", "2", "--parts", parts, *at)
    assert code == 0, err
    tuned = read_json(changed_home.dataset.reports / "tuned.json")
    for name, part in tuned["about"]["validation"].items():
        line = next(line for line in out.splitlines() if line.startswith(f"| {name} "))
        _, _, made, _, default, best, _ = (cell.strip() for cell in line.split("|")[1:-1])
        assert (made, default, best) == ("2", f"{part['default']:.4f}", f"{part['best']:.4f}")
    assert set(tuned) == {"about", "rrf_weights", "ranker", "retrievers", "tower"}
    assert set(tuned["rrf_weights"]) == set(RETRIEVERS)
    assert set(tuned["ranker"]) == set(tuning.SPACES["ranker"]) - {"truncation"}, "that is of the other objective"
    pipeline = open_pipeline(changed_home.name, read_settings(changed_home.root))
    over = with_tuned(pipeline.config, read_tuned(changed_home.dataset.reports / "tuned.json"))
    assert over.retrievers == tuned["retrievers"]
    assert over.recommender.rrf_weights == tuned["rrf_weights"]
    assert over.ranker == replace(pipeline.config.ranker, **tuned["ranker"])
