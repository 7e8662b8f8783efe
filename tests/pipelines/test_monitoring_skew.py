"""The skew check: nothing differs where nothing is wrong, and each planted bug is found and named."""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from pipelines.monitoring import skew, skew_report
from recsys import command
from recsys.bundle import save_retrievers
from recsys.columns import ITEM_ID
from recsys.errors import DataError
from recsys.features.item_stats import ItemStats, snapshots
from recsys.features.state import Event
from recsys.recommender import Filters
from tests.pipelines.monitored_world import (
    DAY,
    END,
    OTHER,
    RIGHT,
    SERVED_DAY,
    Asked,
    Bug,
    Known,
    Monitored,
    folded,
    forgetting,
    moments,
    monitored,
    unseen,
    users,
)
from tests.planted import planted_catalogue, planted_retrievers, planted_split, planted_tables, planted_timeline


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Monitored:
    return monitored(tmp_path_factory.mktemp("home"))


@pytest.fixture
def world(built: Monitored) -> Iterator[Monitored]:
    with forgetting(built):
        yield built


def checked(world: Monitored, **options: Any) -> dict[str, Any]:
    return skew.run(world.job, **{"drift": False, **options})


def test_nothing_differs_where_nothing_is_wrong(world: Monitored) -> None:
    """Single answers and batches, filters, variety, longer lists than shown, strangers, users who rated since."""
    world.serve(moments())
    world.serve(moments(1_000), asked=Asked(length=20))
    world.serve(moments(2_000)[:9], asked=Asked(filters=Filters(genres=("Comedy",), exclude_ids=(5, 8))))
    world.serve(moments(3_000)[:9], asked=Asked(diversity=0.5))
    world.serve(moments(4_000)[:7], together=True)
    world.serve([(424_242, moments()[0][1] + 5_000), (999, moments()[0][1] + 5_001)])
    result = checked(world)
    assert (result["answers"], result["compared"], result["mismatching"]) == (147, 147, 0), skew_report.text(result)
    assert (result["features"], result["facts"], result["left_out"]) == ([], [], {})
    assert result["values"] == sum(b * K_SHOWN for b in (60, 60, 9, 9, 7, 2)) * len(names(world))
    assert result["verdict"] == "Nothing differs."
    assert result["bundles"] == {RIGHT: 147}
    assert skew.failures(result, most_mismatches=0.0, most_left_out=0.5, most_psi=None) == []


K_SHOWN = 5


def names(world: Monitored) -> tuple[str, ...]:
    return world.bundles[RIGHT].recommender.feature_names


def behind(_known: Known, events: list[Event]) -> Known:
    newest = max(events, key=lambda e: (e.timestamp, e.item_id))
    return folded(_known[0].user_id, [e for e in events if e is not newest])


def scaled(known: Known, events: list[Event]) -> Known:
    return folded(known[0].user_id, [replace(e, rating=e.rating / 5) for e in events])


def right_name(stats: ItemStats) -> ItemStats:
    return replace(stats, day=SERVED_DAY)


def day_missed(stats: ItemStats) -> ItemStats:
    """As a join gives them that leaves out the newest day: decayed up to the right day, but without its events."""
    table = snapshots(planted_tables().events)
    rows = table[table["snapshot_day"] < stats.day].drop_duplicates(ITEM_ID, keep="last")
    assert len(rows) < len(table)
    return ItemStats.from_rows(planted_catalogue(), rows, stats.day)


BUGS = {
    "statistics of the day before under the right name": (
        Bug(stats=lambda stats: planted_timeline().as_of(stats.day - 1), named=right_name),
        "item statistics of the day before the right one",
        {"popularity_7d", "popularity_30d"},
    ),
    "statistics of the day before under their own name": (
        Bug(stats=lambda stats: planted_timeline().as_of(stats.day - 1)),
        "item statistics of the day before the right one",
        {"popularity_7d", "popularity_30d", "days_since_last_rated"},
    ),
    "statistics without the last day": (
        Bug(stats=day_missed),
        "item statistics of the right day that hold events up to the day before it",
        {"popularity_7d", "mean_rating"},
    ),
    "statistics of a day that has not ended": (
        Bug(stats=lambda stats: planted_timeline().as_of(stats.day + 1)),
        "item statistics of the day after the right one",
        {"popularity_7d", "popularity_30d", "days_since_last_rated"},
    ),
    "two columns swapped": (
        Bug(columns=("mean_rating", "popularity_30d")),
        "feature columns swapped: popularity_30d and mean_rating",
        {"mean_rating", "popularity_30d"},
    ),
    "a stale state": (
        Bug(known=behind),
        "a stale user state, 1 event behind",
        {"user_events", "similarity_last"},
    ),
    "another bundle": (
        Bug(answered_by=OTHER),
        f"another bundle than the answer names: {OTHER}",
        {"two_tower_score", "similarity_last"},
    ),
    "ratings out of five counted as shares of one": (
        Bug(known=scaled),
        "ratings multiplied by 0.2: every rating of the user before it is counted",
        {"user_mean_rating", "user_last_rating", "user_liked_share"},
    ),
    "ratings doubled on the way to the models": (
        Bug(states=lambda states: replace(states, ratings=states.ratings * np.float32(2))),
        "ratings multiplied by 2: the ratings in the window of the state, not their sums",
        {"user_last_rating"},
    ),
    "ratings of items doubled": (
        Bug(stats=lambda stats: replace(stats, rating_sum=stats.rating_sum * np.float32(2))),
        "ratings multiplied by 2: those in the statistics of items",
        {"mean_rating"},
    ),
}


