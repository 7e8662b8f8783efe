"""Maximal marginal relevance: an order that also minds how alike the chosen items are.

Source: J. Carbonell, J. Goldstein, The Use of MMR, Diversity-Based Reranking, SIGIR 1998. The next item is the one
with the largest (1 - d) * relevance - d * (largest similarity to an item already chosen); the first is the most
relevant one. Two choices are ours:

- relevance is the score scaled to [0, 1] within the pool, because the ranker's scores have no zero and no unit;
- similarity is the cosine of genre vectors. The two-tower vectors were rejected: what the ranker likes lies close
  together in their space, so a penalty there is a penalty on relevance. An item without genres is similar to nothing.

Shapes: B users, P pool, k answers, N items, G genres.
"""

import numpy as np

from recsys.arrays import FloatArray, IntArray
from recsys.errors import ConfigError

ABSENT, TAKEN = -2.0, -np.inf  # a candidate's value is at least -1


def check_diversity(diversity: float) -> None:
    """Raise ConfigError unless `diversity` lies in [0, 1]; NaN does not."""
    if not 0.0 <= diversity <= 1.0:
        raise ConfigError(f"diversity must lie between 0 (the ranker's order) and 1, got {diversity}")


def pool_size(k: int) -> int:
    """How many of the best candidates k answers are chosen from: five for each place, at least 50.

    >>> pool_size(10), pool_size(3), pool_size(20)
    (50, 50, 100)
    """
    return max(5 * k, 50)


def unit_genres(genres: FloatArray) -> FloatArray:
    """(N, G) genre vectors scaled to length 1; an item without genres keeps zeros.

    >>> unit_genres(np.array([[1, 1, 0, 1, 1], [0, 0, 0, 0, 0]], np.float32)).tolist()
    [[0.5, 0.5, 0.0, 0.5, 0.5], [0.0, 0.0, 0.0, 0.0, 0.0]]
    """
    norms = np.linalg.norm(genres, axis=1, keepdims=True)
    return np.asarray(genres / np.maximum(norms, 1.0), dtype=np.float32)


def relevance(scores: FloatArray) -> FloatArray:
    """(B, P) scores, best first, -inf where there is no candidate, scaled within each row to [0, 1].

    Where all candidates score the same, all are 1. Absent ones are 0 and must not be read.

    >>> relevance(np.array([[4.0, 3.0, 2.0, -np.inf], [7.0, 7.0, 7.0, 7.0]], np.float32)).tolist()
    [[1.0, 0.5, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]]
    """
    present = np.isfinite(scores)
    best = scores.max(axis=1, keepdims=True, initial=-np.inf)
    best = np.where(np.isfinite(best), best, 0.0)
    worst = np.where(present, scores, best).min(axis=1, keepdims=True, initial=np.inf)
    span = np.where(best > worst, best - worst, 1.0)
    return np.where(present, 1.0 - (best - np.where(present, scores, worst)) / span, 0.0).astype(np.float32)


def most_diverse(scores: FloatArray, vectors: FloatArray, k: int, diversity: float) -> IntArray:
    """(B, min(k, P)) columns of the pool in the order of maximal marginal relevance.

    scores   (B, P) best first, -inf where there is no candidate; absent ones come last
    vectors  (B, P, G) of length 1 or 0, not negative, so that a similarity lies in [0, 1]
    Equal values go to the better score, up to rounding in float32. Raises ConfigError for a diversity outside [0, 1].
    """
    check_diversity(diversity)
    size, pool = scores.shape
    gain = np.where(np.isfinite(scores), np.float32(1.0 - diversity) * relevance(scores), np.float32(ABSENT))
    chosen = np.empty((size, min(k, pool)), dtype=np.int64)
    for row in range(size):
        # (P, P): what an item, across, is worth beside one chosen, down. Its value is the least of these.
        beside = gain[row] - np.float32(diversity) * (vectors[row] @ vectors[row].T)
        value = gain[row].copy()
        for place in range(chosen.shape[1]):
            column = int(value.argmax())
            chosen[row, place] = column
            np.minimum(value, beside[column], out=value)
            value[column] = TAKEN
    return chosen
