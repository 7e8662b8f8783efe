"""Answers joined with what happened next: each event counts once, for the last answer that showed its item."""

import numpy as np
import pandas as pd
import pytest

from pipelines.monitoring.join import JoinSummary, join
from recsys import command
from recsys.columns import ITEM_ID, RATING, TIMESTAMP, USER_ID
from recsys.monitoring.prediction_log import predictions_folder, read_answers
from tests.pipelines.monitoring.monitored_world import DAY, RIGHT, Monitored, moments, users

AT = moments()[0][1]
HOUR = 3_600
USER = users()[30]  # has no events after training


def joined(world: Monitored, until: float = AT + 3 * DAY) -> tuple[pd.DataFrame, JoinSummary]:
    out = world.home.reports / "impressions.parquet"
    summary = join(predictions_folder(world.home), world.table, out, until=int(until))
    return pd.read_parquet(out), summary


def shown(world: Monitored, user_id: int, at: float) -> list[int]:
    (found,) = world.serve([(user_id, at)])
    return [int(item_id) for item_id in found.item_ids[0]]


def labels(frame: pd.DataFrame) -> list[tuple[str, int]]:
    """(request, item) of what was watched or rated."""
    rows = frame[frame["labels"] == 1]
    return list(zip(rows["request_id"], rows[ITEM_ID], strict=True))


def test_each_item_shown_is_a_row_with_what_the_log_knows(world: Monitored) -> None:
    ids = shown(world, USER, AT)
    world.event(USER, ids[2], AT + 60, 4.5)
    frame, summary = joined(world)
    (logged,) = read_answers(predictions_folder(world.home))
    assert frame[ITEM_ID].tolist() == ids
    assert frame["position"].tolist() == [1, 2, 3, 4, 5]
    assert frame["labels"].tolist() == [0, 0, 1, 0, 0]
    assert frame[RATING].fillna(-1).tolist() == [-1, -1, 4.5, -1, -1]
    assert frame["propensity"].tolist() == [1.0] * 5
    assert (set(frame[USER_ID]), set(frame[TIMESTAMP]), set(frame["bundle_id"])) == ({USER}, {int(AT)}, {RIGHT})
    names = list(world.bundles[RIGHT].recommender.feature_names)
    for columns in (names, ["score"]):
        assert frame[columns].to_numpy(np.float32).tobytes() == logged[columns].to_numpy(np.float32).tobytes()
    assert (summary.answers, summary.impressions, summary.positives, summary.rated) == (1, 5, 1, 1)
    assert summary.by_position["positives"].tolist() == [0, 0, 1, 0, 0]
    assert summary.found == 1.0


def test_an_event_counts_for_the_last_answer_that_showed_its_item(world: Monitored) -> None:
    first, second = shown(world, USER, AT), shown(world, USER, AT + HOUR)
    assert first == second
    world.event(USER, first[0], AT + 60)  # between the two
    world.event(USER, first[1], AT + HOUR + 60)
    world.event(users()[31], first[2], AT + HOUR + 60)  # somebody else, who was asked nothing
    frame, summary = joined(world)
    assert labels(frame) == [("call-1", first[0]), ("call-2", first[1])]
    assert summary.found == 1.0


def test_an_event_that_names_its_answer_counts_for_it(world: Monitored) -> None:
    ids = shown(world, USER, AT)
    shown(world, USER, AT + HOUR)
    world.event(USER, ids[0], AT + 2 * HOUR, request_id="call-1")
    world.event(USER, ids[1], AT + 2 * HOUR, request_id="never heard of")
    assert labels(joined(world)[0]) == [("call-1", ids[0]), ("call-2", ids[1])]


def test_the_horizon_and_what_was_before(world: Monitored) -> None:
    ids = shown(world, USER, AT + 0.5)
    for item_id, at in zip(ids, (AT - 1, AT, AT + DAY - 1, AT + DAY + 1), strict=False):
        world.event(USER, item_id, at)  # the second is of the same second as the answer
    frame, summary = joined(world)
    assert [item for _, item in labels(frame)] == ids[1:3]
    assert summary.found == 0.5


def test_kinds_of_events(world: Monitored) -> None:
    """Seeing is not watching; watching needs no rating; the last of two ratings counts."""
    ids = shown(world, USER, AT)
    world.event(USER, ids[0], AT + 10, None, kind="impression")
    world.event(USER, ids[1], AT + 20, None, kind="watch")
    world.event(USER, ids[2], AT + 30, 1.0)
    world.event(USER, ids[2], AT + 40, 3.0)
    frame, summary = joined(world)
    assert frame["labels"].tolist() == [0, 1, 1, 0, 0]
    assert frame["seen"].tolist() == [True, False, False, False, False]
    assert frame[RATING].fillna(-1).tolist() == [-1, -1, 3.0, -1, -1]
    assert (summary.positives, summary.rated, summary.seen, summary.found) == (2, 1, 1, 1.0)


def test_answers_younger_than_the_horizon_are_marked(world: Monitored) -> None:
    shown(world, USER, AT)
    shown(world, users()[31], AT + HOUR)
    frame, summary = joined(world, until=AT + DAY)
    assert frame.groupby("request_id")["complete"].first().to_dict() == {"call-1": True, "call-2": False}
    assert summary.open_answers == 1
    assert summary.by_position["impressions"].tolist() == [1] * 5


def test_answers_without_ranking_have_no_features_and_strangers_no_row(world: Monitored) -> None:
    shown(world, USER, AT)
    world.serve([(users()[31], AT + 5)], degraded=("ranking",))
    world.logged["user_id"] = None
    world.serve([(users()[32], AT + 9)])
    frame, summary = joined(world)
    assert (summary.answers, summary.found) == (2, 0.0)
    assert frame.loc[frame["request_id"] == "call-2", "user_gap"].isna().all()
    assert frame.loc[frame["request_id"] == "call-1", "user_gap"].notna().all()


def test_the_command(world: Monitored, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["logs", "join", "--home", str(world.home.root.parent)]
    assert command.run(arguments) == 2
    assert "holds no answers. Start the service" in capsys.readouterr().err
    ids = shown(world, USER, AT)
    world.event(USER, ids[0], AT + 30 * 60)
    assert command.run(arguments) == 0
    said = capsys.readouterr()
    assert "1 answers, 5 impressions, 1 watched or rated (20.00%), 1 of them rated" in said.out
    assert "100.00%" in said.out
    assert said.err == f"written to {world.home.reports / 'impressions.parquet'}\n"
    out = world.home.reports / "elsewhere.parquet"
    assert command.run([*arguments, "--out", str(out), "--horizon-hours", "0.25"]) == 0
    assert pd.read_parquet(out)["labels"].sum() == 0
