"""What the search maximises: against the real merge, the replay, `Recommender.recommend` and sums by hand."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipelines.studies import objectives
from pipelines.studies.objectives import Batch, MergeTrials, RankerTrials
from pipelines.training_set import TrainingSet
from recsys.columns import EASE, ITEM_ID, RETRIEVERS, TIMESTAMP, USER_ID
from recsys.evaluation.metrics import ndcg_at
from recsys.evaluation.replay import replay
from recsys.features.item_stats import day_of, snapshots
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
SPLIT = planted_split()


@pytest.fixture(scope="module")
def past() -> TrainingSet:
    """Events up to T2."""
    events = planted_tables().events
    return TrainingSet(planted_tables(), planted_tables().info).with_events(events[events[TIMESTAMP] <= SPLIT.t2])


@pytest.fixture(scope="module")
def validation(past: TrainingSet) -> list[Batch]:
    return objectives.validation_batches(past)


def test_a_retriever_alone_is_measured_as_the_replay_measures_it(
    past: TrainingSet, validation: list[Batch], tmp_path: Path
) -> None:
    """By a replay of a bundle frozen at T1."""
    bundle = planted_bundle(tmp_path / "bundle")
    whole = bundle.recommender
    recommender = Recommender(whole.catalogue, planted_retrievers(SPLIT.t1), whole.ranker, whole.settings)
    frozen = replace(bundle, recommender=recommender, facts=replace(bundle.facts, trained_through=SPLIT.t1))
    replayed = replay(frozen, past.histories, snapshots(past.tables.events), past.window(SPLIT.t1, SPLIT.t2))
    for retriever in planted_retrievers(SPLIT.t1):
        expected = ndcg_at(replayed.ranks(retriever.name), 10).mean()
        assert objectives.retriever_ndcg(retriever, validation) == pytest.approx(expected, abs=EXACT)
        assert expected > 0


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("fetch", [5, 15, N_ITEMS])
def test_weights_give_the_ranks_of_the_real_merge(validation: list[Batch], fetch: int, seed: int) -> None:
    retrievers = planted_retrievers(SPLIT.t1)
    trials = MergeTrials(retrievers, validation, N_ITEMS, fetch)
    weights = np.random.default_rng(seed).uniform(0.05, 1.5, len(retrievers))
    named = dict(zip(trials.names, weights, strict=True))
    expected = []
    for batch in validation:
        states = batch.states
        merged = merge(ask(retrievers, states), named, states.seen_idx, N_ITEMS, fetch=fetch, keep=N_ITEMS)
        for row, target in zip(batch.row, batch.target, strict=True):
            place = np.flatnonzero(merged.item_idx[row] == target)
            hit = len(place) and merged.rrf_score[row, place[0]] > 0  # the merge fills up with what nobody named
            expected.append(int(place[0]) + 1 if hit else 0)
    ranks = trials.ranks(list(weights))
    assert ranks.tolist() == expected
    assert np.count_nonzero(ranks) > 0
    gain = [1 / np.log2(r + 1) if 1 <= r <= 10 else 0.0 for r in expected]
    recall = [1 <= r <= 100 for r in expected]
    assert trials.value(list(weights)) == pytest.approx(np.mean(gain) + 0.1 * np.mean(recall), abs=EXACT)


def test_an_item_that_only_retrievers_without_weight_name_is_missed(validation: list[Batch]) -> None:
    retrievers = planted_retrievers(SPLIT.t1)
    trials = MergeTrials(retrievers, validation, N_ITEMS, 5)
    assert not trials.ranks([0.0] * len(retrievers)).any()
    alone = trials.ranks([float(name == EASE) for name in trials.names])
    ease = retrievers[RETRIEVERS.index(EASE)]
    expected = [batch.ranks(ease.answer(batch.states).top(5)[0]) for batch in validation]
    assert alone.tolist() == np.concatenate(expected).tolist()


def test_the_ranker_is_judged_by_the_one_path(past: TrainingSet) -> None:
    """NDCG@10 by `Recommender.recommend`, context by context."""
    before, after = planted_retrievers(SPLIT.t0), planted_retrievers(SPLIT.t1)
    trials = RankerTrials(past, before, after, RANKER, RECOMMENDER)
    assert (trials.table.timestamp > SPLIT.t0).all()
    assert (trials.table.timestamp <= SPLIT.t1).all()
    recommender = Recommender(past.catalogue, after, fit_boosted(trials.table, RANKER), RECOMMENDER)
    gains = []
    window = past.window(SPLIT.t1, SPLIT.t2)
    for user, item, now in zip(window[USER_ID], window[ITEM_ID], window[TIMESTAMP], strict=True):
        context = RequestContext(past.timeline.as_of(int(day_of(now))))
        states = planted_histories().states_at([user], [now])
        shown = recommender.recommend(states, context, 10).item_ids[0].tolist()
        gains.append(1 / np.log2(shown.index(item) + 2) if item in shown else 0.0)
    assert trials.ndcg(RANKER) == pytest.approx(np.mean(gains), abs=EXACT)


def test_the_tower_is_measured_at_its_best_epoch(past: TrainingSet) -> None:
    lines: list[str] = []
    value = objectives.tower_ndcg(past, replace(TOWER, epochs=3, patience=3), lines.append)
    shown = [float(line.split("NDCG@10 ")[1].split(",")[0]) for line in lines]
    assert len(shown) == 3
    assert value == pytest.approx(max(shown), abs=5e-5)