@pytest.mark.parametrize("name", BUGS)
def test_a_planted_bug_is_found_and_named(name: str, world: Monitored) -> None:
    bug, cause, features = BUGS[name]
    world.serve(moments()[::4], bug)
    result = checked(world)
    assert result["share"] > 0.9, "nearly every answer is wrong"
    assert features <= {row["name"] for row in result["features"]}
    assert result["findings"][0]["says"] == cause
    assert result["findings"][0]["share"] >= 0.9
    assert result["verdict"].startswith(f"Likely cause: {cause}. It explains")
    assert cause in skew_report.text(result)
    assert skew.failures(result, most_mismatches=0.0, most_left_out=0.5, most_psi=None) == [
        f"{result['share']:.2%} of the answers differ, at most 0.00% may"
    ]


def test_a_bug_in_some_answers_is_told_by_its_share(world: Monitored) -> None:
    world.serve(moments()[:45])
    world.serve(moments()[45:], Bug(columns=("mean_rating", "decade")))
    result = checked(world)
    assert (result["compared"], result["mismatching"], result["share"]) == (60, 15, 0.25)
    assert {row["name"]: row["share"] for row in result["features"]} == {"mean_rating": 0.25, "decade": 0.25}
    assert [row["name"] for row in result["facts"]] in (["order", "probabilities", "scores"], [])
    assert skew.failures(result, most_mismatches=0.25, most_left_out=0.5, most_psi=None) == []


def test_a_cause_that_was_not_thought_of(world: Monitored) -> None:
    world.serve(moments()[::6], Bug(states=lambda states: replace(states, n_liked=states.n_liked + 1)))
    result = checked(world)
    assert [row["name"] for row in result["features"]] == ["user_liked_share"]
    assert result["groups"] == ["user habits"]
    assert result["verdict"].startswith("No hypothesis explains the differences.")
    assert "of: user habits" in result["verdict"]


def test_events_of_the_same_moment_may_or_may_not_be_known(world: Monitored) -> None:
    """Within RACE_S of an answer the log cannot tell; earlier, an event that is missing is a mismatch."""
    user_id, at = moments()[0]
    fresh = unseen(world, user_id, at)
    world.serve([(user_id, at + 0.4)])
    world.event(user_id, fresh, at + 0.9)  # the log says `at`: whole seconds
    result = checked(world)
    assert result["mismatching"] == 0, skew_report.text(result)
    world.serve([(user_id, at + 1.4), (user_id, at + 10)])
    assert checked(world)["mismatching"] == 0
    world.serve([(user_id, at + 20)], Bug(known=behind))
    result = checked(world)
    assert result["mismatching"] == 1
    assert {"n_events", "last_event"} <= {row["name"] for row in result["facts"]}


def test_a_late_event_is_known_only_once_it_was_received(world: Monitored) -> None:
    user_id, at = moments()[1]
    fresh = unseen(world, user_id, at)
    world.serve([(user_id, at)])
    world.event(user_id, fresh, at + 100, timestamp=int(at) - 3 * DAY, received=int(at) + 100)
    world.serve([(user_id, at + 200)])
    result = checked(world)
    assert (result["compared"], result["mismatching"]) == (2, 0), skew_report.text(result)


def test_the_moment_is_held_against_the_clock(world: Monitored) -> None:
    world.serve(moments()[:5], Bug(states=lambda states: replace(states, now=states.now + 3_600)))
    result = checked(world)
    assert {row["name"]: row["answers"] for row in result["facts"]} == {"now": 5}


def test_statistics_that_the_log_could_have_refreshed_are_told(world: Monitored) -> None:
    world.event(users()[0], 5, END + 3 * DAY)
    world.serve([(users()[1], END + 5 * DAY)])
    result = checked(world)
    assert result["mismatching"] == 0
    assert sum(int(days) * n for days, n in result["days_behind"].items()) == 3
    assert "Item statistics were older than the log allowed in 1 answers" in skew_report.text(result)


def test_refreshed_statistics_hold_the_log(world: Monitored) -> None:
    """Of a later day than the tables: then they were made with the logged events."""
    raw = skew.RawEvents(world.job.tables, skew.logged_events(world.home.events))
    catalogue = world.bundles[RIGHT].recommender.catalogue
    last = raw.last_day
    assert raw.stats(RIGHT, catalogue, last).n_ratings.sum() == 720
    world.event(users()[0], 5, END + 3 * DAY)
    raw = skew.RawEvents(world.job.tables, skew.logged_events(world.home.events))
    refreshed = raw.stats(RIGHT, catalogue, last + 3)
    assert refreshed.n_ratings.sum() == 720 + 20 + 1
    world.serve([(users()[1], END + 5 * DAY)], Bug(stats=lambda _: refreshed))
    result = checked(world)
    assert (result["mismatching"], result["days_behind"]) == (0, {"0": 1}), skew_report.text(result)


