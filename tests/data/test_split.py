"""Cutoffs in time."""

import numpy as np
import pytest

from recsys.data.split import Split, split_by_time
from recsys.errors import DataError


@pytest.mark.parametrize("n", [11, 19, 20, 100, 1_003])
def test_cutoffs_are_the_values_at_the_floor_of_q_n(n: int) -> None:
    times = np.cumsum(np.random.default_rng(n).integers(1, 50, n)) + 10**9
    shuffled = np.random.default_rng(1).permutation(times)
    expected = [int(times[tenths * n // 10]) for tenths in (7, 8, 9)]
    assert split_by_time(shuffled) == Split(*expected, int(times[-1]))


def test_no_events_are_refused() -> None:
    with pytest.raises(DataError, match="There are no events to split"):
        split_by_time(np.zeros(0, dtype=np.int64))


@pytest.mark.parametrize(
    "times",
    [[5], list(range(10)), [5] * 50, [1] * 45 + [2] * 5, list(range(40)) + [99] * 20, list(range(45)) + [45] * 5],
    ids=["one", "ten", "all equal", "t0 = t1", "t1 = t2", "t2 = end"],
)
def test_a_window_that_would_be_empty_is_refused_with_the_cutoffs(times: list[int]) -> None:
    with pytest.raises(DataError, match=f"The {len(times)} events cannot be split by time.* too small"):
        split_by_time(np.array(times))
