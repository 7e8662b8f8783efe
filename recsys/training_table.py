"""Building the table that the ranker learns from: what retrieval really returned, labelled by what happened next.

All events of a context are its positives. A context whose positives retrieval did not find teaches nothing about
order and is left out (the share found is reported: it bounds what ranking can reach). Negatives are the other
candidates, thinned at random to `negatives` a context. Beside the table, a sample of all contexts, found or not, keeps
every ranked candidate: thinned lists and found contexts alone would give probabilities that are too high.

Shapes: C contexts, R rows, K candidates, F features, S contexts of the sample.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from recsys.arrays import BoolArray, FloatArray, IntArray
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
    sample = _Sample(recommender, contexts, unsampled_candidates, seed)
    by_context = np.argsort(contexts.event_context, kind="stable")
    starts = np.searchsorted(contexts.event_context[by_context], np.arange(len(contexts) + 1))
    item_idx_of_event = recommender.catalogue.to_idx(contexts.event_item_id)
    parts: list[tuple[FloatArray, npt.NDArray[np.int32], IntArray, FloatArray]]
    parts = []
    kept_contexts: list[int] = []
    found = 0
    for part in retrieved:
        features = recommender.features(states.rows(part.rows), part.candidates, stats_as_of(part.day))
        for b, context in enumerate(part.rows):
            events = by_context[starts[context] : starts[context + 1]]
            shown = part.candidates.item_idx[b]
            positive = np.isin(shown, item_idx_of_event[events]) & (shown >= 0)
            sample.offer(int(context), features[b], shown >= 0, positive)
            found += int(positive.sum())
            if not positive.any():
                continue
            others = np.flatnonzero(~positive & (shown >= 0))
            if len(others) > negatives:
                others = rng.choice(others, negatives, replace=False)
            # in merged order: rows with positives first would win every tie in LightGBM's own NDCG
            chosen = np.sort(np.concatenate([np.flatnonzero(positive), others]))
            rating_of = dict(zip(item_idx_of_event[events], contexts.event_rating[events], strict=True))
            parts.append(
                (
                    features[b, chosen],
                    positive[chosen].astype(np.int32),
                    recommender.catalogue.to_ids(shown[chosen]),
                    np.array([rating_of.get(i, np.nan) for i in shown[chosen]], dtype=np.float32),
                )
            )
            kept_contexts.append(int(context))
    kept = np.asarray(kept_contexts, dtype=np.int64)
    width = len(recommender.feature_names)
    return TrainingTable(
        feature_names=recommender.feature_names,
        features=np.concatenate([p[0] for p in parts]) if parts else np.zeros((0, width), dtype=np.float32),
        labels=np.concatenate([p[1] for p in parts]) if parts else np.zeros(0, dtype=np.int32),
        item_id=np.concatenate([p[2] for p in parts]) if parts else np.zeros(0, dtype=np.int64),
        rating=np.concatenate([p[3] for p in parts]) if parts else np.zeros(0, dtype=np.float32),
        group_sizes=np.asarray([len(p[1]) for p in parts], dtype=np.int64),
        timestamp=contexts.timestamp[kept],
        user_id=contexts.user_id[kept],
        found=found / max(len(contexts.event_context), 1),
        unsampled=sample.lists(),
    )


class _Sample:
    """Whole candidate lists of `most` contexts chosen uniformly, or of all where there are fewer."""

    def __init__(self, recommender: Recommender, contexts: PredictionPoints, most: int, seed: int) -> None:
        rng = np.random.default_rng([seed, most])  # its own numbers: the thinning does not depend on the sample
        chosen = np.sort(rng.permutation(len(contexts))[:most])
        self._row = {int(context): row for row, context in enumerate(chosen)}
        depth = recommender.settings.rank
        self._features = np.zeros((len(chosen), depth, len(recommender.feature_names)), dtype=np.float32)
        self._present, self._happened = np.zeros((2, len(chosen), depth), dtype=bool)
        self._timestamp = contexts.timestamp[chosen]

    def offer(self, context: int, features: FloatArray, present: BoolArray, happened: BoolArray) -> None:
        """Keep the list (K, F), (K,), (K,) of this context if it is in the sample."""
        row = self._row.get(context)
        if row is not None:
            self._features[row], self._present[row], self._happened[row] = features, present, happened

    def lists(self) -> UnsampledCandidates:
        return UnsampledCandidates(self._features, self._present, self._happened, self._timestamp)