def test_what_cannot_be_compared_is_counted_by_its_reason(world: Monitored) -> None:
    world.serve(moments()[:3], degraded=["ranking"])  # compared: the order of retrieval
    world.serve(moments()[:2], degraded=["user_state"])
    world.serve(moments()[:1], degraded=["ranking", "retrieval"])
    world.serve(moments()[:1], asked=Asked(filters=Filters(exclude_ids=tuple(range(1_000, 3_000)))))
    folder = world.home.bundles / RIGHT
    result = checked(world)
    assert (result["answers"], result["compared"], result["mismatching"]) == (7, 3, 0), skew_report.text(result)
    assert result["left_out"] == {
        "answered without the user's state, as it says": 2,
        "the cold-start list, in place of an answer": 1,
        "its filters were too long to keep": 1,
    }
    aside = folder.with_name("aside")
    folder.rename(aside)
    try:
        result = checked(world)
    finally:
        aside.rename(folder)
    assert result["compared"] == 0
    assert result["left_out"][f"its bundle {RIGHT} is gone"] == 3
    assert skew.failures(result, most_mismatches=0.0, most_left_out=0.5, most_psi=None) == [
        "no answer could be compared"
    ]
    assert skew_report.headline(result) == "None of 7 logged answers could be compared."


def test_no_answers(world: Monitored) -> None:
    with pytest.raises(DataError, match="holds no answers"):
        checked(world)


# ---- distributions and the report


def test_distributions_need_the_retrievers_that_the_ranker_learnt_with(world: Monitored) -> None:
    world.serve(moments()[:3])
    result = checked(world, drift=True)
    assert result["drift"] == []
    assert result["no_drift_because"].endswith("which made the ranker's training rows, is gone; run `recsys train`")
    assert skew.failures(result, most_mismatches=0.0, most_left_out=0.5, most_psi=0.2)[0].startswith(
        "distributions could not be compared"
    )
    assert skew.failures(result, most_mismatches=0.0, most_left_out=0.5, most_psi=None) == []


def test_the_command_writes_a_report_and_ends_with_1_where_anything_differs(
    world: Monitored, capsys: pytest.CaptureFixture[str]
) -> None:
    save_retrievers(planted_retrievers(planted_split().t2), world.job.work("retrievers_t2"))
    arguments = ["skew", "--home", str(world.home.root.parent)]
    world.serve(moments()[:40])
    assert command.run(arguments) == 0
    said = capsys.readouterr().out
    assert re.search(
        r"40 answers with [\d,]+ feature values equal their recomputation to the bit\.\nNothing differs", said
    )
    world.serve(moments(), degraded=["user_state"])
    assert command.run(arguments) == 1
    assert (
        "60.00% of the answers have no features that could be compared, at most 50.00% may" in capsys.readouterr().err
    )
    assert command.run([*arguments, "--max-left-out", "0.6"]) == 0
    world.serve(moments()[40:], Bug(columns=("mean_rating", "popularity_30d")))
    assert command.run(arguments) == 1
    said = capsys.readouterr()
    assert "20 of 60 answers (33.33%) differ from their recomputation." in said.out
    assert "recsys skew: 33.33% of the answers differ, at most 0.00% may" in said.err
    assert command.run([*arguments, "--max-mismatch", "0.34"]) == 0
    assert command.run([*arguments, "--max-mismatch", "0.34", "--max-psi", "0.0001"]) == 1
    assert "features have a PSI above 0.0001" in capsys.readouterr().err

    result = json.loads((world.home.reports / "skew.json").read_text())
    assert {d["name"] for d in result["drift"]} == set(names(world))
    psi = [d["psi"] for d in result["drift"]]
    assert psi == sorted(psi, reverse=True)
    gap = next(d for d in result["drift"] if d["name"] == "user_gap")
    assert gap["psi"] > 0.2, "everybody was away, in training somebody was in the middle of a sitting"
    assert (world.home.reports / "skew.txt").read_text() == skew_report.text(result)
    page = (world.home.reports / "skew.html").read_text()
    assert skew_report.headline(result) in page
    assert page.count("data:image/png;base64,") == 3
    assert "feature columns swapped: popularity_30d and mean_rating" in page
    assert "<script" not in page


def test_the_page_escapes_what_came_from_outside(world: Monitored) -> None:
    world.serve(moments()[:2], Bug(columns=("mean_rating", "popularity_30d")))
    result = checked(world)
    result["features"][0]["example"] = "<script>alert(1)</script>"
    assert "&lt;script&gt;" in skew_report.page(result)
    assert "<script" not in skew_report.page(result)


def test_since_and_most(world: Monitored) -> None:
    world.serve(moments())
    assert checked(world, since=SERVED_DAY * DAY + 3_600 + 7 * 50)["answers"] == 10
    assert checked(world, most=4)["answers"] == 4
