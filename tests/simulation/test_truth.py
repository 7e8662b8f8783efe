"""The truth: the synthetic data set's own people, and one made from item vectors."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from recsys.atomic_io import read_json, write_json
from recsys.errors import ConfigError, DataError
from recsys.simulation.truth import RANDOM_WATCH, Truth, from_synthetic, from_vectors


def squared_error(truth: Truth, history: pd.DataFrame, raters: np.ndarray) -> float:
    """Of the stars in the history, when the tastes are those of the people in rows `raters`."""
    item_idx = np.searchsorted(truth.item_ids, history["item_id"])[:, None]
    stars = truth.utility(truth.people.take(raters), item_idx, history["timestamp"].to_numpy()).stars[:, 0]
    return float(np.square(np.clip(stars, 1, 5) - history["rating"]).mean())


def test_the_people_of_the_data_set_are_made_again(truth: Truth, history: pd.DataFrame) -> None:
    """Their own taste explains their ratings up to the noise, somebody else's does not."""
    rows = history["user_id"].to_numpy() - 1
    own = squared_error(truth, history, rows)
    assert own == pytest.approx(0.75**2, rel=0.12)  # the noise, less what clipping takes, and 1/12 of rounding
    assert squared_error(truth, history, (rows + 1) % truth.n_known) > 1.5 * own


def test_what_people_chose_has_more_utility_than_what_they_did_not(truth: Truth, history: pd.DataFrame) -> None:
    rows = np.arange(truth.n_known)
    end_s = np.array([history["timestamp"].max()])
    logits = truth.utility(truth.people.take(rows), None, end_s).logits
    chosen = np.zeros(logits.shape, bool)
    chosen[history["user_id"] - 1, np.searchsorted(truth.item_ids, history["item_id"])] = True
    assert logits[chosen].mean() > logits[~chosen].mean() + 1


def test_a_probability_is_that_of_its_logits_and_zero_before_the_release(truth: Truth) -> None:
    people, now = truth.people.take(np.arange(2)), np.array([np.sort(truth.released_at_s)[150]])
    utility = truth.utility(people, None, now)
    released = truth.released_at_s <= now[0]
    np.testing.assert_allclose(utility.watch[:, released], 1 / (1 + np.exp(-utility.logits[:, released])))
    assert not utility.watch[:, ~released].any()
    named = truth.utility(people, np.array([[5, 2], [0, 7]]), now)
    np.testing.assert_allclose(named.logits, utility.logits[[[0], [1]], [[5, 2], [0, 7]]], rtol=1e-5)


def test_files_of_another_generator_are_refused(folder: Path, tmp_path: Path) -> None:
    write_json(tmp_path / "SYNTHETIC.json", {**read_json(folder / "SYNTHETIC.json"), "generator_version": "0"})
    with pytest.raises(ConfigError, match="Another version of the generator"):
        from_synthetic(tmp_path)


@pytest.fixture
def two_camps() -> tuple[np.ndarray, np.ndarray, pd.DataFrame]:
    """20 items in two directions; even users rate 8 items of the first ten, odd ones of the second."""
    rng = np.random.default_rng(0)
    vectors = np.repeat(np.eye(2), 10, axis=0) + 0.05 * rng.standard_normal((20, 2))
    pairs = [(user, 10 * (user % 2) + item) for user in range(40) for item in rng.permutation(10)[:8]]
    events = pd.DataFrame(pairs, columns=["user_id", "item_id"]).assign(rating=4.0, timestamp=1_000_000)
    return np.arange(20), vectors.astype(np.float32), events


def test_vectors_give_each_camp_its_taste(two_camps: tuple[np.ndarray, np.ndarray, pd.DataFrame]) -> None:
    truth = from_vectors(*two_camps, seed=1, n_new=100)
    utility = truth.utility(truth.people, None, np.array([1_000_000]))
    first, second = utility.watch[:40, :10].mean(axis=1), utility.watch[:40, 10:].mean(axis=1)
    assert (first > 2 * second)[::2].all()
    assert (second > 2 * first)[1::2].all()
    assert utility.watch[:40].mean() == pytest.approx(RANDOM_WATCH)
    assert utility.watch[40:].mean() == pytest.approx(RANDOM_WATCH, abs=0.04), "newcomers are as the known ones"
    np.testing.assert_array_equal(truth.people.user_ids, np.arange(140))


def test_vectors_that_tell_nothing_are_refused(two_camps: tuple[np.ndarray, np.ndarray, pd.DataFrame]) -> None:
    ids, vectors, events = two_camps
    for bad in ((ids, np.ones_like(vectors), events), (ids + 100, vectors, events)):
        with pytest.raises(DataError, match="tell no two users apart"):
            from_vectors(*bad, seed=1)
