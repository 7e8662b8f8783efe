"""`recsys protocol` on a small home: against lists made by hand, and what it may not read."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from pipelines.pipeline import Pipeline, open_pipeline
from pipelines.studies import leave_last_out as last_out
from pipelines.studies import protocols, stratified
from recsys.atomic_io import read_json
from recsys.columns import EASE, IALS, ITEM_ID, ITEM_KNN, POPULARITY, RETRIEVERS, TIMESTAMP, USER_ID
from recsys.errors import DataError
from recsys.evaluation.protocols import leave_last_out, stratified_by_item
from recsys.evaluation.replay import FULL_SYSTEM, LOGISTIC, MERGED
from recsys.features.prediction_points import PredictionPoints
from recsys.retrieval.retrievers import KnownEvents
from recsys.settings import read_settings
from tests.conftest import TrainedHome, use_small_settings
from tests.evaluation.leaderboards import study_run
from tests.pipelines.conftest import run_command


@pytest.fixture(scope="module")
def home(world_files: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TrainedHome]:
    """A home with the tables alone: neither protocol needs a trained model."""
    home = TrainedHome(tmp_path_factory.mktemp("protocols") / "home", world_files)
    with pytest.MonkeyPatch.context() as patch:
        use_small_settings(patch)
        patch.setattr(stratified, "GRID", {name: grid[:2] for name, grid in stratified.GRID.items()})
        assert home.run("data", "--data-dir", str(world_files), "--dataset", home.name) == 0
        yield home


def opened(home: TrainedHome) -> Pipeline:
    return open_pipeline(home.name, read_settings(home.root))


def evaluated(home: TrainedHome, protocol: str) -> dict[str, Any]:
    """The JSON of one run, whose Markdown is what it prints."""
    code, out, err = run_command("protocol", protocol, "--home", home.root, "--dataset", home.name)
    assert code == 0, err
    assert out == (home.dataset.reports / f"protocol-{protocol}.md").read_text(encoding="utf-8")
    assert out.splitlines()[-1].startswith(f"Measured: command: recsys protocol {protocol}; code: ")
    assert "synthetic, not MovieLens" in out
    result: dict[str, Any] = read_json(home.dataset.reports / f"protocol-{protocol}.json")
    assert all(row["name"] in out for row in result["rows"])
    return result


def mean(result: dict[str, Any], method: str, metric: str) -> float:
    return float(next(row for row in result["rows"] if row["name"] == method)["metrics"][metric]["mean"])


# ---- stratified


@pytest.fixture(scope="module")
def by_item(home: TrainedHome) -> dict[str, Any]:
    return evaluated(home, "stratified")


def test_popularity_is_that_of_a_count_by_hand(by_item: dict[str, Any], home: TrainedHome) -> None:
    events, result = home.events, by_item
    trains = stratified_by_item(events[ITEM_ID].to_numpy())
    train, test = events[trains], events[~trains]
    assert (result["facts"]["n_train"], result["facts"]["n_test"]) == (
        len(train),
        test[USER_ID].isin(train[USER_ID]).sum(),
    )
    count = train[ITEM_ID].value_counts()
    items = sorted(count.index, key=lambda item: (-count[item], item))
    precision, recall = [], []
    for user, mine in test.groupby(USER_ID)[ITEM_ID]:
        seen = set(train.loc[train[USER_ID] == user, ITEM_ID])
        if not seen:
            continue
        hits = len(set([item for item in items if item not in seen][:10]) & set(mine))
        precision.append(hits / 10)
        recall.append(hits / len(mine))
    assert result["n_users"] == len(precision)
    assert mean(result, POPULARITY, "precision@10") == pytest.approx(np.mean(precision), abs=1e-12)
    assert mean(result, POPULARITY, "recall@10") == pytest.approx(np.mean(recall), abs=1e-12)


def test_the_inner_split_chooses_the_best_of_what_it_tried(by_item: dict[str, Any]) -> None:
    names = [row["name"] for row in by_item["rows"]]
    assert names == [POPULARITY, ITEM_KNN, IALS, stratified.EASE_STRETCHES, EASE, MERGED, FULL_SYSTEM]
    facts = by_item["facts"]
    assert facts["row_order"] == "tables"
    for name, tried in facts["inner_ndcg@10"].items():
        best = max(tried, key=lambda trial: trial["ndcg@10"])
        assert {**facts["settings"][name], "ndcg@10": best["ndcg@10"]} == best
    assert 0 < facts["inner_retrieved"] <= 1


def test_nothing_is_learnt_from_what_is_held_out(by_item: dict[str, Any], home: TrainedHome) -> None:
    """Held-out ratings go to other users at other times: all choices stay, the measured values move."""
    pipeline = opened(home)
    events = pipeline.data.tables.events
    trains = stratified_by_item(events[ITEM_ID].to_numpy())
    held = events[~trains].copy()
    held[USER_ID] = np.roll(held[USER_ID].to_numpy(), 7)
    held[TIMESTAMP] += 90_000_000
    both = pd.concat([events[trains], held]).drop_duplicates([USER_ID, ITEM_ID]).sort_index()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stratified, "stratified_by_item", lambda _: trains[both.index.to_numpy()])
        measured = stratified.measure(pipeline, study_run(), both, "")
    for name in ("settings", "inner_ndcg@10", "ranker"):
        assert measured.facts[name] == by_item["facts"][name]
    system = next(row for row in measured.rows if row.name == FULL_SYSTEM)
    assert system.metrics["ndcg@10"].mean != mean(by_item, FULL_SYSTEM, "ndcg@10")


def test_the_official_files_give_the_order_of_the_rows_and_others_are_refused(
    home: TrainedHome, tmp_path: Path
) -> None:
    raw = [line.split("::") for line in (home.raw / "ratings.dat").read_text().splitlines()]
    events, of = protocols.events_in_file_order(opened(home), home.raw)
    assert of == "ratings.dat"
    assert events[[USER_ID, ITEM_ID]].to_numpy().tolist() == [[int(r[0]), int(r[1])] for r in raw]
    assert events[USER_ID].tolist() != home.events[USER_ID].tolist(), "else this test says nothing"
    other = shutil.copytree(home.raw, tmp_path / "other")
    with (other / "ratings.dat").open("a") as ratings:
        ratings.write("\n")
    with pytest.raises(DataError, match="holds other files"):
        protocols.events_in_file_order(opened(home), other)


def test_stretches_cut_each_history_twice() -> None:
    """Users 0 and 2 with five and two events, stretches of four: cut at 0, 4 and at 0, 2."""
    users, items = np.array([0, 0, 0, 0, 0, 2, 2]), np.array([10, 11, 12, 13, 14, 10, 15])
    number, item_idx = stratified.stretches(KnownEvents(users, items, np.arange(7), 20, 99), 4)
    cut = sorted(sorted(item_idx[number == n].tolist()) for n in np.unique(number))
    assert cut == sorted([[10, 11, 12, 13], [14], [10, 15], [10, 11], [12, 13, 14], [10, 15]])


def test_states_hold_the_whole_history(home: TrainedHome) -> None:
    pipeline = opened(home)
    part = stratified.Part(pipeline, pipeline.data.tables.events)
    states = part.states(part.users)
    assert states.item_idx.shape[1] == home.events.groupby(USER_ID).size().max() > 64
    for row, user in enumerate(part.users):
        mine = home.events[home.events[USER_ID] == user].sort_values([TIMESTAMP, ITEM_ID])
        known = states.item_idx[row] >= 0
        assert pipeline.data.catalogue.to_ids(states.item_idx[row][known]).tolist() == mine[ITEM_ID].tolist()
        assert states.timestamps[row][known].tolist() == mine[TIMESTAMP].tolist()
        assert known[-len(mine) :].all()


# ---- leave last out


@pytest.fixture(scope="module")
def last(home: TrainedHome) -> dict[str, Any]:
    return evaluated(home, "leave-last-out")


def test_every_method_is_measured_for_every_user(last: dict[str, Any], home: TrainedHome) -> None:
    assert [row["name"] for row in last["rows"]] == [*reversed(RETRIEVERS), MERGED, LOGISTIC, FULL_SYSTEM]
    users = int((home.events.groupby(USER_ID).size() >= 3).sum())
    assert (last["n_users"], last["facts"]["n_test"]) == (users, users)
    assert last["facts"]["n_train"] == len(home.events) - users
    for row in last["rows"]:
        values = {name: cell["mean"] for name, cell in row["metrics"].items()}
        assert 0 <= values["ndcg@10"] <= values["hr@10"] <= values["hr@50"] <= 1, row["name"]


def test_popularity_ranks_all_items_but_those_of_the_history(last: dict[str, Any], home: TrainedHome) -> None:
    events, result = home.events, last
    by_user = events.sort_values([USER_ID, TIMESTAMP, ITEM_ID]).groupby(USER_ID)
    test = by_user.tail(1)
    known = events.drop(test.index)
    half_life = result["facts"]["parameters"]["retrievers"][POPULARITY]["half_life_days"]
    age_days = (known[TIMESTAMP].max() - known[TIMESTAMP]) / 86_400
    score = (0.5 ** (age_days / half_life) + 1e-3).groupby(known[ITEM_ID]).sum()
    ranks = []
    for user, item in zip(test[USER_ID], test[ITEM_ID], strict=True):
        fresh = score.drop(known.loc[known[USER_ID] == user, ITEM_ID])
        ranks.append(1 + int((fresh > fresh[item]).sum()) if item in fresh.index else 10_000)
    rank = np.array(ranks)
    assert mean(result, POPULARITY, "hr@10") == pytest.approx(np.mean(rank <= 10), abs=1e-9)
    assert mean(result, POPULARITY, "hr@50") == pytest.approx(np.mean(rank <= 50), abs=1e-9)
    expected = np.where(rank <= 10, 1 / np.log2(rank + 1), 0).mean()
    assert mean(result, POPULARITY, "ndcg@10") == pytest.approx(expected, abs=1e-9)


def test_states_know_all_but_the_last_event_those_of_its_second_too(home: TrainedHome) -> None:
    pipeline = opened(home)
    events = pipeline.data.tables.events.copy()
    at = events.sort_values([USER_ID, TIMESTAMP, ITEM_ID]).groupby(USER_ID).tail(2)
    latest = at.groupby(USER_ID)[TIMESTAMP].transform("max")
    events.loc[at.index, TIMESTAMP] = latest  # the last two events of everybody fall into one second
    parts = leave_last_out(events)
    known = pipeline.data.with_events(pd.concat([parts.known, parts.validation]))
    contexts = PredictionPoints.from_events(parts.test)
    states = last_out.states_of(known, contexts)
    assert np.array_equal(states.now, contexts.timestamp)
    target = dict(zip(parts.test[USER_ID], parts.test[ITEM_ID], strict=True))
    for row, user in enumerate(contexts.user_id):
        mine = set(events.loc[events[USER_ID] == user, ITEM_ID])
        assert set(pipeline.data.catalogue.to_ids(states.seen_idx[row]).tolist()) == mine - {target[user]}
        assert states.timestamps[row, -1] == states.now[row]


def test_official_files_go_with_the_stratified_protocol_alone(home: TrainedHome) -> None:
    code, out, err = run_command("protocol", "leave-last-out", "--data-dir", ".", "--home", home.root, "-d", home.name)
    assert (code, out) == (2, "")
    assert "--data-dir goes with the protocol stratified" in err
