"""Distances between two samples: by hand, against SciPy, and at the edges."""

import numpy as np
import pytest
from scipy.stats import ks_2samp

from recsys.monitoring.drift import SMALLEST, drift, drift_by_feature


@pytest.mark.parametrize("seed", range(5))
def test_ks_is_that_of_scipy(seed: int) -> None:
    rng = np.random.default_rng(seed)
    p, q = rng.normal(size=200).round(1), rng.normal(0.3, 1.2, size=317).round(1)  # rounded: with ties
    assert drift(p, q).ks == pytest.approx(ks_2samp(p, q).statistic, abs=1e-12)


def test_psi_by_hand() -> None:
    """Quarters against shares of .5, .25, .25 and nothing, which counts as SMALLEST."""
    found = drift([1, 2, 3, 4], [1, 1, 2, 3], bins=4)
    assert found.edges == (1, 2, 3)
    assert found.expected == (0.25, 0.25, 0.25, 0.25, 0.0)
    assert found.actual == (0.5, 0.25, 0.25, 0.0, 0.0)
    expected = 0.25 * np.log(2) + (SMALLEST - 0.25) * np.log(SMALLEST / 0.25)
    assert found.psi == pytest.approx(expected, rel=1e-12)


def test_missing_values_are_a_bin() -> None:
    found = drift([1, 2, np.nan, np.nan], [1, 2, 1, 2], bins=2)
    assert found.missing == (0.5, 0.0)
    assert found.expected == (0.25, 0.25, 0.5)
    assert found.actual == (0.5, 0.5, 0.0)
    assert found.ks == 0.0, "of the values that are there nothing moved"
    assert found.psi > 0.2
    nothing = drift([np.nan, np.nan], [1.0])
    assert np.isnan(nothing.ks)
    assert (nothing.expected, nothing.actual) == ((0.0, 1.0), (1.0, 0.0))


def test_a_constant_has_one_bin() -> None:
    assert drift([3, 3, 3], [3, 3]).psi == 0.0
    assert drift([3, 3, 3], [4, 4]).ks == 1.0


def test_the_same_sample_twice_has_not_moved() -> None:
    values = np.random.default_rng(0).normal(size=1_000)
    found = drift(values, values)
    assert (found.psi, found.ks, len(found.expected)) == (0.0, 0.0, 11)
    assert found.expected == pytest.approx([0.1] * 10 + [0.0])


def test_features_come_in_the_order_of_their_shift() -> None:
    rng = np.random.default_rng(0)
    still, moved = (rng.normal(at, 1, 500).astype(np.float32) for at in (0.0, 3.0))
    found = drift_by_feature({"a": still, "b": still, "gone": still}, {"a": still, "b": moved, "new": still})
    assert list(found) == ["b", "a"]


@pytest.mark.parametrize("samples", [([], [1.0]), ([1.0], [])])
def test_an_empty_sample_has_no_distance(samples: tuple[list[float], list[float]]) -> None:
    with pytest.raises(ValueError, match="at least one value each"):
        drift(*samples)
