"""The contexts in which something is predicted: one user, one second, and what happened then.

The events of one user in one second are one context: they are predicted from the same history, never from one another.

Shapes: C contexts, E events.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from recsys.arrays import FloatArray, IntArray
from recsys.columns import ITEM_ID, RATING, TIMESTAMP, USER_ID
from recsys.features.item_stats import day_of

BATCH = 256


@dataclass(frozen=True)
class PredictionPoints:
    """Distinct (user, moment) pairs, ordered by (timestamp, user_id), with the events that happened then.

    event_context: of each event the row of its context; event_rating: float32 stars
    """

    user_id: IntArray
    timestamp: IntArray
    event_context: IntArray
    event_item_id: IntArray
    event_rating: FloatArray

    def __len__(self) -> int:
        return len(self.user_id)

    @classmethod
    def from_events(cls, events: pd.DataFrame, *, most: int | None = None, seed: int = 0) -> "PredictionPoints":
        """From the events of a window; a uniform sample of `most` contexts where there are more."""
        keys = events[[TIMESTAMP, USER_ID]].drop_duplicates().sort_values([TIMESTAMP, USER_ID])
        if most is not None and len(keys) > most:
            chosen = np.random.default_rng(seed).choice(len(keys), most, replace=False)
            keys = keys.iloc[np.sort(chosen)]
        index = pd.MultiIndex.from_frame(keys)
        context = index.get_indexer(pd.MultiIndex.from_frame(events[[TIMESTAMP, USER_ID]]))
        kept = context >= 0
        return cls(
            keys[USER_ID].to_numpy(np.int64),
            keys[TIMESTAMP].to_numpy(np.int64),
            context[kept].astype(np.int64),
            events[ITEM_ID].to_numpy(np.int64)[kept],
            events[RATING].to_numpy(np.float32)[kept],
        )

    def batches_by_day(self, size: int = BATCH) -> list[IntArray]:
        """Row numbers in batches of at most `size`, each within one day, in time order."""
        days = day_of(self.timestamp)
        out = []
        for day in np.unique(days):
            rows = np.flatnonzero(days == day)
            out += [rows[low : low + size] for low in range(0, len(rows), size)]
        return out
