"""The ranker's table: labels, negatives, thinning, and what statistics it reads."""

from dataclasses import replace
from functools import lru_cache

import numpy as np
import pandas as pd
import pytest

from recsys.columns import ITEM_ID, TIMESTAMP
from recsys.features.item_stats import ItemStats
from recsys.features.prediction_points import PredictionPoints
from recsys.features.state import StateBatch
from recsys.ranking.training import TrainingTable
from recsys.recommender import Recommender
from recsys.training_table import Retrieved, build_training_table, item_days, retrieve_contexts
from tests.planted import (
    RECOMMENDER,
    planted_catalogue,
    planted_histories,
    planted_retrievers,
    planted_split,
    planted_tables,
    planted_timeline,
)

EVERYTHING = 10**6  # negatives: more than there are


@lru_cache
def parts() -> tuple[Recommender, PredictionPoints, StateBatch, list[Retrieved]]:
    split, events = planted_split(), planted_tables().events
    contexts = PredictionPoints.from_events(events[(events[TIMESTAMP] > split.t1) & (events[TIMESTAMP] <= split.t2)])
    states = planted_histories().states_at(contexts.user_id, contexts.timestamp)
    recommender = Recommender(planted_catalogue(), planted_retrievers(split.t1), None, replace(RECOMMENDER, rank=9))
    return recommender, contexts, states, retrieve_contexts(recommender, contexts, states)


def build(negatives: int = EVERYTHING, seed: int = 0, unsampled_candidates: int = 0) -> TrainingTable:
    return build_training_table(
        *parts(), planted_timeline().as_of, negatives=negatives, unsampled_candidates=unsampled_candidates, seed=seed
    )


def happened() -> dict[tuple[int, int], set[int]]:
    """Item ids of each (user, second) of the window, straight from the events."""
    split, out = planted_split(), {}
    for e in planted_tables().events.itertuples():
        if split.t1 < e.timestamp <= split.t2:
            out.setdefault((e.user_id, e.timestamp), set()).add(e.item_id)
    return out


def shown() -> dict[tuple[int, int], list[int]]:
    """Item ids that retrieval gives for each (user, second), asked one at a time."""
    recommender, contexts, _, _ = parts()
    out = {}
    for user, moment in zip(contexts.user_id.tolist(), contexts.timestamp.tolist(), strict=True):
        candidates = recommender.retrieve(planted_histories().states_at(np.array([user]), moment))
        ids = recommender.catalogue.to_ids(candidates.item_idx[0, : recommender.settings.rank])
        out[user, moment] = [i for i in ids.tolist() if i >= 0]
    return out


def by_context(table: TrainingTable) -> dict[tuple[int, int], slice]:
    bounds = np.append(0, np.cumsum(table.group_sizes)).tolist()
    keys = zip(table.user_id.tolist(), table.timestamp.tolist(), strict=True)
    return {key: slice(a, b) for key, a, b in zip(keys, bounds[:-1], bounds[1:], strict=True)}


def test_every_found_context_has_its_candidates_with_the_right_labels() -> None:
    table = build()
    groups, truth, candidates = by_context(table), happened(), shown()
    assert set(groups) == {key for key in truth if truth[key] & set(candidates[key])}
    assert 0 < len(groups) < len(truth), "some contexts were found, some were not"
    for key, rows in groups.items():
        assert table.item_id[rows].tolist() == candidates[key], "what retrieval returned, in its order"
        assert table.labels[rows].tolist() == [int(i in truth[key]) for i in candidates[key]]
    assert len(table) == len(table.labels) == len(table.features) == table.group_sizes.sum()
    assert (np.diff(table.timestamp) >= 0).all()
    assert any(table.labels[rows].sum() > 1 for rows in groups.values()), "several events of one second"


@pytest.mark.parametrize("negatives", [0, 1, 3])
def test_thinning_keeps_all_positives_and_so_many_candidates_in_merged_order(negatives: int) -> None:
    table, whole, candidates = build(negatives), build(), shown()
    all_rows = by_context(whole)
    assert table.found == whole.found
    for key, rows in by_context(table).items():
        positives = whole.item_id[all_rows[key]][whole.labels[all_rows[key]] == 1].tolist()
        mine, labels = table.item_id[rows].tolist(), table.labels[rows]
        assert [i for i, label in zip(mine, labels, strict=True) if label] == positives
        assert len(mine) - len(positives) == min(negatives, len(candidates[key]) - len(positives))
        assert mine == [i for i in candidates[key] if i in mine]
        for item, features in zip(mine, table.features[rows], strict=True):
            row = all_rows[key].start + candidates[key].index(item)
            np.testing.assert_array_equal(features, whole.features[row])


