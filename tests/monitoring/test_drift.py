"""Distances between two samples: by hand, and at the edges."""

import numpy as np
import pytest

from recsys.monitoring.drift import SMALLEST, Drift, Sample, drift


def of_users(reference: list[float], current: list[float], bins: int = 10) -> Drift:
    """Each value is a user's."""
    return drift(*(Sample(values, range(len(values))) for values in (reference, current)), bins)


def test_psi_by_hand() -> None:
    """Quarters against shares of .5, .25, .25 and nothing, which counts as SMALLEST."""
    expected = 0.25 * np.log(2) + (SMALLEST - 0.25) * np.log(SMALLEST / 0.25)
    assert of_users([1, 2, 3, 4], [1, 1, 2, 3], bins=4).psi == pytest.approx(expected, rel=1e-3)


def test_missing_values_are_a_bin_and_a_constant_has_one() -> None:
    moved = of_users([1, 2, np.nan, np.nan], [1, 2, 1, 2], bins=2)
    assert moved.ks == 0.0, "of the values that are there nothing moved"
    assert moved.psi > 0.2
    assert (moved.missing_before, moved.missing) == (0.5, 0.0)
    assert of_users([np.nan, np.nan], [1.0, 1.0]).ks is None
    assert of_users([3, 3, 3], [4, 4]) == Drift(0.0, 1.0, 1.0, 0.0, 0.0)
    assert of_users([np.nan, np.nan], [1.0, 1.0]).p_value == 0.0, "every user changed"


def test_rows_of_one_user_count_as_one() -> None:
    """Ten users differ by chance; a hundred rows of each say no more about it."""
    rng = np.random.default_rng(0)
    (ours, theirs), users = rng.normal(size=(2, 10)), np.repeat(np.arange(10), 100)
    few, many = of_users([*ours], [*theirs]), drift(Sample(ours[users], users), Sample(theirs[users], users))
    assert many.psi == pytest.approx(few.psi)
    assert many.p_value == pytest.approx(few.p_value)


@pytest.mark.parametrize("samples", [([], [1.0, 2.0]), ([1.0, 2.0], [1.0])])
def test_one_user_is_too_few(samples: tuple[list[float], list[float]]) -> None:
    with pytest.raises(ValueError, match="at least two users each"):
        of_users(*samples)
