"""Merging the sources' answers into one candidate list.

Stage: retrieval; both tracks. In: one `Answer` a source. Out: `Candidates`: the merged order, with every source's
score and rank for every candidate. Absent: ranking by features (`recsys.ranking`).

The merged order is reciprocal rank fusion: a movie at rank r of source s adds w_s / (FUSION_OFFSET + r). Source:
G. Cormack, C. Clarke, S. Buettcher, SIGIR 2009. Ranks, unlike scores, compare across sources without calibration.

Shapes: B users, N movies, S sources, k fetched from each source, K merged candidates.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from recsys.features.state import StateBatch
from recsys.retrieval.kernels import add_shares, find_ranks
from recsys.retrieval.source import Answer, Idx, Scores, Source, top_k

FUSION_OFFSET = 20.0
NOT_FOUND = 0  # rank of a candidate that a source did not return


@dataclass(frozen=True)
class Candidates:
    """K candidates for each of B users, in merged order, best first.

    item_idx       (B, K), -1 where the catalogue has no more unseen movies
    fused          (B, K) fusion score, -inf where item_idx is -1
    source_scores  (B, K, S), in the order of `source_names`
    source_ranks   (B, K, S) int32, 1 is best, NOT_FOUND where the source did not return the movie
    """

    source_names: tuple[str, ...]
    item_idx: Idx
    fused: Scores
    source_scores: npt.NDArray[np.float32]
    source_ranks: npt.NDArray[np.int32]

    def best(self, k: int) -> "Candidates":
        """The first k of each list."""
        return Candidates(
            self.source_names,
            self.item_idx[:, :k],
            self.fused[:, :k],
            self.source_scores[:, :k],
            self.source_ranks[:, :k],
        )


def merge(
    answers: Mapping[str, Answer],
    weights: Mapping[str, float],
    seen_idx: Sequence[Idx],
    n_items: int,
    *,
    fetch: int,
    keep: int,
) -> Candidates:
    """Fetch `fetch` movies from every source, fuse their ranks, keep the best `keep` unseen ones.

    Where the sources together have fewer than `keep`, the rest of the
    catalogue follows in the order of row numbers, so that a user who has seen almost everything still gets an answer.
    """
    names = tuple(answers)
    size = len(seen_idx)
    depth = min(fetch, n_items)
    tops = np.stack([answers[name].top(depth)[0] for name in names], axis=1)  # (B, S, k)
    weight = np.array([weights.get(name, 1.0) for name in names])
    shares = weight[:, None] / (FUSION_OFFSET + np.arange(1, depth + 1))  # (S, k)
    fused = np.zeros((size, n_items), dtype=np.float32)
    for lists, line in zip(tops, fused, strict=True):
        add_shares(lists, shares, line)
    item_idx, best = top_k(fused, keep, seen_idx)
    source_ranks = np.full((size, len(names), keep), NOT_FOUND, dtype=np.int32)
    for lists, candidates, ranks in zip(tops, item_idx, source_ranks, strict=True):
        find_ranks(lists, candidates, np.empty(n_items, dtype=np.int64), ranks)
    source_scores = np.empty((size, len(names), keep), dtype=np.float32)
    for s, name in enumerate(names):
        source_scores[:, s] = answers[name].at(item_idx)
    return Candidates(
        source_names=names,
        item_idx=item_idx,
        fused=best,
        source_scores=source_scores.transpose(0, 2, 1),
        source_ranks=source_ranks.transpose(0, 2, 1),
    )


def retrieve(
    sources: Sequence[Source],
    weights: Mapping[str, float],
    states: StateBatch,
    n_items: int,
    *,
    fetch: int,
    keep: int,
    allowed: npt.NDArray[np.bool_] | None = None,
) -> Candidates:
    """Ask every source and merge. `allowed` (N,) restricts the catalogue; the sources know of it, so that each names
    the best movies that may be shown."""
    if allowed is not None:
        states = replace(states, seen_idx=[_seen_or_blocked(seen, allowed) for seen in states.seen_idx])
    answers = {source.name: source.answer(states) for source in sources}
    return merge(answers, weights, states.seen_idx, n_items, fetch=fetch, keep=keep)


def _seen_or_blocked(seen: Idx, allowed: npt.NDArray[np.bool_]) -> Idx:
    """Row numbers, ascending; by a mask, which costs a tenth of a sorted union of two long lists."""
    hidden = ~allowed
    hidden[seen] = True
    return np.flatnonzero(hidden)
