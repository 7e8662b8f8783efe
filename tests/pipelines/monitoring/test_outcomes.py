"""Answers joined with what happened next: each event counts once, for the last answer that showed its item."""

import numpy as np
import pandas as pd
import pytest

from recsys import command
from recsys.columns import ITEM_ID, RATING, TIMESTAMP
from recsys.monitoring.outcomes import outcomes, user_totals
from recsys.monitoring.prediction_log import feature_columns, predictions_folder, read_answers

from .conftest import DAY, USERS, Monitored, moments

AT = moments()[0][1]
HOUR = 3_600
USER, NEIGHBOUR = USERS[30:32]  # have no events after training


def joined(world: Monitored, until: float = AT + 3 * DAY) -> tuple[pd.DataFrame, float]:
    return outcomes(read_answers(predictions_folder(world.home)), world.table, until=int(until))


def shown(world: Monitored, user_id: int, at: float) -> list[int]:
    (made,) = world.serve([(user_id, at)])
    return [int(item_id) for item_id in made.item_ids[0]]


def positives(impressions: pd.DataFrame) -> list[tuple[str, int]]:
    rows = impressions[impressions["labels"] == 1]
    return list(zip(rows["request_id"], rows[ITEM_ID], strict=True))


def test_each_item_shown_is_a_row_with_what_the_log_holds(world: Monitored) -> None:
    ids = shown(world, USER, AT)
    world.event(USER, ids[2], AT + 60, 4.5)
    rows, found = joined(world)
    logged = read_answers(predictions_folder(world.home))
    assert rows[ITEM_ID].tolist() == ids
    assert rows["labels"].tolist() == [0, 0, 1, 0, 0]
    assert rows[RATING].fillna(-1).tolist() == [-1, -1, 4.5, -1, -1]
    assert set(rows[TIMESTAMP]) == {int(AT)}
    names = [*feature_columns(logged), "score"]
    assert rows[names].to_numpy(np.float32).tobytes() == logged[names].to_numpy(np.float32).tobytes()
    assert found == 1.0


def test_answers_without_any_event_have_no_positives(world: Monitored) -> None:
    shown(world, USER, AT)
    assert joined(world)[0]["labels"].sum() == 0


def test_an_event_counts_for_the_answer_that_it_names_or_the_last_that_showed_its_item(world: Monitored) -> None:
    ids = shown(world, USER, AT)
    assert ids == shown(world, USER, AT + HOUR)
    world.event(USER, ids[0], AT + 60)  # between the two
    world.event(USER, ids[1], AT + HOUR + 60)
    world.event(NEIGHBOUR, ids[2], AT + HOUR + 60)  # to whom nothing was shown
    world.event(USER, ids[3], AT + 2 * HOUR, request_id="call-1")
    world.event(USER, ids[4], AT + 2 * HOUR, request_id="unknown")
    rows, found = joined(world)
    assert positives(rows) == [("call-1", ids[0]), ("call-1", ids[3]), ("call-2", ids[1]), ("call-2", ids[4])]
    assert found == 1.0


def test_an_event_counts_within_the_horizon_from_the_second_of_the_answer_on(world: Monitored) -> None:
    ids = shown(world, USER, AT + 0.5)
    for item_id, at in zip(ids, (AT - 1, AT, AT + DAY - 1, AT + DAY + 1), strict=False):
        world.event(USER, item_id, at)
    rows, found = joined(world)
    assert [item for _, item in positives(rows)] == ids[1:3]
    assert found == 0.5


def test_a_confirmed_impression_is_not_watching_and_the_last_rating_counts(world: Monitored) -> None:
    ids = shown(world, USER, AT)
    world.event(USER, ids[0], AT + 10, None, kind="impression")
    world.event(USER, ids[1], AT + 20, None, kind="watch")
    world.event(USER, ids[2], AT + 30, 1.0)
    world.event(USER, ids[2], AT + 40, 3.0)
    rows, found = joined(world)
    assert rows["labels"].tolist() == [0, 1, 1, 0, 0]
    assert rows["seen"].tolist() == [True, False, False, False, False]
    assert rows[RATING].fillna(-1).tolist() == [-1, -1, 3.0, -1, -1]
    assert found == 1.0
    assert rows[["rated", "liked"]].sum().tolist() == [1, 0]


def test_totals_are_one_row_a_user(world: Monitored) -> None:
    ids = shown(world, USER, AT)
    shown(world, USER, AT + HOUR)
    shown(world, NEIGHBOUR, AT)
    world.event(USER, ids[1], AT + 60, 5.0)
    totals = user_totals(joined(world)[0], "liked")
    assert (totals.numerator.tolist(), totals.denominator.tolist()) == ([1, 0], [10, 5])


def test_answers_younger_than_the_horizon_are_incomplete_and_users_without_an_id_have_no_row(world: Monitored) -> None:
    shown(world, USER, AT)
    shown(world, NEIGHBOUR, AT + HOUR)
    world.serve([(USERS[32], AT)], user_id=None)
    rows, _ = joined(world, until=AT + DAY)
    assert rows.groupby("request_id")["complete"].first().to_dict() == {"call-1": True, "call-2": False}


def test_the_command(world: Monitored, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["logs", "join", "--home", str(world.home.root.parent)]
    assert command.run(arguments) == 2
    assert "holds no answers. Start `recsys serve`" in capsys.readouterr().err
    ids = shown(world, USER, AT)
    world.event(USER, ids[0], AT + 30 * 60)
    out = world.home.reports / "elsewhere.parquet"
    assert command.run([*arguments, "--out", str(out), "--horizon-hours", "0.25"]) == 0
    assert pd.read_parquet(out)["labels"].sum() == 0
    assert command.run(arguments) == 0
    printed = capsys.readouterr().out
    assert "1 answers, 5 impressions, 1 watched or rated (20.00%), 1 of them rated" in printed
    assert "100.00%" in printed
    assert pd.read_parquet(world.home.reports / "impressions.parquet")["labels"].sum() == 1
