"""The skew check where the log lacks something, and where item statistics hold logged events."""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from pipelines.monitoring import skew, skew_report
from recsys.columns import ITEM_ID, RATING, TIMESTAMP, USER_ID
from recsys.feature_store import Latest
from recsys.features.item_stats import ItemStats, ItemStatsTimeline, snapshots
from recsys.monitoring.comparison import FACTS
from recsys.monitoring.prediction_files import write_parts
from recsys.monitoring.prediction_log import Prediction, predictions_folder, read_predictions
from tests.pipelines.monitored_world import (
    DAY,
    RIGHT,
    SERVED_DAY,
    Bug,
    Monitored,
    forgetting,
    moments,
    monitored,
    users,
)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Monitored:
    return monitored(tmp_path_factory.mktemp("home"))


@pytest.fixture
def world(built: Monitored) -> Iterator[Monitored]:
    with forgetting(built):
        yield built


def checked(world: Monitored) -> dict[str, Any]:
    return skew.run(world.job, drift=False)


# ---- what the log has lost


def of_shown(p: Prediction, rows: slice) -> Prediction:
    """Only some of what was shown is written."""
    assert p.features is not None
    return replace(
        p,
        item_ids=p.item_ids[rows],
        positions=p.positions[rows],
        scores=p.scores[rows],
        watch_probabilities=p.watch_probabilities[rows],
        like_probabilities=p.like_probabilities[rows],
        propensities=p.propensities[rows],
        features=p.features[rows],
    )


def of_candidates(p: Prediction, rows: slice) -> Prediction:
    return replace(
        p,
        candidate_ids=p.candidate_ids[rows],
        candidate_scores=p.candidate_scores[rows],
        candidate_ranks=p.candidate_ranks[rows],
    )


def with_columns(p: Prediction, columns: slice) -> Prediction:
    assert p.features is not None
    return replace(p, feature_names=p.feature_names[columns], features=p.features[:, columns])


LOST: dict[str, tuple[Callable[[Prediction], Prediction], str]] = {
    "features": (lambda p: replace(p, features=None, feature_names=()), "feature_names"),
    "features but not their names": (lambda p: replace(p, features=None), "feature_names"),
    "a feature": (lambda p: with_columns(p, slice(1, None)), "feature_names"),
    "the order of features": (lambda p: with_columns(p, slice(None, None, -1)), "feature_names"),
    "the end of the list": (lambda p: of_shown(p, slice(3)), "length"),
    "the list": (lambda p: of_shown(p, slice(0)), "length"),
    "positions": (lambda p: replace(p, positions=p.positions[::-1]), "positions"),
    "propensities": (lambda p: replace(p, propensities=p.propensities / 2), "propensities"),
    "candidates": (lambda p: of_candidates(p, slice(0)), "retrieved"),
    "the order of candidates": (lambda p: of_candidates(p, slice(None, None, -1)), "retrieved"),
    "names of retrievers": (lambda p: replace(p, retriever_names=p.retriever_names[::-1]), "retrieved"),
    "ranks of candidates": (lambda p: replace(p, candidate_ranks=p.candidate_ranks + 1), "retrieved"),
    "scores of candidates": (lambda p: replace(p, candidate_scores=p.candidate_scores * 2), "retrieved"),
}


def rewrite(world: Monitored, change: Callable[[Prediction], Prediction]) -> None:
    folder = predictions_folder(world.home)
    logged = [change(p) for batch in read_predictions(folder) for p in batch]
    shutil.rmtree(folder)
    write_parts(folder, logged, "again")


@pytest.mark.parametrize("lost", LOST)
def test_what_the_log_has_lost_is_a_difference(lost: str, world: Monitored) -> None:
    change, fact = LOST[lost]
    world.serve(moments()[:6])
    rewrite(world, change)
    result = checked(world)
    assert (result["compared"], result["mismatching"]) == (6, 6)
    assert {row["name"]: row["answers"] for row in result["facts"]} == {fact: 6}
    assert result["features"] == []
    assert result["verdict"] == "No hypothesis explains the differences."
    assert FACTS[fact] in skew_report.text(result)
    assert skew.failures(result, most_mismatches=0.0, most_left_out=1.0, most_psi=None) == [
        "100.00% of the answers differ, at most 0.00% may"
    ]


def test_answers_without_ranking_name_no_features(world: Monitored) -> None:
    world.serve(moments()[:3], degraded=["ranking"])
    world.serve(moments()[:1])
    result = checked(world)
    assert (result["mismatching"], result["unranked"], result["left_out_share"]) == (0, 3, 0.75)
    assert "Compared without features: 3 answers that say they were made without ranking." in skew_report.text(result)
    assert "Compared without features: 3 answers" in skew_report.page(result)


def test_a_check_that_compared_little_fails(world: Monitored) -> None:
    """As much as is allowed; what never can be compared does not count."""
    world.serve(moments()[:2])
    world.serve(moments()[2:3], degraded=["user_state"])
    world.serve(moments()[3:4], degraded=["ranking"])
    for n, user_id in enumerate(users()[10:20]):
        world.serve([(user_id, moments()[0][1] + 5_000 + n)])
    rewrite(world, lambda p: replace(p, user_id=None) if p.user_id in users()[10:20] else p)
    result = checked(world)
    assert (result["answers"], result["compared"], result["mismatching"]) == (14, 3, 0)
    assert (result["left_out_share"], result["unranked"]) == (0.5, 1)
    assert skew.failures(result, most_mismatches=0.0, most_left_out=0.5, most_psi=None) == []
    assert skew.failures(result, most_mismatches=0.0, most_left_out=0.49, most_psi=None) == [
        "50.00% of the answers have no features that could be compared, at most 49.00% may"
    ]


# ---- statistics that hold logged events


def features_stage(world: Monitored, day: int) -> ItemStats:
    """Item statistics as the features stage makes them from the log as it is now."""
    latest = Latest.of(world.job.histories, world.job.tables.events, world.job.tables.users, world.home.events)
    return ItemStatsTimeline(world.bundles[RIGHT].recommender.catalogue, snapshots(latest.known)).as_of(day)


def test_statistics_count_an_event_from_the_day_on_which_it_was_received(world: Monitored) -> None:
    """One that came two days late, one that came twice, one of the table that came again."""
    last = SERVED_DAY * DAY
    again = world.job.tables.events.iloc[-1]
    world.event(users()[0], 5, last + 3 * DAY, timestamp=last + DAY)
    world.event(users()[1], 5, last + DAY)
    world.event(users()[1], 5, last + 3 * DAY, timestamp=last + DAY)
    same = {TIMESTAMP: int(again[TIMESTAMP])}
    world.event(int(again[USER_ID]), int(again[ITEM_ID]), last + 3 * DAY, float(again[RATING]), **same)
    made = features_stage(world, SERVED_DAY + 4)
    raw = skew.RawEvents(world.job.tables, skew.logged_events(world.home.events))
    found = raw.stats(RIGHT, world.bundles[RIGHT].recommender.catalogue, SERVED_DAY + 4)
    assert made.n_ratings.sum() == 720 + 20 + 2
    for name in ("n_ratings", "n_liked", "rating_sum", "decayed", "first_rated", "last_rated"):
        assert getattr(found, name).tobytes() == getattr(made, name).tobytes(), name
    world.serve([(users()[2], last + 4 * DAY + 60)], Bug(stats=lambda _: made))
    result = checked(world)
    assert (result["mismatching"], result["days_behind"]) == (0, {"0": 1}), skew_report.text(result)
