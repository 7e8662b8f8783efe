"""What it means that a user rates an item again. The one rule, for states, histories and statistics alike:

A user and an item count once. As of any moment, of the ratings known by then the one with the latest timestamp stands;
of equally late ones the one received last, which is the later row of a table. The others count nowhere: not in
the window, the sums or the seen items, nor as people in an item's statistics. When an item was first and last rated is
about the item, so every rating counts there.

`state.fold` follows the rule for one user's new events, `Histories` and `item_stats.snapshots` for tables. The files of
MovieLens hold no repeats.
"""

import numpy as np

from recsys.arrays import IntArray


def previous_of_pair(user_ids: IntArray, item_ids: IntArray) -> IntArray:
    """Of each row the position of the row before it with the same user and item; -1 for a first rating.

    The rows are in the order of time, each user's at least.

    >>> previous_of_pair(np.array([1, 1, 2, 1, 1]), np.array([7, 8, 7, 7, 7])).tolist()
    [-1, -1, -1, 0, 3]
    """
    order = np.lexsort((item_ids, user_ids))  # stable: the rows of a pair keep their order
    same = (user_ids[order[1:]] == user_ids[order[:-1]]) & (item_ids[order[1:]] == item_ids[order[:-1]])
    previous = np.full(len(order), -1, dtype=np.int64)
    previous[order[1:][same]] = order[:-1][same]
    return previous
