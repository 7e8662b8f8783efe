"""Merging the retrievers' answers into one candidate list.

The merged order is reciprocal rank fusion: an item at rank r of retriever s adds w_s / (RRF_OFFSET + r). Source:
G. Cormack, C. Clarke, S. Buettcher, SIGIR 2009. Ranks, unlike scores, compare across retrievers without calibration.

Shapes: B users, N items, S retrievers, k fetched from each retriever, K merged candidates.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from recsys.arrays import BoolArray, FloatArray, IntArray
from recsys.features.state import StateBatch
from recsys.retrieval.retriever import Retriever, RetrieverScores, top_k

RRF_OFFSET = 20.0
NOT_FOUND = 0  # rank of a candidate that a retriever did not return


@dataclass(frozen=True)
class Candidates:
    """K candidates for each of B users, in merged order, best first.

    item_idx          (B, K), -1 where the catalogue has no more unseen items
    rrf_score         (B, K) sum of the retrievers' shares, -inf where item_idx is -1
    retriever_scores  (B, K, S), in the order of `retriever_names`
    retriever_ranks   (B, K, S) int32, 1 is best, NOT_FOUND where the retriever did not return the item
    """

    retriever_names: tuple[str, ...]
    item_idx: IntArray
    rrf_score: FloatArray
    retriever_scores: FloatArray
    retriever_ranks: npt.NDArray[np.int32]

    def best(self, k: int) -> "Candidates":
        """The first k of each list."""
        return Candidates(
            self.retriever_names,
            self.item_idx[:, :k],
            self.rrf_score[:, :k],
            self.retriever_scores[:, :k],
            self.retriever_ranks[:, :k],
        )


def ask(retrievers: Sequence[Retriever], states: StateBatch) -> dict[str, RetrieverScores]:
    """Every retriever's answer, by name."""
    return {retriever.name: retriever.answer(states) for retriever in retrievers}


def merge(
    answers: Mapping[str, RetrieverScores],
    weights: Mapping[str, float],
    hidden: Sequence[IntArray],
    n_items: int,
    *,
    fetch: int,
    keep: int,
) -> Candidates:
    """Fetch `fetch` items from every retriever, add up the shares of their ranks, keep the best `keep` that are not
    hidden.

    Where the retrievers together have fewer than `keep`, the rest of the catalogue follows in the order of row
    numbers, so that a user who has seen almost everything still gets an answer.
    """
    names = tuple(answers)
    size, width, depth = len(hidden), n_items + 1, min(fetch, n_items)  # the last column takes what -1 writes
    tops = np.stack([answers[name].top(depth)[0] for name in names], axis=1)  # (B, S, k)
    weight = np.array([weights.get(name, 1.0) for name in names])
    rank = np.arange(1, depth + 1, dtype=np.int32)
    shares = np.broadcast_to(weight[:, None] / (RRF_OFFSET + rank), tops.shape)
    user, table = np.arange(size)[:, None, None], np.arange(len(names))[:, None]
    place = user * width + tops % width  # in a flat (B, N + 1); -1 becomes N
    rrf_score = np.bincount(place.ravel(), shares.ravel(), minlength=size * width).astype(np.float32)
    item_idx, best = top_k(rrf_score.reshape(size, width)[:, :-1], keep, hidden)
    rank_of = np.full((size, len(names), width), NOT_FOUND, dtype=np.int32)
    rank_of[user, table, tops] = rank
    rank_of[:, :, -1] = NOT_FOUND
    ranks = rank_of[user, table.T, item_idx[:, :, None]]
    scores = np.empty(ranks.shape, dtype=np.float32)
    for s, name in enumerate(names):
        scores[:, :, s] = answers[name].at(item_idx)
    return Candidates(names, item_idx, best, scores, ranks)


def hidden_idx(seen_idx: Sequence[IntArray], allowed: BoolArray) -> list[IntArray]:
    """B arrays of row numbers, ascending, that may not be shown: seen, or not allowed (N,). By a mask, which costs a
    tenth of a sorted union of two long lists."""
    out = []
    for seen in seen_idx:
        hidden = ~allowed
        hidden[seen] = True
        out.append(np.flatnonzero(hidden))
    return out
