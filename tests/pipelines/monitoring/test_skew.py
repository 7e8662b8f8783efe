"""The skew check: nothing differs where nothing is wrong, and what differs is named, with where."""

import json
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipelines import training_set
from recsys import command
from recsys.columns import ITEM_ID
from recsys.errors import DataError
from recsys.features.item_stats import ItemStats, ItemStatsTimeline, snapshots
from recsys.filters import Filters
from recsys.monitoring.prediction_log import predictions_folder
from tests.planted import planted_catalogue, planted_tables, planted_timeline

from .conftest import DAY, END, OTHER, RIGHT, SERVED_DAY, USERS, Bug, K, Monitored, moments


def test_nothing_differs_where_nothing_is_wrong(world: Monitored) -> None:
    """Filters, variety, longer lists than shown, unknown users, users who rated since."""
    world.serve(moments())
    world.serve(moments(1_000)[:9], length=20)
    world.serve(moments(2_000)[:9], filters=Filters(genres=("Comedy",), exclude_ids=(5, 8)))
    world.serve(moments(3_000)[:9], diversity=0.5)
    world.serve([(424_242, moments()[0][1] + 5_000), (999, moments()[0][1] + 5_001)])
    report = world.check()
    assert (report.answers, report.compared, report.differing) == (89, 89, 0), report.text()
    assert (report.differences, report.left_out) == ((), {})
    assert report.values == 89 * K * len(world.recommenders[RIGHT].feature_names)
    assert report.failures(max_mismatch=0.0) == []


def day_missed(stats: ItemStats) -> ItemStats:
    """As a join gives them that leaves out the newest day: decayed up to the right day, but without its events."""
    table = snapshots(planted_tables().events)
    rows = table[table["snapshot_day"] < stats.day].drop_duplicates(ITEM_ID, keep="last")
    return ItemStats.from_rows(planted_catalogue(), rows, stats.day)


BUGS = {
    "statistics of the day before": (
        Bug(stats=lambda stats: planted_timeline().as_of(stats.day - 1)),
        {"statistics_day"},
    ),
    "statistics without the last day": (Bug(stats=day_missed), {"popularity_7d", "mean_rating"}),
    "two columns swapped": (Bug(columns=("mean_rating", "popularity_30d")), {"mean_rating", "popularity_30d"}),
    "a stale state": (
        Bug(events=lambda events: sorted(events, key=lambda e: (e.timestamp, e.item_id))[:-1]),
        {"user_events", "similarity_last"},
    ),
    "another bundle": (Bug(answered_by=OTHER), {"two_tower_score", "similarity_last"}),
    "ratings doubled on the way to the models": (
        Bug(states=lambda states: replace(states, ratings=states.ratings * np.float32(2))),
        {"user_last_rating"},
    ),
    "a clock that is an hour ahead": (Bug(states=lambda states: replace(states, now=states.now + 3_600)), {"now"}),
}


@pytest.mark.parametrize("name", BUGS)
def test_a_planted_bug_is_found_and_the_features_are_named(name: str, world: Monitored) -> None:
    bug, features = BUGS[name]
    world.serve(moments()[::4], bug)
    report = world.check()
    assert report.share > 0.9, "nearly every answer is wrong"
    assert features <= {difference.name for difference in report.differences}


