"""What the two-tower model is made of and what it reads: sizes, weights, tokens of a state, windows of training.

No torch here, so that a process that only infers (`two_tower_retriever`) starts without it.

The context of a training target is everything of its user with an earlier timestamp: the events of one second are
predicted from the same context and never from one another, just as in the replay protocol.

Shapes: B users, T tokens of the longest history, D dimensions; E events, R windows of L tokens, Q queries (contexts),
T targets.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from recsys.arrays import FloatArray, IntArray
from recsys.features.histories import Histories
from recsys.features.state import StateBatch

RATING_LEVELS = 11  # half stars 0.5 to 5.0 are 1 to 10; 0 is padding
GAP_EDGES_S = np.array([0, 1, 5, 15, 30, 60, 120, 300, 900, 3_600, 86_400, 7 * 86_400, 30 * 86_400, 365 * 86_400])
GAP_LEVELS = len(GAP_EDGES_S) + 1


@dataclass(frozen=True)
class TowerShape:
    """Sizes that the weights depend on."""

    n_items: int
    n_genres: int
    n_words: int
    profile_sizes: tuple[int, int, int]
    dim: int = 64
    layers: int = 2
    heads: int = 2
    max_length: int = 64
    dropout: float = 0.2
    id_dropout: float = 0.1

    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        """Of every array that inference reads, by the name that torch gives it."""
        dim, double = (self.dim,), 2 * self.dim
        shapes = {
            **{"rating.weight": (RATING_LEVELS, self.dim), "start": dim, "norm.weight": dim, "norm.bias": dim},
            **dict.fromkeys(("gap.weight", "query_gap.weight"), (GAP_LEVELS, self.dim)),
            **{f"profile.{i}.weight": (size, self.dim) for i, size in enumerate(self.profile_sizes)},
            **{"head.weight": (self.dim, self.dim), "head.bias": dim},
        }
        for i in range(self.layers):
            block = {
                **{f"{norm}.{part}": dim for norm in ("norm_attention", "norm_mlp") for part in ("weight", "bias")},
                **{"qkv.weight": (3 * self.dim, self.dim), "qkv.bias": (3 * self.dim,)},
                **{"out.weight": (self.dim, self.dim), "out.bias": dim},
                **{"mlp.0.weight": (double, self.dim), "mlp.0.bias": (double,)},
                **{"mlp.3.weight": (self.dim, double), "mlp.3.bias": dim},
                "distance_bias": (self.heads, self.max_length + 1),
            }
            shapes.update({f"blocks.{i}.{name}": shape for name, shape in block.items()})
        return shapes


@dataclass(frozen=True)
class TowerWeights:
    """A trained model without torch: its sizes, and its arrays by the names that torch gives them."""

    shape: TowerShape
    arrays: Mapping[str, npt.NDArray[Any]]


def gap_levels(gap_s: IntArray) -> IntArray:
    """Bucket of a time span in seconds; 0 for a span of zero or less."""
    return np.searchsorted(GAP_EDGES_S, gap_s, side="right").astype(np.int64) * (gap_s > 0)


def rating_levels(ratings: FloatArray) -> IntArray:
    """Half stars as integers 1 to 10; 0 where there is no rating."""
    return np.clip(np.rint(ratings * 2), 0, RATING_LEVELS - 1).astype(np.int64)


@dataclass(frozen=True)
class Tokens:
    """The last events of B users, oldest first and left-aligned, as the windows of training are: the distance to the
    start token tells how long the history is.

    item_idx, ratings, gaps   (B, T) row numbers; levels of the stars and of the time since the event before; beyond
                              a user's `count` -1, 0 and 0
    count                     (B,)
    query_gap                 (B,) level of the time from the newest event to the moment of the request; 0 without one
    profile                   (B, 3)
    """

    item_idx: IntArray
    ratings: IntArray
    gaps: IntArray
    count: IntArray
    query_gap: IntArray
    profile: IntArray


def tokens_of(states: StateBatch, max_length: int) -> Tokens:
    """What the user tower reads: at most `max_length` events a user. The first one's gap is 0, as it is for the first
    one of a window in training."""
    length = states.item_idx.shape[1]
    count = np.minimum((states.item_idx >= 0).sum(axis=1), max_length)
    step = np.arange(count.max(initial=0))
    valid = step < count[:, None]
    item_idx, ratings, times = states.item_idx, states.ratings, states.timestamps
    if valid.all():
        window = slice(length - len(step), None)
        item_idx, ratings, times = item_idx[:, window], ratings[:, window], times[:, window]
    else:
        column = np.where(valid, (length - count)[:, None] + step, length - 1)
        item_idx = np.take_along_axis(item_idx, column, axis=1)
        ratings = np.take_along_axis(ratings, column, axis=1)
        times = np.take_along_axis(times, column, axis=1)
    spans = np.zeros_like(times)
    spans[:, 1:] = times[:, 1:] - times[:, :-1]
    return Tokens(
        item_idx=np.where(valid, item_idx, -1),
        ratings=np.where(valid, rating_levels(ratings), 0),
        gaps=np.where(valid, gap_levels(spans), 0),
        count=count,
        query_gap=np.where(count > 0, gap_levels(states.now - states.timestamps[:, -1]), 0),
        profile=states.profile,
    )


@dataclass(frozen=True)
class Windows:
    """Windows of user histories with their queries and targets.

    item_idx, ratings, gaps   (R, L), left-aligned; -1 and 0 beyond the end
    profile                   (R, 3)
    query_row, query_position (Q,) where a context ends: `position` tokens of the row are known
    query_gap                 (Q,) level of the time from the last known event to the target
    target_query, target_item (T,)
    """

    item_idx: IntArray
    ratings: IntArray
    gaps: IntArray
    profile: IntArray
    query_row: IntArray
    query_position: IntArray
    query_gap: IntArray
    target_query: IntArray
    target_item: IntArray

    def seen(self) -> tuple[IntArray, IntArray]:
        """(S,) queries and items: what stands in a query's window before its context ends."""
        columns = np.arange(self.item_idx.shape[1])
        items = self.item_idx[self.query_row]  # (Q, L)
        query, column = np.nonzero((columns < self.query_position[:, None]) & (items >= 0))
        return query, items[query, column]


