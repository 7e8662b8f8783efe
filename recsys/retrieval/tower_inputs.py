"""What the two-tower model is made of and what it reads: sizes, weights, and the tokens of a user's stored state.

No torch here, so that a process that only infers (`tower_inference`) starts without it.

Shapes: B users, T tokens of the longest history, D dimensions, H heads.
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
