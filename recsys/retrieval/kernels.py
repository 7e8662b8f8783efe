"""The loops of an answer that NumPy would need many small calls for.

Stage: retrieval, at request time. In: arrays. Out: arrays, written in place. Absent: what the numbers mean
(`retriever`, `merge`, `sparse_table`), and sums in an order of the compiler's choosing: every addition stands where it
is written, so a batch gives the same bits as its rows one by one.

One list takes dozens of steps over a few thousand numbers. In NumPy each is a call, an array between and the
interpreter's lock; these are compiled loops (docs/adr/0027). No index is checked here. What a loop can do is written
as one, and memory comes from outside: a slice or a call of NumPy in here costs a start 0.1 s and more of compiling.

Shapes: B users, N items, L history length, S retrievers, k places of a list, K candidates.
"""

import numpy as np
import numpy.typing as npt

from recsys.arrays import DoubleArray, FloatArray, IntArray
from recsys.retrieval.compiling import compiled, reads

KEY_BITS = 32  # of a sorting key
DIGIT_BITS = 11  # of them that are looked at together
DIGITS = 1 << DIGIT_BITS
LAST_KEY = 0xFFFF_FFFF  # of what may not be returned
# erfc(z) = 1 / (1 + a1 z + .. + a6 z^6)^16, z >= 0; the error is below 3e-7. Here for |x| instead of z = |x| / sqrt 2.
# Source: M. Abramowitz, I. Stegun, Handbook of Mathematical Functions, 7.1.28.
ERFC = (0.0705230784, 0.0422820123, 0.0092705272, 0.0001520143, 0.0002765672, 0.0000430638)
A1, A2, A3, A4, A5, A6 = (np.float32(a * 0.5 ** (power / 2)) for power, a in enumerate(ERFC, 1))


@compiled(
    f"void({reads('float32')}, {reads('uint32')}, {reads('int64')}, float32,"
    " uint32[::1], int64[:, ::1], int64[::1], int64[::1], float32[::1])"
)
def sort_best(
    scores: FloatArray,
    bits: npt.NDArray[np.uint32],
    hidden: IntArray,
    no_score: float,
    keys: npt.NDArray[np.uint32],
    order: IntArray,
    count: IntArray,
    item_idx: IntArray,
    best: FloatArray,
) -> None:
    """What `best_of_row` does. `bits` are the scores' own; `keys` (N,), `order` (2, N + 1) and `count` (DIGITS,) are
    memory to work in.

    The bits of a float32 become an integer that is the smaller, the better the score; -0 is 0. The numbers whose first
    digit may be among the best are sorted digit by digit from the last, which keeps equal ones in order.
    """
    for i in range(len(scores)):
        key = bits[i] if bits[i] > 0x8000_0000 else (bits[i] & 0x7FFF_FFFF) ^ 0x7FFF_FFFF
        keys[i] = key if scores[i] != no_score and scores[i] == scores[i] else LAST_KEY
    for i in range(len(hidden)):
        keys[hidden[i]] = LAST_KEY
    for digit in range(DIGITS):
        count[digit] = 0
    for i in range(len(keys)):
        count[keys[i] >> (KEY_BITS - DIGIT_BITS)] += 1
    first, enough = 0, count[0]
    while enough < len(item_idx) and first < DIGITS - 1:
        first += 1
        enough += count[first]
    end = (first + 1) << (KEY_BITS - DIGIT_BITS)
    n = 0
    for i in range(len(keys)):
        order[0, n] = i  # the one place more is for what comes after the last that is kept
        n += keys[i] < end and keys[i] != LAST_KEY
    side = 0
    for shift in range(0, KEY_BITS, DIGIT_BITS):
        for digit in range(DIGITS):
            count[digit] = 0
        for j in range(n):
            count[(keys[order[side, j]] >> shift) & (DIGITS - 1)] += 1
        place = 0
        for digit in range(DIGITS):
            place += count[digit]
            count[digit] = place - count[digit]
        for j in range(n):
            digit = (keys[order[side, j]] >> shift) & (DIGITS - 1)
            order[1 - side, count[digit]] = order[side, j]
            count[digit] += 1
        side = 1 - side
    for j in range(len(item_idx)):
        item_idx[j] = order[side, j] if j < n else -1
        best[j] = scores[item_idx[j]] if j < n else -np.inf


def best_of_row(scores: FloatArray, hidden: IntArray, no_score: float, item_idx: IntArray, best: FloatArray) -> None:
    """Fill `item_idx` (k,) and `best` (k,) with the best of (N,) scores, best first, ties by row number, -1 and -inf
    where there is no more. What is `hidden`, scores equal to `no_score`, and what is not a number are left out."""
    n = len(scores)
    keys, order = np.empty(n, dtype=np.uint32), np.empty((2, n + 1), dtype=np.int64)
    count = np.empty(DIGITS, dtype=np.int64)
    sort_best(scores, scores.view(np.uint32), hidden, no_score, keys, order, count, item_idx, best)


