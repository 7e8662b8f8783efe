"""Cohorts: groups of test events that are measured apart, by history, visit, user and item. They overlap.

Shapes: E events, N items.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
import pandas as pd

from recsys.arrays import BoolArray, IntArray
from recsys.columns import LIKED_RATING, RATING
from recsys.features.candidate import SESSION_GAP_S
from recsys.features.histories import Histories

# Columns of a replayed frame.
N_HISTORY: Final = "n_history"  # the user's events before this one's second
GAP_S: Final = "gap_s"  # seconds since the last of them, -1 where there is none
NEW_USER: Final = "new_user"  # the user has no event up to T2
RATERS: Final = "raters"  # users who rated the item up to T2
FACTS: Final = (N_HISTORY, GAP_S, NEW_USER, RATERS)

RARE: Final = 9  # a rare item has at most this many raters, and at least one

Rule = Callable[[pd.DataFrame], "pd.Series[bool]"]
# Name, meaning and rule of every segment, in the order of the tables.
_RULES: Final[dict[str, tuple[str, Rule]]] = {
    "all": ("all events", lambda e: e[N_HISTORY] >= 0),
    "warm": ("the user had a history", lambda e: e[N_HISTORY] > 0),
    "cold": ("the user had no history", lambda e: e[N_HISTORY] == 0),
    "liked": (f"the user rated the item {LIKED_RATING:g} or more", lambda e: e[RATING] >= LIKED_RATING),
    "history 1-5": ("the user's history held 1 to 5 events", lambda e: e[N_HISTORY].between(1, 5)),
    "history 6-20": ("the user's history held 6 to 20 events", lambda e: e[N_HISTORY].between(6, 20)),
    "history 21-100": ("the user's history held 21 to 100 events", lambda e: e[N_HISTORY].between(21, 100)),
    "history over 100": ("the user's history held more than 100 events", lambda e: e[N_HISTORY] > 100),
    "return visit": ("first events after a pause of more than an hour", lambda e: e[GAP_S] > SESSION_GAP_S),
    "new user": ("the user has no event up to T2", lambda e: e[NEW_USER].astype(bool)),
    "new item": ("nobody rated the item up to T2", lambda e: e[RATERS] == 0),
    "rare item": (f"1 to {RARE} users rated the item up to T2", lambda e: e[RATERS].between(1, RARE)),
}
SEGMENTS: Final = {name: meaning for name, (meaning, _) in _RULES.items()}


@dataclass(frozen=True)
class Trained:
    """What the models could learn from.

    raters    (N,) users who rated each item; an item that a user rated twice counts once
    user_ids  of the users with an event, ascending
    """

    raters: IntArray
    user_ids: IntArray

    @classmethod
    def through(cls, histories: Histories, cutoff: int) -> "Trained":
        """From the events with timestamp <= cutoff."""
        in_time = histories.timestamps <= cutoff
        owner = np.repeat(histories.user_ids, np.diff(histories.offset))[in_time]
        pairs = pd.DataFrame({"user": owner, "item": histories.item_idx[in_time]}).drop_duplicates()
        return cls(np.bincount(pairs["item"], minlength=len(histories.catalogue)), np.unique(owner))


def segment_masks(events: pd.DataFrame) -> dict[str, BoolArray]:
    """(E,) for each of SEGMENTS, in their order. `events` has a rating and FACTS."""
    return {name: rule(events).to_numpy(dtype=bool) for name, (_, rule) in _RULES.items()}
