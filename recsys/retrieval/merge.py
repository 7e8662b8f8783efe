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
from recsys.retrieval.source import Answer, Idx, Scores, Source, mask_seen, top_k

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
    tops = [answers[name].top(min(fetch, n_items))[0] for name in names]  # S times (B, k)
    fused = np.zeros((size, n_items), dtype=np.float32)
    for name, top in zip(names, tops, strict=True):
        shares = weights.get(name, 1.0) / (FUSION_OFFSET + np.arange(1, top.shape[1] + 1))
        for line, movies in zip(fused, top, strict=True):
            found = movies if movies[-1] >= 0 else movies[movies >= 0]
            line[found] += shares[: len(found)]
    mask_seen(fused, seen_idx)
    item_idx, best = top_k(fused, keep)
    source_scores = np.empty((size, len(names), keep), dtype=np.float32)
    for s, name in enumerate(names):
        source_scores[:, s] = answers[name].at(item_idx)
    return Candidates(
        source_names=names,
        item_idx=item_idx,
        fused=best,
        source_scores=source_scores.transpose(0, 2, 1),
        source_ranks=_ranks(item_idx, tops, n_items).transpose(0, 2, 1),
    )


def _ranks(item_idx: Idx, tops: Sequence[Idx], n_items: int) -> npt.NDArray[np.int32]:
    """(B, S, K) rank of each candidate in each source's list, NOT_FOUND where it does not stand there."""
    size, keep = item_idx.shape
    ranks = np.full((size, len(tops), keep + 1), NOT_FOUND, dtype=np.int32)  # the last place takes what was not kept
    place = np.empty(n_items + 1, dtype=np.int64)  # of each movie among the candidates; -1 reads the last, no movie's
    kept, rank = np.arange(keep), np.arange(1, tops[0].shape[1] + 1, dtype=np.int32)
    for row, candidates in enumerate(item_idx):
        place.fill(keep)
        place[candidates] = kept
        place[-1] = keep
        for s, top in enumerate(tops):
            ranks[row, s, place[top[row]]] = rank
    return ranks[:, :, :keep]


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
