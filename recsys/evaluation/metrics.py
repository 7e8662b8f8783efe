"""The metrics of the replay protocol, one value for each test event, from the rank of its one relevant item.

With one relevant item HR@k and Recall@k are the same number. HR@10 is about what a person sees, Recall@500 about
retrieval.

E  test events      k  cut-off, 1 to LIST_LENGTH      rank_e  rank of event e's item: 1 is the top, 0 is not in the list
"""

from collections.abc import Callable, Iterable
from typing import Final

import numpy as np

from recsys.arrays import DoubleArray, IntArray

LIST_LENGTH: Final = 500  # a method returns at most this many items; nothing is known of ranks beyond


def check_rank(rank: IntArray) -> IntArray:
    """`rank` itself. Raises ValueError unless it is one-dimensional, of whole numbers from 0 to LIST_LENGTH."""
    rank = np.asarray(rank)
    if rank.ndim != 1 or not np.issubdtype(rank.dtype, np.integer):
        raise ValueError(f"rank must be a one-dimensional array of whole numbers, not {rank.dtype} {rank.shape}.")
    if rank.size and (rank.min() < 0 or rank.max() > LIST_LENGTH):
        raise ValueError(f"rank must lie in 0..{LIST_LENGTH}, 0 for a miss; found {rank.min()} to {rank.max()}.")
    return rank


def rank_in(lists: IntArray, target: IntArray) -> IntArray:
    """(E,) the place of each `target` (E,) in its row of `lists` (E, k): 1 is the top, 0 where it is not in it.

    >>> rank_in(np.array([[7, 8, 9], [7, 8, 9], [4, 4, -1]]), np.array([9, 5, 4])).tolist()
    [3, 0, 1]
    """
    hit = lists == target[:, None]  # (E, k)
    return np.where(hit.any(axis=1), hit.argmax(axis=1) + 1, 0)


def hit_at(rank: IntArray, k: int) -> DoubleArray:
    """hit@k_e = 1 if 1 <= rank_e <= k else 0. Its mean is HR@k, and with one relevant item also Recall@k.

    >>> hit_at(np.array([1, 10, 11, 0]), 10).tolist()
    [1.0, 1.0, 0.0, 0.0]
    """
    rank = check_rank(rank)
    return ((rank >= 1) & (rank <= k)).astype(np.float64)


def ndcg_at(rank: IntArray, k: int) -> DoubleArray:
    """NDCG@k_e = 1 / log2(rank_e + 1) if 1 <= rank_e <= k else 0; the ideal DCG of one relevant item is 1.

    (Järvelin and Kekäläinen 2002, https://doi.org/10.1145/582415.582418)

    >>> ndcg_at(np.array([1, 3, 7, 15, 0]), 10).round(4).tolist()
    [1.0, 0.5, 0.3333, 0.0, 0.0]
    """
    hit = hit_at(rank, k)
    return np.divide(hit, np.log2(np.maximum(rank, 1) + 1.0))


def reciprocal_rank(rank: IntArray) -> DoubleArray:
    """RR_e = 1 / rank_e over the whole list, 0 where the item is not in it. Its mean is MRR.

    A lower bound of the MRR over the full catalogue, low by less than 1/LIST_LENGTH = 0.002.

    >>> reciprocal_rank(np.array([1, 4, 0])).tolist()
    [1.0, 0.25, 0.0]
    """
    rank = check_rank(rank)
    return np.where(rank >= 1, 1.0 / np.maximum(rank, 1), 0.0)


# Every metric that is a mean over events, in the order of the tables.
METRICS: Final[dict[str, Callable[[IntArray], DoubleArray]]] = {
    "ndcg@10": lambda rank: ndcg_at(rank, 10),
    "hr@10": lambda rank: hit_at(rank, 10),
    "mrr": reciprocal_rank,
    "recall@100": lambda rank: hit_at(rank, 100),
    "recall@500": lambda rank: hit_at(rank, 500),
}
LABELS: Final = dict(zip(METRICS, ("NDCG@10", "HR@10", "MRR", "Recall@100", "Recall@500"), strict=True))


def event_values(rank: IntArray, metrics: Iterable[str] = tuple(METRICS)) -> DoubleArray:
    """(E, M): a column for each named metric, in the order of the names.

    >>> event_values(np.array([2, 0]), ["mrr", "hr@10"]).tolist()
    [[0.5, 1.0], [0.0, 0.0]]
    """
    return np.column_stack([METRICS[name](rank) for name in metrics])


def recall_curve(rank: IntArray, ks: Iterable[int]) -> DoubleArray:
    """Recall@k for each k: the share of events with 1 <= rank <= k.

    >>> recall_curve(np.array([3, 50, 100, 0]), [10, 100]).tolist()
    [0.25, 0.75]
    """
    rank = check_rank(rank)
    within = np.cumsum(np.bincount(rank[rank >= 1], minlength=LIST_LENGTH + 1))  # events with 1 <= rank <= index
    return within[list(ks)] / rank.size
