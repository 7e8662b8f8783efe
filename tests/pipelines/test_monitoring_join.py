"""Answers joined with what happened next: each event counts once, for the last answer that showed its item."""

import shutil

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from pipelines.monitoring.join import Summary, join, training_table
from recsys import command
from recsys.columns import ITEM_ID, RATING, TIMESTAMP, USER_ID
from recsys.errors import DataError
from recsys.monitoring.events import logged_events
from recsys.monitoring.prediction_log import predictions_folder, read_predictions
from recsys.ranking.ranker import LogisticRanker
from recsys.ranking.training import fit_logistic
from tests.pipelines.monitored_world import DAY, RIGHT, Asked, Monitored, moments, monitored, users
from tests.planted import planted_recommender

AT = moments()[0][1]
HOUR = 3_600


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Monitored:
    return monitored(tmp_path_factory.mktemp("home"))


@pytest.fixture
def world(built: Monitored) -> Monitored:
    """Without events and answers."""
    built.logged.clear()
    built.n_calls = 0
    for folder in (built.home.events, predictions_folder(built.home), built.home.reports):
        shutil.rmtree(folder, ignore_errors=True)
    return built


def joined(world: Monitored, until: float = AT + 3 * DAY) -> tuple[pd.DataFrame, Summary]:
    out = world.home.reports / "impressions.parquet"
    summary = join(predictions_folder(world.home), world.home.events, out, until=int(until))
    return pd.read_parquet(out), summary


def shown(world: Monitored, user_id: int, at: float, **asked: int) -> list[int]:
    (found,) = world.serve([(user_id, at)], asked=Asked(**asked))
    return found.item_ids[0].tolist()


def labels(frame: pd.DataFrame) -> list[tuple[str, int, int]]:
    """(request, item, label) of what is not 0."""
    rows = frame[frame["labels"] != 0]
    return list(zip(rows["request_id"], rows[ITEM_ID], rows["labels"], strict=True))


def test_each_item_shown_is_a_row_with_what_the_log_knows(world: Monitored) -> None:
    ids = shown(world, users()[0], AT)
    world.event(users()[0], ids[2], AT + 60, 4.5)
    frame, summary = joined(world)
    (logged,) = [p for batch in read_predictions(predictions_folder(world.home)) for p in batch]
    assert frame[ITEM_ID].tolist() == ids
    assert frame["position"].tolist() == [1, 2, 3, 4, 5]
    assert frame["labels"].tolist() == [0, 0, 1, 0, 0]
    assert frame[RATING].fillna(-1).tolist() == [-1, -1, 4.5, -1, -1]
    assert frame["propensity"].tolist() == [1.0] * 5
    assert frame["score"].to_numpy().tobytes() == logged.scores.tobytes()
    assert set(frame[USER_ID]) == {users()[0]}
    assert set(frame[TIMESTAMP]) == {int(AT)}
    assert set(frame["bundle_id"]) == {RIGHT}
    assert logged.features is not None
    assert frame[list(logged.feature_names)].to_numpy(np.float32).tobytes() == logged.features.tobytes()
    assert (summary.answers, summary.impressions, summary.positives, summary.rated) == (1, 5, 1, 1)
    assert summary.by_position["positives"].tolist() == [0, 0, 1, 0, 0]
    assert summary.found == 1.0


def test_an_event_counts_for_the_last_answer_that_showed_its_item(world: Monitored) -> None:
    user_id = users()[0]
    first = shown(world, user_id, AT)
    second = shown(world, user_id, AT + HOUR)
    assert first == second
    world.event(user_id, first[0], AT + 60)  # between the two
    world.event(user_id, first[1], AT + HOUR + 60)
    world.event(users()[2], first[2], AT + HOUR + 60)  # somebody else, who was asked nothing
    frame, summary = joined(world)
    assert labels(frame) == [("call-1", first[0], 1), ("call-2", first[1], 1)]
    assert summary.found == 1.0


def test_an_event_that_names_its_answer_counts_for_it(world: Monitored) -> None:
    user_id = users()[0]
    ids = shown(world, user_id, AT)
    shown(world, user_id, AT + HOUR)
    world.event(user_id, ids[0], AT + 2 * HOUR, request_id="call-1")
    world.event(user_id, ids[1], AT + 2 * HOUR, request_id="never heard of")
    frame, _ = joined(world)
    assert labels(frame) == [("call-1", ids[0], 1), ("call-2", ids[1], 1)]


def test_the_horizon_and_what_was_before(world: Monitored) -> None:
    user_id = users()[0]
    ids = shown(world, user_id, AT + 0.5)
    world.event(user_id, ids[0], AT - 1)  # before it was shown
    world.event(user_id, ids[1], AT)  # in the same second: the event's is not known finer
    world.event(user_id, ids[2], AT + DAY - 1)
    world.event(user_id, ids[3], AT + DAY + 1)
    frame, summary = joined(world)
    assert [item for _, item, _ in labels(frame)] == ids[1:3]
    assert summary.found == 0.5