def test_ratings_are_those_of_what_happened() -> None:
    table = build(3)
    events = planted_tables().events
    rated = {(e.user_id, e.timestamp, e.item_id): e.rating for e in events.itertuples()}
    for (user, moment), rows in by_context(table).items():
        for item, label, rating in zip(table.item_id[rows], table.labels[rows], table.rating[rows], strict=True):
            assert rating == rated[user, moment, item] if label else np.isnan(rating)


def test_unsampled_candidates_hold_every_candidate_of_contexts_whatever_was_found() -> None:
    _, contexts, _, _ = parts()
    whole, table = build(1, unsampled_candidates=EVERYTHING).unsampled, build()
    truth, candidates, groups = happened(), shown(), by_context(table)
    assert len(whole) == len(contexts) == len(truth) > len(groups)
    for row, key in enumerate(zip(contexts.user_id.tolist(), contexts.timestamp.tolist(), strict=True)):
        assert whole.timestamp[row] == key[1]
        assert whole.present[row].sum() == len(candidates[key])
        at = np.flatnonzero(whole.present[row])
        assert whole.happened[row, at].tolist() == [i in truth[key] for i in candidates[key]]
        assert not whole.happened[row, ~whole.present[row]].any()
        if key in groups:
            np.testing.assert_array_equal(whole.features[row, at], table.features[groups[key]])


def test_a_sample_of_unsampled_candidates_is_seeded_and_does_not_depend_on_the_thinning() -> None:
    some, again, other = (
        build(1, unsampled_candidates=9).unsampled,
        build(unsampled_candidates=9).unsampled,
        build(1, 5, unsampled_candidates=9).unsampled,
    )
    every = build(unsampled_candidates=EVERYTHING).unsampled
    for name in ("features", "present", "happened", "timestamp"):
        np.testing.assert_array_equal(getattr(some, name), getattr(again, name))
    assert len(some) == 9 < len(every)
    assert (np.diff(some.timestamp) >= 0).all()
    assert some.timestamp.tolist() != other.timestamp.tolist()
    for features, moment in zip(some.features, some.timestamp, strict=True):
        same = np.flatnonzero(every.timestamp == moment)
        assert any(np.array_equal(features, every.features[row], equal_nan=True) for row in same)
    assert len(build().unsampled) == 0
    np.testing.assert_array_equal(build(1, unsampled_candidates=9).item_id, build(1).item_id)


def test_statistics_of_the_listed_items_and_days_are_all_that_features_read() -> None:
    """Every other item's statistics are rubbish, and not a feature moves."""
    recommender, _, states, retrieved = parts()
    pairs = item_days(recommender, states, retrieved)
    assert list(pairs.columns) == [ITEM_ID, "day"]
    assert not pairs.duplicated().any()
    listed = {(int(d), int(i)) for i, d in zip(pairs[ITEM_ID], pairs["day"], strict=True)}

    def partly(day: int) -> ItemStats:
        stats = planted_timeline().as_of(day)
        rubbish = np.array([(day, int(i)) not in listed for i in planted_catalogue().item_ids])
        assert rubbish.any(), "the list is shorter than the catalogue"
        return replace(
            stats,
            n_ratings=np.where(rubbish, 1e6, stats.n_ratings).astype(np.float32),
            n_liked=np.where(rubbish, 2e6, stats.n_liked).astype(np.float32),
            rating_sum=np.where(rubbish, 3e6, stats.rating_sum).astype(np.float32),
            decayed=np.where(rubbish[:, None], 4e6, stats.decayed).astype(np.float32),
            first_rated=np.where(rubbish, 5, stats.first_rated),
            last_rated=np.where(rubbish, 6, stats.last_rated),
        )

    filled = build_training_table(*parts(), partly, negatives=EVERYTHING)
    np.testing.assert_array_equal(filled.features, build().features)


def test_a_window_without_events_gives_an_empty_table() -> None:
    recommender, _, _, _ = parts()
    nothing = PredictionPoints.from_events(planted_tables().events.iloc[:0])
    states = planted_histories().states_at(nothing.user_id, nothing.timestamp)
    retrieved = retrieve_contexts(recommender, nothing, states)
    assert retrieved == []
    pairs = item_days(recommender, states, retrieved)
    assert isinstance(pairs, pd.DataFrame)
    assert len(pairs) == 0
    table = build_training_table(recommender, nothing, states, retrieved, planted_timeline().as_of, negatives=5)
    assert len(table) == 0
    assert table.features.shape == (0, len(recommender.feature_names))
    assert table.found == 0.0
    assert len(table.group_sizes) == len(table.user_id) == len(table.rating) == len(table.unsampled) == 0
