"""The skew check: nothing differs where nothing is wrong, and what differs is named, with where."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipelines import training_set
from pipelines.monitoring.skew import SMALLEST_SAMPLE
from recsys import command
from recsys.bundle import save_retrievers
from recsys.columns import ITEM_ID
from recsys.errors import DataError
from recsys.features.item_stats import ItemStats, ItemStatsTimeline, snapshots
from recsys.features.state import Event
from recsys.filters import Filters
from recsys.monitoring.prediction_log import predictions_folder
from tests.pipelines.monitoring.monitored_world import (
    DAY,
    END,
    OTHER,
    RIGHT,
    SERVED_DAY,
    Bug,
    Monitored,
    moments,
    users,
)
from tests.planted import planted_catalogue, planted_retrievers, planted_split, planted_tables, planted_timeline

N_SHOWN = 5


def test_nothing_differs_where_nothing_is_wrong(world: Monitored) -> None:
    """Filters, variety, longer lists than shown, strangers, users who rated since."""
    world.serve(moments())
    world.serve(moments(1_000), length=20)
    world.serve(moments(2_000)[:9], filters=Filters(genres=("Comedy",), exclude_ids=(5, 8)))
    world.serve(moments(3_000)[:9], diversity=0.5)
    world.serve(moments(4_000)[:7])
    world.serve([(424_242, moments()[0][1] + 5_000), (999, moments()[0][1] + 5_001)])
    report = world.check()
    assert (report.answers, report.compared, report.differing) == (147, 147, 0), report.text()
    assert (report.differences, report.left_out, report.bundles) == ((), {}, {RIGHT: 147})
    assert report.values == 147 * N_SHOWN * len(world.bundles[RIGHT].recommender.feature_names)
    assert "147 answers with" in report.text()
    assert report.failures(max_mismatch=0.0, max_left_out=0.0, max_psi=None) == []


def day_missed(stats: ItemStats) -> ItemStats:
    """As a join gives them that leaves out the newest day: decayed up to the right day, but without its events."""
    table = snapshots(planted_tables().events)
    rows = table[table["snapshot_day"] < stats.day].drop_duplicates(ITEM_ID, keep="last")
    return ItemStats.from_rows(planted_catalogue(), rows, stats.day)


def shares_of_one(events: list[Event]) -> list[Event]:
    return [replace(event, rating=event.rating / 5) for event in events]


BUGS = {
    "statistics of the day before under the right name": (
        Bug(stats=lambda stats: planted_timeline().as_of(stats.day - 1), named_day=SERVED_DAY),
        {"popularity_7d", "popularity_30d"},
    ),
    "statistics of the day before under their own name": (
        Bug(stats=lambda stats: planted_timeline().as_of(stats.day - 1)),
        {"statistics_day"},
    ),
    "statistics without the last day": (Bug(stats=day_missed), {"popularity_7d", "mean_rating"}),
    "statistics of a day that has not ended": (
        Bug(stats=lambda stats: planted_timeline().as_of(stats.day + 1)),
        {"statistics_day"},
    ),
    "two columns swapped": (Bug(columns=("mean_rating", "popularity_30d")), {"mean_rating", "popularity_30d"}),
    "a stale state": (
        Bug(events=lambda events: sorted(events, key=lambda e: (e.timestamp, e.item_id))[:-1]),
        {"user_events", "similarity_last"},
    ),
    "another bundle": (Bug(answered_by=OTHER), {"two_tower_score", "similarity_last"}),
    "ratings out of five counted as shares of one": (
        Bug(events=shares_of_one),
        {"user_mean_rating", "user_last_rating", "user_liked_share"},
    ),
    "ratings doubled on the way to the models": (
        Bug(states=lambda states: replace(states, ratings=states.ratings * np.float32(2))),
        {"user_last_rating"},
    ),
    "ratings of items doubled": (
        Bug(stats=lambda stats: replace(stats, rating_sum=stats.rating_sum * np.float32(2))),
        {"mean_rating"},
    ),
    "likes counted once too often": (
        Bug(states=lambda states: replace(states, n_liked=states.n_liked + 1)),
        {"user_liked_share"},
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
    assert report.failures(max_mismatch=0.0, max_left_out=0.5, max_psi=None) == [
        f"{report.share:.2%} of the answers differ, at most 0.00% may"
    ]


def test_a_bug_in_some_answers_is_told_by_its_share_and_its_worst_place(world: Monitored) -> None:
    world.serve(moments()[:45])
    found = world.serve(moments()[45:], Bug(columns=("mean_rating", "decade")))
    report = world.check()
    assert (report.compared, report.differing, report.share) == (60, 15, 0.25)
    by_name = {d.name: d for d in report.differences}
    worst = by_name["mean_rating"]
    assert (worst.answers, worst.largest) == (15, pytest.approx(abs(worst.logged - worst.recomputed)))
    number = int(worst.request_id.removeprefix("call-"))
    assert number > 45
    assert worst.item_id in found[number - 46].item_ids
    assert f"{worst.request_id}, item {worst.item_id}: logged {worst.logged:.9g}" in report.text()
    assert report.failures(max_mismatch=0.25, max_left_out=0.5, max_psi=None) == []


def test_a_state_knows_exactly_the_events_that_its_number_says(world: Monitored) -> None:
    """Whatever the clocks say: a late event, one in the same second, one of the future of another answer."""
    user_id, at = moments()[1]
    fresh = world.unseen(user_id, at)
    world.serve([(user_id, at)])
    world.event(user_id, fresh, at + 100, occurred_at=int(at) - 3 * DAY)
    world.event(user_id, fresh, at + 100, 1.0)
    world.serve([(user_id, at + 100), (user_id, at + 200)])
    assert world.check().differing == 0
    world.logged["state_seq"] = world.table.safe_seq() - 1
    world.serve([(user_id, at + 300)])
    report = world.check()
    assert (report.compared, report.differing) == (4, 1)
    assert "user_mean_rating" in {d.name for d in report.differences}


def test_statistics_hold_the_events_that_the_features_stage_took(world: Monitored) -> None:
    user_id = users()[0]
    seq = world.event(user_id, 5, END + 3 * DAY)
    taken = training_set.take(world.home, world.table)
    made = ItemStatsTimeline(planted_catalogue(), snapshots(taken.tables.events)).as_of(SERVED_DAY + 3)
    world.event(user_id, 8, END + 3 * DAY + 60)  # after it, and in no statistics yet
    world.serve([(users()[1], END + 5 * DAY)], Bug(stats=lambda _: made))
    world.logged["statistics_seq"] = seq
    world.serve([(users()[2], END + 5 * DAY)], Bug(stats=lambda _: made))
    report = world.check()
    assert (report.compared, report.differing) == (2, 0), report.text()
    world.logged["statistics_seq"] = seq - 1
    world.serve([(users()[3], END + 5 * DAY)], Bug(stats=lambda _: made))
    assert "popularity_7d" in {d.name for d in world.check().differences}


def test_what_the_log_lost_is_a_difference(world: Monitored) -> None:
    world.serve(moments()[:6])
    (part,) = predictions_folder(world.home).glob("*/*.parquet")
    rows = pq.read_table(part)
    first_three = rows.filter(np.tile([True] * 3 + [False] * 2, 6)).drop_columns(["mean_rating"])
    pq.write_table(first_three, part)
    report = world.check()
    assert {d.name: d.answers for d in report.differences} == {"shown": 6, "mean_rating": 6}


def test_what_cannot_be_compared_is_counted_by_its_reason(world: Monitored) -> None:
    world.serve(moments()[:3], degraded=("ranking",))  # compared, without features
    world.serve(moments()[:2], degraded=("user_state",))
    world.serve(moments()[:1], degraded=("ranking", "retrieval"))
    world.serve(moments()[:1], filters=Filters(exclude_ids=tuple(range(1_000, 3_000))))
    world.logged["user_id"] = None
    world.serve(moments()[:1])
    world.logged.clear()
    world.logged |= {"first_position": 6, "recommendations": None, "state_seq": None}
    world.serve(moments()[:1])
    report = world.check()
    assert (report.answers, report.compared, report.differing, report.unranked) == (9, 3, 0, 3), report.text()
    assert report.left_out == {
        "answered without the user's state, as it says": 2,
        "a further page of a list": 1,
        "its history came with the request and is not kept": 1,
        "the cold-start list, in place of an answer": 1,
        "its filters were too long to keep": 1,
    }
    assert report.failures(max_mismatch=0.0, max_left_out=0.5, max_psi=None) == [
        "100.00% of the answers have no features to compare, at most 50.00% may"
    ]


def test_answers_of_a_bundle_that_is_gone(world: Monitored) -> None:
    world.serve(moments()[:2])
    folder = world.home.bundles / RIGHT
    folder.rename(folder.with_name("aside"))
    try:
        report = world.check()
    finally:
        folder.with_name("aside").rename(folder)
    assert report.left_out == {"its bundle is gone": 2}
    assert report.failures(max_mismatch=0.0, max_left_out=0.5, max_psi=None) == ["no answer could be compared"]
    assert "None of 2 logged answers could be compared." in report.text()


def test_answers_since_a_moment(world: Monitored) -> None:
    with pytest.raises(DataError, match="holds no answers"):
        world.check()
    world.serve(moments())
    assert world.check(since=SERVED_DAY * DAY + 3_600 + 7 * 50).answers == 10


# -- distributions and the command -------------------------------------------------------------------------------------


def test_too_few_answers_have_no_distribution(world: Monitored) -> None:
    world.serve(moments()[:1])
    report = world.check(drift=True)
    assert report.drift == {}
    assert report.no_drift == f"1 ranked answers of {RIGHT} are too few, {SMALLEST_SAMPLE} are needed"
    assert report.no_drift in report.text()
    assert report.failures(max_mismatch=0.0, max_left_out=0.5, max_psi=0.2) == [
        f"distributions could not be compared: {report.no_drift}"
    ]


def test_the_command_reports_and_ends_with_1_where_anything_differs(
    world: Monitored, capsys: pytest.CaptureFixture[str]
) -> None:
    save_retrievers(planted_retrievers(planted_split().t2), world.home.work / "retrievers_t2")
    arguments = ["skew", "--home", str(world.home.root.parent)]
    for after in (0, 1_000, 2_000, 3_000):
        world.serve(moments(after))
    assert command.run(arguments) == 0
    assert "240 answers with" in capsys.readouterr().out
    world.serve(moments(4_000), Bug(columns=("mean_rating", "popularity_30d")))
    assert command.run(arguments) == 1
    said = capsys.readouterr()
    assert "60 of 300 answers (20.00%) differ from their recomputation." in said.out
    assert "recsys skew: 20.00% of the answers differ, at most 0.00% may" in said.err
    assert command.run([*arguments, "--max-mismatch", "0.2"]) == 0
    assert command.run([*arguments, "--max-mismatch", "0.2", "--max-psi", "0.0001"]) == 1
    assert "features have a PSI above 0.0001" in capsys.readouterr().err

    stored = json.loads((world.home.reports / "skew.json").read_text())
    assert stored["share"] == 0.2
    assert set(stored["drift"]) == set(world.bundles[RIGHT].recommender.feature_names)
    psi = {name: drift["psi"] for name, drift in stored["drift"].items()}
    assert psi["user_gap"] > 0.2, "everybody was away, in training somebody was in the middle of a sitting"
    assert "240 answers" not in (world.home.reports / "skew.txt").read_text(), "written anew"
    shutil.rmtree(world.home.work)
    assert "retrievers_t2 holds no retriever" in world.check(drift=True).no_drift
