"""Building the table that the ranker learns from: what retrieval really returned, labelled by what happened next.

A context is one user at one second. All its events are its positives. A context whose positives retrieval did not find
teaches nothing about order and is left out (the share found is reported: it bounds what ranking can reach). Negatives
are the other candidates, thinned at random to `negatives` a context. Beside the table, a sample of all contexts, found
or not, keeps every ranked candidate: thinned lists and found contexts alone would give probabilities that are too high.

Shapes: C contexts, R rows, K candidates, F features, S contexts of the sample.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from recsys.arrays import IntArray
from recsys.columns import ITEM_ID
from recsys.features.item_stats import ItemStats, day_of
from recsys.features.prediction_points import PredictionPoints
from recsys.features.state import StateBatch
from recsys.ranking.training import TrainingTable, UnsampledCandidates
from recsys.recommender import Recommender
from recsys.retrieval.merge import Candidates


@dataclass(frozen=True)
class Retrieved:
    """Candidates of some contexts (`rows`) of one day."""

    rows: IntArray
    day: int
    candidates: Candidates


def retrieve_contexts(
    recommender: Recommender,
    contexts: PredictionPoints,
    states: StateBatch,
    progress: Callable[[int, int], None] = lambda _done, _of: None,
) -> list[Retrieved]:
    """What retrieval returns for every context, a batch at a time; only the candidates that are ranked are kept."""
    out = []
    done = 0
    for rows in contexts.batches_by_day():
        candidates = recommender.retrieve(states.rows(rows)).best(recommender.settings.rank)
        out.append(Retrieved(rows, int(day_of(contexts.timestamp[rows[0]])), candidates))
        done += len(rows)
        progress(done, len(contexts))
    return out


def item_days(recommender: Recommender, states: StateBatch, retrieved: list[Retrieved]) -> pd.DataFrame:
    """The distinct (item_id, day) pairs whose statistics the features of these candidates read.

    The items of the users' histories count as well: their popularity is one of the users' habits.
    """
    pairs = []
    for part in retrieved:
        read = np.union1d(part.candidates.item_idx, states.item_idx[part.rows])
        pairs.append(np.stack([read, np.full(len(read), part.day)]))
    item_idx, day = np.unique(np.concatenate(pairs, axis=1), axis=1) if pairs else np.zeros((2, 0), dtype=np.int64)
    known = item_idx >= 0
    return pd.DataFrame({ITEM_ID: recommender.catalogue.to_ids(item_idx[known]), "day": day[known]})


def build_training_table(
    recommender: Recommender,
    contexts: PredictionPoints,
    states: StateBatch,
    retrieved: list[Retrieved],
    stats_as_of: Callable[[int], ItemStats],
    *,
    negatives: int,
    unsampled_candidates: int = 0,
    seed: int = 0,
) -> TrainingTable:
    """`states` are those of the contexts, in their order; `stats_as_of(day)` gives the statistics of one day;
    `unsampled_candidates`: how many contexts are kept with all of their candidates."""
    rng = np.random.default_rng(seed)
    catalogue, depth, width = recommender.catalogue, recommender.settings.rank, len(recommender.feature_names)
    base = len(catalogue) + 1  # a (context, item) pair as one number; an item outside the catalogue is -1
    positive_pairs = contexts.event_context * base + catalogue.to_idx(contexts.event_item_id)
    ratings = pd.Series(contexts.event_rating, positive_pairs)
    ratings = ratings[~ratings.index.duplicated(keep="last")]
    # The sample has its own numbers: the thinning does not depend on it.
    sampled = np.random.default_rng([seed, unsampled_candidates]).permutation(len(contexts))[:unsampled_candidates]
    sampled = np.sort(sampled)
    lists = UnsampledCandidates(
        np.zeros((len(sampled), depth, width), dtype=np.float32),
        np.zeros((len(sampled), depth), dtype=bool),
        np.zeros((len(sampled), depth), dtype=bool),
        contexts.timestamp[sampled],
    )
    rows = [np.zeros((0, 3), dtype=np.int64)]  # context, item_idx, label
    row_features = [np.zeros((0, width), dtype=np.float32)]
    for part in retrieved:
        item_idx = part.candidates.item_idx
        features = recommender.features(states.rows(part.rows), part.candidates, stats_as_of(part.day))
        present = item_idx >= 0
        positive = np.isin(part.rows[:, None] * base + item_idx, positive_pairs) & present
        _, place, of_part = np.intersect1d(sampled, part.rows, return_indices=True)
        lists.features[place] = features[of_part]
        lists.present[place], lists.happened[place] = present[of_part], positive[of_part]
        for b in np.flatnonzero(positive.any(axis=1)):
            others = np.flatnonzero(present[b] & ~positive[b])
            if len(others) > negatives:
                others = rng.choice(others, negatives, replace=False)
            # in merged order: rows with positives first would win every tie in LightGBM's own NDCG
            chosen = np.sort(np.concatenate([np.flatnonzero(positive[b]), others]))
            context = np.full(len(chosen), part.rows[b])
            rows.append(np.column_stack([context, item_idx[b, chosen], positive[b, chosen]]))
            row_features.append(features[b, chosen])
    of_context, of_item, label = np.concatenate(rows).T
    kept, group_sizes = np.unique(of_context, return_counts=True)
    return TrainingTable(
        feature_names=recommender.feature_names,
        features=np.concatenate(row_features),
        labels=label.astype(np.int32),
        item_id=catalogue.to_ids(of_item),
        rating=ratings.reindex(of_context * base + of_item).to_numpy(np.float32),
        group_sizes=group_sizes,
        timestamp=contexts.timestamp[kept],
        user_id=contexts.user_id[kept],
        found=int(label.sum()) / max(len(contexts.event_context), 1),
        unsampled=lists,
    )
