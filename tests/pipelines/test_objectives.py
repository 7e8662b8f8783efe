"""What the search maximises: against the real merge, the replay, `Recommender.recommend` and sums by hand."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipelines.studies import objectives
from pipelines.studies.objectives import Fusion, Past, RankerTrials
from recsys.columns import EASE, ITEM_ID, RETRIEVERS, TIMESTAMP, USER_ID
from recsys.evaluation.metrics import ndcg_at
from recsys.evaluation.replay import replay
from recsys.features.item_stats import ItemStatsTimeline, day_of, snapshots
from recsys.ranking.training import fit_boosted
from recsys.recommender import Recommender, RequestContext
from recsys.retrieval.merge import ask, merge
from tests.planted import (
    N_ITEMS,
    RANKER,
    RECOMMENDER,
    TOWER,
    planted_bundle,
    planted_histories,
    planted_retrievers,
    planted_split,
    planted_tables,
)

EXACT = 1e-12


@pytest.fixture(scope="module")
def past() -> Past:
    return Past.of(planted_tables())


def test_a_retriever_alone_is_measured_as_the_replay_measures_it(past: Past, tmp_path: Path) -> None:
    """The same window as a replay of a bundle frozen at T1 reads it: here the library's leaderboard, there the
    search."""
    bundle = planted_bundle(tmp_path / "bundle")
    split = planted_split()
    whole = bundle.recommender
    recommender = Recommender(whole.catalogue, planted_retrievers(split.t1), whole.ranker, whole.settings)
    frozen = replace(bundle, recommender=recommender, facts=replace(bundle.facts, trained_through=split.t1))
    events = past.events[past.events[TIMESTAMP] > split.t1]
    replayed = replay(frozen, past.histories, snapshots(past.events), events)
    for retriever in planted_retrievers(split.t1):
        by_hand = ndcg_at(replayed.ranks(retriever.name), 10).mean()
        assert objectives.retriever_ndcg(retriever, past.validation) == pytest.approx(by_hand, abs=EXACT)
        assert by_hand > 0


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("fetch", [5, 15, N_ITEMS])
def test_fusion_gives_the_ranks_of_the_real_merge(past: Past, fetch: int, seed: int) -> None:
    retrievers = planted_retrievers(past.split.t1)
    fusion = Fusion(retrievers, past.validation, N_ITEMS, fetch)
    weights = np.random.default_rng(seed).uniform(0.05, 1.5, len(retrievers))
    named = dict(zip(fusion.names, weights, strict=True))
    expected = []
    for batch in past.validation:
        states = batch.states
        merged = merge(ask(retrievers, states), named, states.seen_idx, N_ITEMS, fetch=fetch, keep=N_ITEMS)
        for row, target in zip(batch.row, batch.target, strict=True):
            place = np.flatnonzero(merged.item_idx[row] == target)
            found = len(place) and merged.rrf_score[row, place[0]] > 0  # the merge fills up with what nobody named
            expected.append(int(place[0]) + 1 if found else 0)
    ranks = fusion.ranks(list(weights))
    assert ranks.tolist() == expected
    assert np.count_nonzero(ranks) > 0
    gain = [1 / np.log2(r + 1) if 1 <= r <= 10 else 0.0 for r in expected]
    recall = [1 <= r <= 100 for r in expected]
    assert fusion.value(list(weights)) == pytest.approx(np.mean(gain) + 0.1 * np.mean(recall), abs=EXACT)


def test_an_item_that_only_retrievers_without_weight_name_is_missed(past: Past) -> None:
    retrievers = planted_retrievers(past.split.t1)
    fusion = Fusion(retrievers, past.validation, N_ITEMS, 5)
    assert fusion.ranks([0.0] * len(retrievers)).tolist() == [0] * sum(len(b.target) for b in past.validation)
    alone = fusion.ranks([float(name == EASE) for name in fusion.names])
    ease = retrievers[RETRIEVERS.index(EASE)]
    by_retriever = [objectives.ranks_in(ease.answer(b.states).top(5)[0], b) for b in past.validation]
    assert alone.tolist() == np.concatenate(by_retriever).tolist()


def test_the_ranker_is_judged_by_the_one_path(past: Past) -> None:
    """NDCG@10 by `Recommender.recommend`, context by context."""
    before, after = planted_retrievers(past.split.t0), planted_retrievers(past.split.t1)
    trials = RankerTrials(past, before, after, RANKER, RECOMMENDER)
    assert (trials.table.timestamp > past.split.t0).all()
    assert (trials.table.timestamp <= past.split.t1).all()
    recommender = Recommender(past.catalogue, after, fit_boosted(trials.table, RANKER), RECOMMENDER)
    timeline = ItemStatsTimeline(past.catalogue, snapshots(past.events))
    gains = []
    window = past.events[past.events[TIMESTAMP] > past.split.t1]
    for user, item, now in zip(window[USER_ID], window[ITEM_ID], window[TIMESTAMP], strict=True):
        states = planted_histories().states_at([user], [now])
        shown = recommender.recommend(states, RequestContext(timeline.as_of(int(day_of(now)))), 10).item_ids[0].tolist()
        gains.append(1 / np.log2(shown.index(item) + 2) if item in shown else 0.0)
    assert trials.ndcg(RANKER) == pytest.approx(np.mean(gains), abs=EXACT)
    assert trials.ndcg(replace(RANKER, max_trees=1, leaves=2, start_from_logistic=False)) != trials.ndcg(RANKER)


def test_the_tower_is_measured_at_its_best_epoch(past: Past) -> None:
    settings = replace(TOWER, epochs=3, patience=3)
    said: list[str] = []
    value = objectives.tower_ndcg(past, settings, said.append)
    shown = [float(line.split("NDCG@10 ")[1].split(",")[0]) for line in said]
    assert len(shown) == 3
    assert value == pytest.approx(max(shown), abs=5e-5)
