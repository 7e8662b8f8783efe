"""Merging the retrievers' answers into one candidate list.

Stage: retrieval; both tracks. In: one `RetrieverScores` a retriever. Out: `Candidates`: the merged order, with every
retriever's score and rank for every candidate. Absent: ranking by features (`recsys.ranking`).

The merged order is reciprocal rank rrf_weights: an item at rank r of retriever s adds w_s / (RRF_OFFSET + r). Source:
G. Cormack, C. Clarke, S. Buettcher, SIGIR 2009. Ranks, unlike scores, compare across retrievers without calibration.

Shapes: B users, N items, S retrievers, k fetched from each retriever, K merged candidates.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from recsys.arrays import BoolArray, FloatArray, IntArray
from recsys.features.state import StateBatch
from recsys.retrieval.kernels import add_shares, find_ranks
from recsys.retrieval.retriever import Retriever, RetrieverScores, top_k

RRF_OFFSET = 20.0
NOT_FOUND = 0  # rank of a candidate that a retriever did not return


@dataclass(frozen=True)
class Candidates:
    """K candidates for each of B users, in merged order, best first.

    item_idx       (B, K), -1 where the catalogue has no more unseen items
    rrf_score          (B, K) rrf_weights score, -inf where item_idx is -1
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


def merge(
    answers: Mapping[str, RetrieverScores],
    weights: Mapping[str, float],
    seen_idx: Sequence[IntArray],
    n_items: int,
    *,
    fetch: int,
    keep: int,
) -> Candidates:
    """Fetch `fetch` items from every retriever, fuse their ranks, keep the best `keep` unseen ones.

    Where the retrievers together have fewer than `keep`, the rest of the
    catalogue follows in the order of row numbers, so that a user who has seen almost everything still gets an answer.
    """
    names = tuple(answers)
    size = len(seen_idx)
    depth = min(fetch, n_items)
    tops = np.stack([answers[name].top(depth)[0] for name in names], axis=1)  # (B, S, k)
    weight = np.array([weights.get(name, 1.0) for name in names])
    shares = weight[:, None] / (RRF_OFFSET + np.arange(1, depth + 1))  # (S, k)
    rrf_score = np.zeros((size, n_items), dtype=np.float32)
    for lists, line in zip(tops, rrf_score, strict=True):
        add_shares(lists, shares, line)
    item_idx, best = top_k(rrf_score, keep, seen_idx)
    retriever_ranks = np.full((size, len(names), keep), NOT_FOUND, dtype=np.int32)
    for lists, candidates, ranks in zip(tops, item_idx, retriever_ranks, strict=True):
        find_ranks(lists, candidates, np.empty(n_items, dtype=np.int64), ranks)
    retriever_scores = np.empty((size, len(names), keep), dtype=np.float32)
    for s, name in enumerate(names):
        retriever_scores[:, s] = answers[name].at(item_idx)
    return Candidates(
        retriever_names=names,
        item_idx=item_idx,
        rrf_score=best,
        retriever_scores=retriever_scores.transpose(0, 2, 1),
        retriever_ranks=retriever_ranks.transpose(0, 2, 1),
    )


def retrieve(
    retrievers: Sequence[Retriever],
    weights: Mapping[str, float],
    states: StateBatch,
    n_items: int,
    *,
    fetch: int,
    keep: int,
    allowed: BoolArray | None = None,
) -> Candidates:
    """Ask every retriever and merge. `allowed` (N,) restricts the catalogue; the retrievers know of it, so that each
    names the best items that may be shown."""
    if allowed is not None:
        states = replace(states, seen_idx=[_seen_or_blocked(seen, allowed) for seen in states.seen_idx])
    answers = {retriever.name: retriever.answer(states) for retriever in retrievers}
    return merge(answers, weights, states.seen_idx, n_items, fetch=fetch, keep=keep)


def _seen_or_blocked(seen: IntArray, allowed: BoolArray) -> IntArray:
    """Row numbers, ascending; by a mask, which costs a tenth of a sorted union of two long lists."""
    hidden = ~allowed
    hidden[seen] = True
    return np.flatnonzero(hidden)
