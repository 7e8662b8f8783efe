"""Histories cut into training windows for the two-tower model.

The context of a target is everything of its user with an earlier timestamp: the events of one second are predicted
from the same context and never from one another, just as in the replay protocol. Windows hold L tokens and start at
a random offset in each epoch.

Shapes: E events, R rows (windows), L tokens, Q queries (contexts), T targets.
"""

import hashlib
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from recsys.arrays import IntArray
from recsys.features.histories import Histories
from recsys.retrieval.tower_inputs import gap_levels, rating_levels


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
