"""The living world: luck that is shared, visits, releases, a trend, and what lists are worth in it."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from recsys.errors import ConfigError
from recsys.simulation.sessions import attention, luck
from recsys.simulation.truth import TREND_DAYS, Truth
from recsys.simulation.world import WorldSettings
from tests.simulation.conftest import SETTINGS, MakeWorld, live_through, random_lists


def test_luck_is_uniform_and_a_function_of_its_keys() -> None:
    users, visits = np.arange(400)[:, None], np.arange(400)
    draws = luck(5, 0, users, visits)
    assert np.histogram(draws, bins=20, range=(0, 1))[0] == pytest.approx(8_000, abs=5 * np.sqrt(8_000))
    assert abs(np.corrcoef(draws[:, :-1].ravel(), draws[:, 1:].ravel())[0, 1]) < 0.01
    assert abs(np.corrcoef(draws.ravel(), luck(6, 0, users, visits).ravel())[0, 1]) < 0.01
    np.testing.assert_array_equal(draws[7, [3, 1]], luck(5, 0, np.array([7]), np.array([3, 1])))


def test_a_seed_gives_the_same_world_and_another_seed_another(make: MakeWorld) -> None:
    first, again, other = (live_through(world, 10, random_lists) for world in (make(), make(), make(seed=2)))
    pd.testing.assert_frame_equal(first, again)
    assert not first.equals(other)


def test_another_item_in_one_slot_changes_that_slot_alone(make: MakeWorld) -> None:
    world = make()
    visits = world.visits(0)
    lists = random_lists(world, visits, 9)
    changed = lists[:, :8].copy()
    changed[:, 2] = lists[:, 8]
    one, two = (pd.DataFrame(vars(world.look(visits, shown))) for shown in (lists[:, :8], changed))
    same = one["position"] != 2
    pd.testing.assert_frame_equal(one[same], two[same])
    assert not one.equals(two)


def test_two_recommenders_meet_the_same_people_with_the_same_luck(make: MakeWorld) -> None:
    """An item watched in both worlds gets the same stars, although the visits were on other days."""
    tables = live_through(make(), 15, random_lists), live_through(make(), 15, lambda w, visits: w.oracle(visits, 10))
    watched = [table[table["watched"]].set_index(["user_id", "item_id"])["rating"] for table in tables]
    both = pd.concat(watched, axis=1, join="inner").to_numpy()
    assert len(both) > 50
    # Tastes drift a little between the days, which may tip an opinion over to the next star.
    assert (both[:, 0] == both[:, 1]).mean() > 0.95


def test_position_bias_and_probabilities_are_found_again_in_the_outcomes(make: MakeWorld) -> None:
    world = make()
    n = 40_000
    visits = world.visits(0).take(np.arange(n) % len(world.visits(0)))
    visits = replace(visits, number=np.arange(n))
    lists = random_lists(world, visits, 6)
    outcomes, utility = pd.DataFrame(vars(world.look(visits, lists))), world.utility(visits, lists)
    by_slot = outcomes.groupby("position")[["looked", "watched"]].mean()
    np.testing.assert_allclose(by_slot["looked"], attention(6), atol=0.01)
    np.testing.assert_allclose(by_slot["watched"] / by_slot["watched"][0], attention(6), atol=0.05)
    assert outcomes["watched"][outcomes["looked"]].mean() == pytest.approx(utility.watch.mean(), rel=0.03)
    assert set(outcomes["rating"][outcomes["watched"]]) == {1, 2, 3, 4, 5}
    assert outcomes["rating"][~outcomes["watched"]].isna().all()
    likes = (outcomes["rating"] >= 4).sum() / n
    assert likes == pytest.approx(world.expected_likes(visits, lists).mean(), rel=0.05)


def test_oracle_beats_popularity_beats_random(make: MakeWorld, history: pd.DataFrame) -> None:
    world = make()
    visits = world.visits(0)
    fame = history["item_id"].value_counts().reindex(world.truth.item_ids, fill_value=0).to_numpy()
    unseen = world.utility(visits, None).watch > 0
    popular = world.truth.item_ids[np.argsort(np.where(unseen, -fame, 1), axis=1)[:, :10]]
    lists = (random_lists(world, visits), popular, world.oracle(visits, 10))
    random, popularity, best = (world.expected_likes(visits, shown) for shown in lists)
    assert popularity.mean() > 1.3 * random.mean()
    assert best.mean() > 1.5 * popularity.mean()
    assert (best >= np.maximum(popularity, random)).all()
    assert 0.3 < world.utility(visits, lists[2]).watch.mean() < 0.8
    everything = world.oracle(visits, 300)
    assert ((everything >= 0).sum(axis=1) == unseen.sum(axis=1)).all(), "-1 where nothing is left"
    assert len(world.look(visits, everything).item_id) == unseen.sum()


def test_what_somebody_has_watched_is_not_watched_again(make: MakeWorld, history: pd.DataFrame) -> None:
    world = make(replace(SETTINGS, share_held_back=0))
    visits = world.visits(0)
    lists = world.oracle(visits, 10)
    outcomes = world.look(visits, lists)
    world.record(visits, outcomes)
    again = world.look(visits, lists)
    assert outcomes.watched.sum() > 50
    assert not (again.watched & outcomes.watched).any()
    rated = history[history["user_id"] == visits.user_id[0]]["item_id"].to_numpy()
    assert not world.utility(visits.take(np.array([0])), rated[None]).watch.any()


def test_pleased_people_come_back_sooner(make: MakeWorld) -> None:
    away_days = []
    for pleases in (True, False):
        world = make(replace(SETTINGS, share_new=0))
        visits = world.visits(0)
        lists = world.oracle(visits, 10) if pleases else np.full((len(visits), 10), -1)
        world.record(visits, world.look(visits, lists))
        away = [~np.isin(visits.user_id, world.visits(day).user_id) for day in range(100)]
        away_days.append(np.sum(away, axis=0))
    pleased, disappointed = away_days
    assert (pleased <= disappointed).all()
    assert pleased.mean() < 0.7 * disappointed.mean()


def test_a_day_has_each_person_once_in_the_order_of_time(make: MakeWorld) -> None:
    world = make()
    for day in range(5):
        visits = world.visits(day)
        assert len(set(visits.user_id)) == len(visits)
        assert (np.diff(visits.occurred_at_s) >= 0).all()
        assert set((visits.occurred_at_s - world.start_s) // 86_400) <= {day}
        world.record(visits, world.look(visits, random_lists(world, visits)))
        assert not set(world.visits(day).user_id) & set(visits.user_id)


def test_newcomers_arrive_over_time_with_nothing_seen(make: MakeWorld) -> None:
    world = make()
    fresh = [v.newcomer.sum() for v in (world.visits(day) for day in (0, 5, 10, 19))]  # nobody is recorded: they add up
    assert fresh[0] < fresh[1] < fresh[2] < fresh[3] == 48
    visits = world.visits(19)
    assert (visits.user_id[visits.newcomer] > 200).all()
    released = world.truth.released_at_s <= visits.occurred_at_s[0]
    assert (world.utility(visits.take(visits.newcomer), None).watch[:, released] > 0).all()


def test_nobody_watches_what_is_not_released(make: MakeWorld, history: pd.DataFrame) -> None:
    world = make(replace(SETTINGS, share_held_back=0.2))
    lists = world.held_back[:50]
    assert len(world.held_back) == 60
    assert not set(world.known(history)["item_id"]) & set(world.held_back)
    for day in range(20):
        visits = world.visits(day)
        shown = np.tile(lists, (len(visits), 1))
        outcomes = world.look(visits, shown)
        released_at_s = world.truth.released_at_s[np.searchsorted(world.truth.item_ids, outcomes.item_id)]
        early = released_at_s > outcomes.occurred_at_s
        assert not (outcomes.watched & early).any()
        assert early.any() == (day < 16), "the last is released after four fifths of the days"
        assert (outcomes.watched & ~early).any() == (day > 0)


def test_a_trend_raises_its_items_alone(make: MakeWorld) -> None:
    world, quiet = make(replace(SETTINGS, trend_day=4, trend_share=0.1)), make()
    for day in (3, 4, 10):
        visits = world.visits(day)
        gain = world.utility(visits, None).logits - quiet.utility(visits, None).logits
        days = np.maximum((visits.occurred_at_s - world.start_s) / 86_400 - 4, 0)[:, None]
        expected = 1.5 * (1 - np.exp(-days / TREND_DAYS)) * (world.truth.trend > 0)
        np.testing.assert_allclose(gain, expected, atol=1e-5)
    assert (world.truth.trend > 0).sum() == 30


def test_known_people_live_on_and_drift_at_the_pace_of_the_settings(make: MakeWorld, truth: Truth) -> None:
    world, fast = make(), make(replace(SETTINGS, drift_days=20.0))
    known = truth.people.take(world.people.user_ids[:112] - 1)
    later = np.array([world.start_s + 40 * 86_400])
    np.testing.assert_allclose(world.people.taste_at(later)[:112], known.taste_at(later), atol=1e-5)
    np.testing.assert_allclose(fast.people.taste[:112], known.taste_at(np.array([world.start_s])), atol=1e-5)
    rest = known.taste + known.drift - fast.people.taste[:112]
    np.testing.assert_allclose(
        (fast.people.taste_at(later) - fast.people.taste)[:112], rest * (1 - np.exp(-2)), atol=1e-4
    )


def test_what_cannot_be_is_refused(make: MakeWorld) -> None:
    with pytest.raises(ConfigError, match="wants 210 known and 90 new people, the truth has 200 and 60"):
        make(replace(SETTINGS, n_people=300))
    for wrong in ({"share_new": 1.0}, {"days": 0}, {"drift_days": 0.0}):
        with pytest.raises(ConfigError, match="above 0"):
            WorldSettings(**wrong)
    world = make()
    visits = world.visits(0).take(np.array([0]))
    for ids in ([[10**9]], [[world.truth.item_ids[0]] * 2]):
        with pytest.raises(ValueError, match="twice, or one that the world does not have"):
            world.look(visits, np.array(ids))
