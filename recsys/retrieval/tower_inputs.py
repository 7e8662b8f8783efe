"""What the two-tower model is made of and what it reads: sizes, weights, and the tokens of a user's stored state.

Stage: retrieval; both tracks. In: a `StateBatch` or raw arrays. Out: integers that index the model's tables. Absent:
torch, so that a process that only infers (`tower_inference`) starts without it.

Shapes: T tokens that exist.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from recsys.arrays import FloatArray, IntArray
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

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


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
    """The last events of one user, oldest first.

    item_idx, ratings, gaps   (T,) row numbers; levels of the stars and of the time since the event before
    query_gap                 level of the time from the newest event to the moment of the request; 0 without events
    profile                   (3,)
    """

    item_idx: IntArray
    ratings: IntArray
    gaps: IntArray
    query_gap: int
    profile: IntArray


def tokens_of(states: StateBatch, row: int, max_length: int) -> Tokens:
    """What the user tower reads of one user: at most `max_length` events. The first one's gap is 0, as it is for the
    first one of a window in training."""
    item_idx = states.item_idx[row]
    count = min(int(np.count_nonzero(item_idx >= 0)), max_length)
    first = len(item_idx) - count
    times = states.timestamps[row, first:]
    spans = np.zeros(count + 1, dtype=np.int64)
    if count:
        np.subtract(times[1:], times[:-1], out=spans[1:-1])
        spans[-1] = states.now[row] - times[-1]
    levels = gap_levels(spans)
    return Tokens(
        item_idx[first:], rating_levels(states.ratings[row, first:]), levels[:-1], int(levels[-1]), states.profile[row]
    )