def test_kinds_of_events(world: Monitored) -> None:
    """Seeing is not watching; watching needs no rating; the last of two ratings counts."""
    user_id = users()[0]
    ids = shown(world, user_id, AT)
    world.event(user_id, ids[0], AT + 10, None, kind="impression")
    world.event(user_id, ids[1], AT + 20, None, kind="watch")
    world.event(user_id, ids[2], AT + 30, 1.0)
    world.event(user_id, ids[2], AT + 40, 3.0)
    with next(world.home.events.iterdir()).open("a") as handle:
        handle.write('{"user_id": 1, "torn')
    frame, summary = joined(world)
    assert frame["labels"].tolist() == [0, 1, 1, 0, 0]
    assert frame["seen"].tolist() == [True, False, False, False, False]
    assert frame[RATING].fillna(-1).tolist() == [-1, -1, 3.0, -1, -1]
    assert (summary.positives, summary.rated, summary.seen) == (2, 1, 1)
    assert logged_events(world.home.events)["kind"].tolist() == ["impression", "watch", "rating", "rating"]


def test_what_was_merely_shown_is_nothing_that_a_user_did(world: Monitored) -> None:
    user_id = users()[0]
    ids = shown(world, user_id, AT)
    for item_id in ids:
        world.event(user_id, item_id, AT + 10, None, kind="impression")
    _, summary = joined(world)
    assert (summary.positives, summary.seen, summary.found) == (0, 5, 0.0)
    elsewhere = next(int(i) for i in planted_recommender().catalogue.item_ids if i not in ids)
    world.event(user_id, elsewhere, AT + 20, None, kind="watch")
    world.event(user_id, ids[0], AT + 30, 4.0)
    _, summary = joined(world)
    assert summary.found == 0.5
    assert "Of what these users watched or rated, 50.0% had been shown within the horizon." in summary.text()
    assert pq.read_schema(world.home.reports / "impressions.parquet").metadata[b"recsys.found"] == b"0.5"


def test_answers_younger_than_the_horizon_are_marked(world: Monitored) -> None:
    shown(world, users()[0], AT)
    shown(world, users()[1], AT + HOUR)
    frame, summary = joined(world, until=AT + DAY)
    assert frame.groupby("request_id")["complete"].first().to_dict() == {"call-1": True, "call-2": False}
    assert summary.open_answers == 1
    assert summary.by_position["impressions"].tolist() == [1] * 5
    assert "1 answers are younger than the horizon" in summary.text()


def test_it_is_a_training_table(world: Monitored) -> None:
    """Fitted on clicks on drama alone, the regression puts drama first."""
    catalogue = planted_recommender().catalogue
    drama = catalogue.genres[:, catalogue.genre_names.index("Drama")] > 0
    world.serve(moments())
    for found, (user_id, at) in zip(world.serve(moments(HOUR)), moments(HOUR), strict=True):
        for item_id in found.item_ids[0]:
            if drama[catalogue.to_idx(item_id)]:
                world.event(user_id, int(item_id), at + 60)
    world.serve(moments(2 * HOUR)[:3], degraded=["ranking"])
    frame, summary = joined(world)
    names = planted_recommender().feature_names
    table = training_table(world.home.reports / "impressions.parquet", names)
    positive = frame[frame["labels"] == 1]
    assert len(table.group_sizes) == positive["request_id"].nunique() >= 20
    assert (table.group_sizes == 5).all()
    assert table.labels.sum() == summary.positives
    assert sorted(table.item_id[table.labels == 1]) == sorted(positive[ITEM_ID])
    assert not np.isnan(table.rating[table.labels == 1]).any()
    assert (np.diff(table.timestamp) >= 0).all()
    assert (table.found, len(table.whole)) == (1.0, 0)
    ranker = fit_logistic(table)
    assert isinstance(ranker, LogisticRanker)
    scores = ranker.score(table.features)
    assert scores[table.labels == 1].mean() > scores[table.labels == 0].mean()
    with pytest.raises(DataError, match="has no feature 'more'"):
        training_table(world.home.reports / "impressions.parquet", [*names, "more"])


def test_pages_and_strangers(world: Monitored) -> None:
    """Somebody whose history came along has no id that an event could name; a list without ranking has no features."""
    shown(world, users()[0], AT)
    world.serve([(users()[1], AT + 5)], degraded=["ranking"])
    frame, summary = joined(world)
    assert summary.answers == 2
    assert frame.loc[frame["request_id"] == "call-2", "user_gap"].isna().all()
    assert frame.loc[frame["request_id"] == "call-2", "degraded"].iloc[0].tolist() == ["ranking"]
    assert summary.found == 0.0, "nothing happened"


def test_the_command(world: Monitored, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["logs", "join", "--home", str(world.home.root.parent)]
    assert command.run(arguments) == 2
    assert "holds no answers. Start the service" in capsys.readouterr().err
    ids = shown(world, users()[0], AT)
    world.event(users()[0], ids[0], AT + 30 * 60)
    assert command.run(arguments) == 0
    said = capsys.readouterr()
    assert "1 answers, 5 impressions, 1 watched or rated (20.00%), 1 of them rated" in said.out
    assert "       1            1          1  100.00%" in said.out
    assert said.err == f"written to {world.home.reports / 'impressions.parquet'}\n"
    out = world.home.reports / "elsewhere.parquet"
    assert command.run([*arguments, "--out", str(out), "--horizon-hours", "0.25"]) == 0
    assert pd.read_parquet(out)["labels"].sum() == 0
