"""Distances between two samples: by hand, and at the edges."""

import numpy as np
import pytest

from recsys.monitoring.drift import SMALLEST, Drift, drift


def test_psi_by_hand() -> None:
    """Quarters against shares of .5, .25, .25 and nothing, which counts as SMALLEST."""
    expected = 0.25 * np.log(2) + (SMALLEST - 0.25) * np.log(SMALLEST / 0.25)
    assert drift([1, 2, 3, 4], [1, 1, 2, 3], bins=4).psi == pytest.approx(expected, rel=1e-3)


def test_missing_values_are_a_bin_and_a_constant_has_one() -> None:
    moved = drift([1, 2, np.nan, np.nan], [1, 2, 1, 2], bins=2)
    assert moved.ks == 0.0, "of the values that are there nothing moved"
    assert moved.psi > 0.2
    assert drift([np.nan, np.nan], [1.0]).ks is None
    assert drift([3, 3, 3], [4, 4]) == Drift(0.0, 1.0)


@pytest.mark.parametrize("samples", [([], [1.0]), ([1.0], [])])
def test_an_empty_sample_has_no_distance(samples: tuple[list[float], list[float]]) -> None:
    with pytest.raises(ValueError, match="at least one value each"):
        drift(*samples)
