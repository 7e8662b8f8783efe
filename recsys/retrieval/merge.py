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
    rows = np.arange(size)[:, None]
    fused = np.zeros((size, n_items), dtype=np.float32)
    ranks = np.zeros((len(names), size, n_items), dtype=np.int32)
    for s, name in enumerate(names):
        top, _ = answers[name].top(min(fetch, n_items))
        found = top >= 0
        row, column = np.nonzero(found)
        item = top[row, column]
        ranks[s, row, item] = column + 1
        fused[row, item] += weights.get(name, 1.0) / (FUSION_OFFSET + column + 1)
    mask_seen(fused, seen_idx)
    item_idx, best = top_k(fused.astype(np.float32), keep)
    safe = np.maximum(item_idx, 0)
    return Candidates(
        source_names=names,
        item_idx=item_idx,
        fused=best,
        source_scores=np.stack([answers[name].at(item_idx) for name in names], axis=2),
        source_ranks=np.where(item_idx[None] >= 0, ranks[:, rows, safe], NOT_FOUND).transpose(1, 2, 0),
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
        blocked = np.flatnonzero(~allowed)
        states = replace(states, seen_idx=[np.union1d(seen, blocked) for seen in states.seen_idx])
    answers = {source.name: source.answer(states) for source in sources}
    return merge(answers, weights, states.seen_idx, n_items, fetch=fetch, keep=keep)