@compiled(f"void({reads('int64', 2)}, {reads('float64', 2)}, float32[::1])")
def add_shares(tops: IntArray, shares: DoubleArray, rrf_score: FloatArray) -> None:
    """Add to (N,) `rrf_score` the share (S, k) of each place for the item (S, k) that stands there; lists end at -1."""
    for s in range(tops.shape[0]):
        for place in range(tops.shape[1]):
            if tops[s, place] < 0:
                break
            rrf_score[tops[s, place]] += shares[s, place]


@compiled(f"void({reads('int64', 2)}, {reads('int64')}, int64[::1], int32[:, ::1])")
def find_ranks(tops: IntArray, item_idx: IntArray, column: IntArray, ranks: npt.NDArray[np.int32]) -> None:
    """Fill zeros (S, K) with the rank, from 1, of the (K,) candidates in the (S, k) lists; -1 is no item in either.
    `column` (N,) is memory to work in."""
    for item in range(len(column)):
        column[item] = -1
    for j in range(len(item_idx)):
        if item_idx[j] >= 0:
            column[item_idx[j]] = j
    for s in range(tops.shape[0]):
        for place in range(tops.shape[1]):
            item = tops[s, place]
            if item >= 0 and column[item] >= 0:
                ranks[s, column[item]] = place + 1


@compiled(
    f"void({reads('int32')}, {reads('int32')}, {reads('float32')},"
    f" {reads('int64', 2, 'A')}, {reads('float32', 2, 'A')}, float32[:, ::1])"
)
def add_sparse_rows(
    indptr: npt.NDArray[np.int32],
    indices: npt.NDArray[np.int32],
    data: FloatArray,
    item_idx: IntArray,
    weights: FloatArray,
    out: FloatArray,
) -> None:
    """Add to (B, N) `out` the rows of a sparse table that (B, L) `item_idx` names, times their weights; -1 is none."""
    for b in range(item_idx.shape[0]):
        for step in range(item_idx.shape[1]):
            item = item_idx[b, step]
            if item >= 0:
                for entry in range(indptr[item], indptr[item + 1]):
                    out[b, indices[entry]] += data[entry] * weights[b, step]


@compiled(
    f"void({reads('float32', 2)}, {reads('int64')}, {reads('int64', 2)}, {reads('float32', 2)},"
    " float32[::1], float32[:, ::1])"
)
def add_dense_rows(
    table: FloatArray, columns: IntArray, rows: IntArray, weights: FloatArray, total: FloatArray, out: FloatArray
) -> None:
    """Fill the `columns` (M,) of (B, N) `out` with the sum of the rows of (M, M) `table` that (B, L) `rows` names,
    times their weights; -1 is none. `total` (M,) is memory to work in."""
    for b in range(rows.shape[0]):
        for j in range(len(columns)):
            total[j] = 0.0
        for step in range(rows.shape[1]):
            row, weight = rows[b, step], weights[b, step]
            if row >= 0:
                for j in range(len(columns)):
                    total[j] += table[row, j] * weight
        for j in range(len(columns)):
            out[b, columns[j]] = total[j]


@compiled(f"void({reads('int64', 2, 'A')}, {reads('int64', 2, 'A')}, {reads('float64')}, float32[:, ::1])")
def share_by_second(item_idx: IntArray, timestamps: IntArray, by_step: DoubleArray, weights: FloatArray) -> None:
    """Fill zeros (B, L) with the weight (L,) of each step of the events, which stand at the end of a row; those of one
    second share the mean of theirs."""
    length = item_idx.shape[1]
    for b in range(item_idx.shape[0]):
        low = length
        for i in range(length):
            low -= item_idx[b, i] >= 0
        while low < length:
            high, total = low, 0.0
            while high < length and timestamps[b, high] == timestamps[b, low]:
                total += float(by_step[high])
                high += 1
            mean = total / (high - low)
            while low < high:
                weights[b, low] = mean
                low += 1


@compiled("void(float32[:, ::1])")
def gelu(values: FloatArray) -> None:
    """Each x times the normal distribution function, as max(x, 0) - |x| erfc(|x| / sqrt 2) / 2; within 8e-7, in place.

    Chosen for having no branch and no exponential, so that the loop takes many values at once.
    """
    one, half, zero = np.float32(1), np.float32(0.5), np.float32(0)
    for i in range(values.shape[0]):
        for j in range(values.shape[1]):
            x = values[i, j]
            size = abs(x)
            t = one + size * (A1 + size * (A2 + size * (A3 + size * (A4 + size * (A5 + size * A6)))))
            t *= t
            t *= t
            t *= t
            t *= t
            values[i, j] = max(x, zero) - half * size / t