class WindowCutter:
    """Cuts the training part of all histories into windows; a new random offset each time."""

    def __init__(self, histories: Histories, cutoff: int, max_length: int) -> None:
        """Events with timestamp <= cutoff are known; later ones do not exist."""
        self._length = max_length
        self._histories = histories
        starts = histories.offset[:-1]
        n_users = len(histories.user_ids)
        known = histories.timestamps <= cutoff
        user_of = np.repeat(np.arange(n_users), np.diff(histories.offset))
        counts = np.bincount(user_of[known], minlength=n_users)
        self._users = np.flatnonzero(counts)
        self._starts, self._counts = starts[self._users], counts[self._users]
        self.n_events = int(counts.sum())
        digest = hashlib.sha256(counts.tobytes())
        for column in (histories.item_idx, histories.timestamps, histories.ratings):
            digest.update(np.ascontiguousarray(column[known]).tobytes())
        self.fingerprint = digest.hexdigest()  # of everything that training sees

        times = histories.timestamps
        gap = np.zeros(len(times), dtype=np.int64)
        gap[1:] = times[1:] - times[:-1]
        gap[starts[starts < len(times)]] = 0
        new_group = np.ones(len(times), dtype=bool)
        new_group[1:] = (times[1:] != times[:-1]) | (user_of[1:] != user_of[:-1])
        group = np.cumsum(new_group) - 1
        self._group_start = np.flatnonzero(new_group)[group]  # (E,) position of the first event of the same second
        self._gap = gap_levels(gap)
        self._rating = rating_levels(histories.ratings)
        self._query_gap = self._gap[self._group_start]

    def cut(self, rng: np.random.Generator) -> tuple[IntArray, IntArray]:
        """(R, 2) first and one-past-last position of each window, and the user of each, in random order."""
        length = self._length
        bounds, users = [], []
        for user, start, count in zip(self._users, self._starts, self._counts, strict=True):
            first = int(rng.integers(1, length + 1)) if count > length else count
            edges = [0, *range(first, count, length), count]
            for low, high in pairwise(edges):
                bounds.append((start + low, start + high))
                users.append(user)
        order = rng.permutation(len(bounds))
        return np.asarray(bounds, dtype=np.int64).reshape(-1, 2)[order], np.asarray(users, dtype=np.int64)[order]

    def windows(self, bounds: IntArray, users: IntArray) -> Windows:
        """The arrays of some windows. A target whose context lies wholly before its window is left out."""
        h = self._histories
        lengths = bounds[:, 1] - bounds[:, 0]
        width = int(lengths.max())
        positions = bounds[:, :1] + np.arange(width)[None, :]
        valid = positions < bounds[:, 1:]
        gather = np.where(valid, positions, 0)
        row, column = np.nonzero(valid)
        event = positions[row, column]
        context = self._group_start[event] - bounds[row, 0]  # tokens of the window known before the event
        # A context that begins before the window would read as "no history": leave such targets out, unless the
        # window is the user's first, where an empty history is the truth.
        first_window = bounds[row, 0] == h.offset[users[row]]
        usable = (context > 0) | (first_window & (context == 0))
        row, event, context = row[usable], event[usable], context[usable]
        key = row * (width + 1) + context
        query, target_query = np.unique(key, return_inverse=True)
        first_target = np.zeros(len(query), dtype=np.int64)
        first_target[target_query] = event
        return Windows(
            item_idx=np.where(valid, h.item_idx[gather], -1),
            ratings=np.where(valid, self._rating[gather], 0),
            gaps=np.where(valid & (positions > bounds[:, :1]), self._gap[gather], 0),
            profile=h.profile[users],
            query_row=query // (width + 1),
            query_position=query % (width + 1),
            query_gap=np.where(query % (width + 1) == 0, 0, self._query_gap[first_target]),
            target_query=target_query,
            target_item=h.item_idx[event],
        )
