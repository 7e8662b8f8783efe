"""Two published protocols beside replay: their splits, and the metrics of a list with many right answers.

Both leak the future: docs/protocols.md says how. The models are fitted and ranked in `pipelines.studies`.

E events      U users that are measured      T held-out events      k length of a list
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pandas as pd

from recsys.arrays import BoolArray, DoubleArray, IntArray
from recsys.columns import ITEM_ID, TIMESTAMP, USER_ID
from recsys.errors import DataError
from recsys.evaluation.bootstrap import Estimate, bootstrap_means_of_each
from recsys.evaluation.metrics import hit_at, ndcg_at, reciprocal_rank
from recsys.evaluation.study import Study, StudyRun
from recsys.evaluation.tables import Table, escaped, estimate, interval, number

STRATIFIED: Final = "stratified"
LEAVE_LAST_OUT: Final = "leave-last-out"
TRAIN_SHARE: Final = 0.75
SPLIT_SEED: Final = 42
FEWEST_EVENTS: Final = 3  # of a user

LIST_METRICS: Final = ("ndcg@10", "map", "map@10", "precision@10", "recall@10")
RANK_METRICS: Final = ("ndcg@10", "hr@10", "hr@50", "mrr")
LABELS: Final = {
    name: name.capitalize() if name.startswith(("precision", "recall")) else name.upper()
    for name in (*LIST_METRICS, *RANK_METRICS)
}


def stratified_by_item(item_id: IntArray, seed: int = SPLIT_SEED) -> BoolArray:
    """(E,) True for the events that train: of each item's events in random order, the first TRAIN_SHARE.

    With n events of an item, the one at place r of 1 .. n trains if r / n <= TRAIN_SHARE. The order is that of one
    uniform draw an event from `RandomState`: for a given order of rows the parts are those of
    `python_stratified_split(filter_by="item")` of github.com/recommenders-team/recommenders
    (recommenders/datasets/python_splitters.py), which the benchmark there uses.

    >>> stratified_by_item(np.array([7, 8, 7, 7, 7]), seed=0).tolist()
    [True, False, False, True, True]
    """
    drawn = pd.Series(np.random.RandomState(seed).random_sample(len(item_id))).groupby(item_id)
    trains: BoolArray = (drawn.rank() / drawn.transform("size") <= TRAIN_SHARE).to_numpy()
    return trains


def item_folds(item_id: IntArray, n_folds: int, seed: int) -> IntArray:
    """(E,) fold of each event, 0 .. n_folds - 1: the events of each item are dealt out in random order, starting at a
    random fold."""
    rng = np.random.default_rng(seed)
    place = pd.Series(rng.random(len(item_id))).groupby(item_id).rank().to_numpy(np.int64)
    _, item = np.unique(item_id, return_inverse=True)
    first = rng.integers(0, n_folds, int(item.max(initial=-1)) + 1)
    return np.asarray((place - 1 + first[item]) % n_folds, dtype=np.int64)


@dataclass(frozen=True)
class LastOut:
    """validation, test: the last event but one and the last of each user with FEWEST_EVENTS events or more; known: the
    others. Columns and order stay."""

    known: pd.DataFrame
    validation: pd.DataFrame
    test: pd.DataFrame


def leave_last_out(events: pd.DataFrame) -> LastOut:
    """Each user's last event, by (timestamp, item_id), is the test, the one before it the validation.

    Source: W.-C. Kang, J. McAuley, Self-Attentive Sequential Recommendation, ICDM 2018, section IV-A. Raises DataError
    where nobody has FEWEST_EVENTS events.
    """
    by_user = events.sort_values([USER_ID, TIMESTAMP, ITEM_ID]).groupby(USER_ID)[USER_ID]
    from_end = by_user.cumcount(ascending=False).where(by_user.transform("size") >= FEWEST_EVENTS, FEWEST_EVENTS)
    from_end = from_end.reindex(events.index)
    if not (from_end == 0).any():
        raise DataError(f"Nobody has {FEWEST_EVENTS} events, so there is no last one to leave out. Take more data.")
    return LastOut(events[from_end > 1], events[from_end == 1], events[from_end == 0])


def list_values(lists: IntArray, held_row: IntArray, held_item: IntArray) -> DoubleArray:
    """(U, M) values of each user's list in the order of LIST_METRICS.

    lists      (U, k) items, best first; -1 where there is none. What comes after the tenth is not looked at
    held_row, held_item   (T,) who rated what in the test part; every user must be there, no pair twice

    With rel_r = 1 where the item at rank r was held out, n = the number held out, P_r = sum_{s<=r} rel_s / r:
    precision = sum rel / 10; recall = sum rel / n; NDCG = sum rel_r / log2(r + 1) over the same sum of min(n, 10) hits
    in front; MAP = sum rel_r P_r / n; MAP@10 = sum rel_r P_r / min(n, 10). As in `python_evaluation` of
    github.com/recommenders-team/recommenders: `map`, which is the column of its published table, and `map_at_k`.

    One user, items 3 and 5 held out, 5 at rank 2: P_2 = 1/2, so MAP = 1/4.

    >>> list_values(np.array([[4, 5, 6]]), np.array([0, 0]), np.array([3, 5])).round(4).tolist()
    [[0.3869, 0.25, 0.25, 0.1, 0.5]]
    """
    top = lists[:, :10]
    n_users, k = top.shape
    n = np.bincount(held_row, minlength=n_users)
    width = int(max(top.max(initial=0), np.max(held_item, initial=0))) + 1
    held = np.isin(np.arange(n_users)[:, None] * width + top, held_row * width + held_item)
    hit = (held & (top >= 0)).astype(np.float64)  # (U, k)
    rank = np.arange(1, k + 1)
    ideal = np.append(0.0, np.cumsum(1 / np.log2(np.arange(1, 11) + 1)))[np.minimum(n, 10)]
    precisions = (hit * np.cumsum(hit, axis=1) / rank).sum(axis=1)
    n_hits = hit.sum(axis=1)
    ndcg = (hit / np.log2(rank + 1)).sum(axis=1) / ideal
    return np.column_stack([ndcg, precisions / n, precisions / np.minimum(n, 10), n_hits / 10, n_hits / n])


def rank_values(rank: IntArray) -> DoubleArray:
    """(E, M) values of each event in the order of RANK_METRICS; `rank` as in `metrics`, 0 for a miss."""
    return np.column_stack([ndcg_at(rank, 10), hit_at(rank, 10), hit_at(rank, 50), reciprocal_rank(rank)])


@dataclass(frozen=True)
class ProtocolRow:
    """One method: the mean of each metric over users, and the system minus it in the first metric."""

    name: str
    metrics: Mapping[str, Estimate]
    system_minus: Estimate | None


@dataclass(frozen=True)
class ProtocolResult(Study):
    """`description` is a sentence on the protocol; `facts` are what else the JSON file keeps of it."""

    description: str
    system: str
    n_users: int
    rows: tuple[ProtocolRow, ...]
    facts: Mapping[str, Any]

    def markdown(self) -> str:
        """The first metric with its interval, the others without."""
        rows = []
        for row in self.rows:
            first, *others = row.metrics.values()
            rows.append([row.name, estimate(first, self.n_users), *(number(value.mean) for value in others)])
        table = Table(["Method", *(LABELS[name] for name in self.rows[0].metrics)], rows, self.system)
        head = escaped(f"Data: {self.run.data.label}. {self.description}")
        return f"{head}\n\n{table.markdown()}\n{escaped(self.finding())}\n"

    def finding(self) -> str:
        """The system against the best of the other methods by the first metric, in one sentence."""
        metric = next(iter(self.rows[0].metrics))
        others = [(row.metrics[metric].mean, row.name, row.system_minus) for row in self.rows if row.system_minus]
        _, name, d = max(others, key=lambda row: row[0])
        verdict = "is ahead of" if d.above_zero else "is behind" if d.below_zero else "cannot be told apart from"
        return (
            f"By {LABELS[metric]} the {self.system} {verdict} {name}, the best of the others: "
            f"{d.mean:+.4f} ({self.run.bootstrap.level:.0%} interval {interval(d, self.n_users)})."
        )


def protocol_result(
    run: StudyRun,
    description: str,
    user_id: IntArray,
    values: Mapping[str, DoubleArray],
    metrics: Sequence[str],
    system: str,
    facts: Mapping[str, Any],
) -> ProtocolResult:
    """user_id (E,) and values, (E, M) for each method, have a row for whatever is measured: a user or an event."""
    means = bootstrap_means_of_each(user_id, values.values())
    minus = bootstrap_means_of_each(user_id, (values[system][:, :1] - each[:, :1] for each in values.values()))
    rows = tuple(
        ProtocolRow(name, dict(zip(metrics, m.estimates, strict=True)), None if name == system else d.estimates[0])
        for name, m, d in zip(values, means, minus, strict=True)
    )
    return ProtocolResult(run, description, system, means[0].n_users, rows, facts)
