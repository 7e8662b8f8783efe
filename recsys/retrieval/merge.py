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
    size, width, depth = len(hidden), n_items + 1, min(fetch, n_items)  # -1 is the last column of the row before
    start = np.arange(0, size * width, width)[:, None]
    tops = [answers[name].top(depth)[0] for name in names]
    places = [start + top for top in tops]  # S of (B, k), in a flat (B, N + 1)
    rank = np.broadcast_to(np.arange(1, depth + 1, dtype=np.int32), (size, depth))
    rrf_score = np.zeros(size * width, dtype=np.float32)
    for name, place in zip(names, places, strict=True):
        rrf_score[place] += weights.get(name, 1.0) / (RRF_OFFSET + rank)
    item_idx, best = top_k(rrf_score.reshape(size, width)[:, :-1], keep, hidden)
    asked = start + item_idx
    scores = np.empty((size, keep, len(names)), dtype=np.float32)
    ranks = np.empty(scores.shape, dtype=np.int32)
    for s, (name, place) in enumerate(zip(names, places, strict=True)):
        rank_of = np.full(size * width, NOT_FOUND, dtype=np.int32)
        rank_of[place] = rank
        rank_of[n_items::width] = NOT_FOUND
        ranks[:, :, s] = rank_of[asked]
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