def test_a_bug_in_some_answers_is_reported_by_its_share_and_its_worst_place(
    world: Monitored, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["skew", "--home", str(world.home.root.parent)]
    world.serve(moments()[:45])
    assert command.run(arguments) == 0
    assert "45 answers and" in capsys.readouterr().out
    wrong = world.serve(moments()[45:], Bug(columns=("mean_rating", "decade")))
    assert command.run(arguments) == 1
    printed = capsys.readouterr()
    assert "15 of 60 answers (25.00%) differ from their recomputation." in printed.out
    assert "recsys skew: 25.00% of the answers differ, at most 0.00% may" in printed.err
    assert command.run([*arguments, "--max-mismatch", "0.25"]) == 0

    stored = json.loads((world.home.reports / "skew.json").read_text())
    assert stored["share"] == 0.25
    worst = next(each for each in stored["differences"] if each["name"] == "mean_rating")
    assert (worst["answers"], worst["largest"]) == (15, abs(worst["logged"] - worst["recomputed"]))
    number = int(worst["request_id"].removeprefix("call-"))
    assert number > 45
    assert worst["item_id"] in wrong[number - 46].item_ids
    where = f"{worst['request_id']}, item {worst['item_id']}: logged {worst['logged']:.9g}"
    assert where in (world.home.reports / "skew.txt").read_text()


def test_a_state_holds_exactly_the_events_that_its_number_says(world: Monitored) -> None:
    """Whatever the clocks say: a late event, one in the same second, one of the future of another answer."""
    user_id, at = moments()[1]
    fresh = world.unseen(user_id, at)
    world.serve([(user_id, at)])
    world.event(user_id, fresh, at + 100, occurred_at=int(at) - 3 * DAY)
    world.event(user_id, fresh, at + 100, 1.0)
    world.serve([(user_id, at + 100), (user_id, at + 200)])
    assert world.check().differing == 0
    world.serve([(user_id, at + 300)], state_seq=world.table.safe_seq() - 1)
    report = world.check()
    assert (report.compared, report.differing) == (4, 1)
    assert "user_mean_rating" in {d.name for d in report.differences}


def test_statistics_hold_the_events_that_the_features_stage_took(world: Monitored) -> None:
    seq = world.event(USERS[0], 5, END + 3 * DAY)
    taken = training_set.take(world.home, world.table)
    made = ItemStatsTimeline(planted_catalogue(), snapshots(taken.tables.events)).as_of(SERVED_DAY + 3)
    world.event(USERS[0], 8, END + 3 * DAY + 60)  # after it, and in no statistics yet
    served = Bug(stats=lambda _: made)
    world.serve([(USERS[1], END + 5 * DAY)], served)
    world.serve([(USERS[2], END + 5 * DAY)], served, statistics_seq=seq)
    report = world.check()
    assert (report.compared, report.differing) == (2, 0), report.text()
    world.serve([(USERS[3], END + 5 * DAY)], served, statistics_seq=seq - 1)
    assert "popularity_7d" in {d.name for d in world.check().differences}


def test_what_the_log_lost_is_a_difference(world: Monitored) -> None:
    world.serve(moments()[:6])
    (part,) = predictions_folder(world.home).rglob("*.parquet")
    kept = pq.read_table(part).filter(np.tile([True] * 3 + [False] * 2, 6)).drop_columns(["mean_rating"])
    pq.write_table(kept, part)
    assert {d.name: d.answers for d in world.check().differences} == {"shown": 6, "mean_rating": 6}


def test_what_cannot_be_compared_is_counted_by_its_reason(world: Monitored) -> None:
    for reason in ("ranking", "user_state", "retrieval"):
        world.serve(moments()[:1], degraded=("explain", reason))
    world.serve(moments()[:1], filters=Filters(exclude_ids=tuple(range(1_000, 3_000))))
    world.serve(moments()[:1], user_id=None)
    world.serve(moments()[:1], first_position=6, recommendations=None, state_seq=None)
    world.serve(moments()[:1], bundle_id="gone")
    report = world.check()
    assert report.left_out == dict.fromkeys(
        [
            "a further page of a list",
            "its history came with the request and is not kept",
            "the cold-start list, in place of an answer",
            "answered without the user's state, as it says",
            "not ranked, as it says",
            "its filters were too long to keep",
            "its bundle is gone",
        ],
        1,
    )
    assert "None of 7 logged answers could be compared." in report.text()
    assert report.failures(max_mismatch=0.0) == ["only 0 of 5 answers could be compared"]


def test_answers_since_a_moment(world: Monitored) -> None:
    with pytest.raises(DataError, match="holds no answers"):
        world.check()
    world.serve(moments())
    assert world.check(since=SERVED_DAY * DAY + 3_600 + 7 * 50).answers == 10
