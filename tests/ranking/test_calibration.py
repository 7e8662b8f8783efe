"""Probabilities beside scores: shares, maps, files."""

import math
from pathlib import Path

import numpy as np
import pytest

from recsys.atomic_io import read_json, write_json
from recsys.errors import BundleError, ConfigError
from recsys.ranking.calibration import COUNT, HABITS, LIKE, MAPS, Isotonic, Platt, Probabilities, map_of
from recsys.ranking.ranker import LogisticRanker

NAMES = ("noise", COUNT, *HABITS)
SCORE = LogisticRanker(
    NAMES,
    np.array([0, 2, 3, 1, 0.5, 3], dtype=np.float32),
    np.array([1, 1, 0.5, 1, 0.25, 1], dtype=np.float32),
    np.array([0, 0.3, 0.7, 0, 1.1, 0.2], dtype=np.float32),
    0.4,
)
LEADERBOARD = Isotonic((-9.0, -3.0, -1.0), (0.001, 0.04, 0.3))
FITTED = Probabilities(2.0, LEADERBOARD, SCORE, Platt(0.8, -0.1))


def world(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Scores (5, 30) with places without a candidate, and features (5, 30, F)."""
    rng = np.random.default_rng(seed)
    ranked = rng.normal(0, 3, (5, 30)).astype(np.float32)
    ranked[0, 25:] = -np.inf
    features = rng.random((5, 30, len(NAMES))).astype(np.float32)
    features[3, :, 1:] = 0.0
    return ranked, features


def test_watch_is_the_map_of_the_share_at_each_place() -> None:
    ranked, _ = world()
    position = np.array([[3, 0, 24], [1, 2, 29], [7, -1, 5], [30, 4, 31], [0, 0, 0]])
    got = FITTED.watch(ranked, position)
    for b in range(5):
        weights = [math.exp(float(s) / 2.0) if math.isfinite(s) else 0.0 for s in ranked[b]]
        for column, place in enumerate(position[b].tolist()):
            if 0 <= place < 30 and weights[place] > 0:
                expected = np.interp(
                    math.log(weights[place] / sum(weights)), LEADERBOARD.score, LEADERBOARD.probability
                )
                assert got[b, column] == pytest.approx(expected, abs=1e-6)
            else:
                assert math.isnan(got[b, column])
    assert got.dtype == np.float32
    assert np.isnan(got).sum() == 3
    assert np.isnan(FITTED.watch(ranked, np.array([[25, 24]] * 5))[0]).tolist() == [True, False]


def test_like_is_the_map_of_the_score_and_a_newcomers_habits_are_unknown() -> None:
    _, features = world()
    position = np.array([[3, 0], [1, -1], [7, 30], [2, 4], [29, 0]])
    got = FITTED.like(features, position)
    for b in range(5):
        for column, place in enumerate(position[b].tolist()):
            if not 0 <= place < 30:
                assert math.isnan(got[b, column])
                continue
            total = 0.4
            for f, value in enumerate(features[b, place].tolist()):
                unknown = NAMES[f] in HABITS and b == 3
                total += 0.0 if unknown else float((value - SCORE.mean[f]) / SCORE.scale[f] * SCORE.weights[f])
            assert got[b, column] == pytest.approx(1 / (1 + math.exp(-(0.8 * total - 0.1))), abs=1e-6)
    assert (features[3, :, 2:] == 0).all(), "the caller's rows are not changed"


@pytest.mark.parametrize("watch_map", [LEADERBOARD, Platt(1.1, 0.3)])
def test_probabilities_lie_in_0_to_1_and_never_fall_as_the_score_rises(watch_map: Isotonic | Platt) -> None:
    ranked, features = world(1)
    fitted = Probabilities(0.7, watch_map, SCORE, LEADERBOARD)
    place = np.argsort(-ranked, axis=1)
    watch, like = fitted.watch(ranked * 40, place), fitted.like(features * 1e4, place)
    assert np.isnan(watch).sum() == np.isneginf(ranked).sum() == 5, "no candidate, no probability"
    for values in (watch[~np.isnan(watch)], like):
        assert ((values >= 0) & (values <= 1)).all()
    assert not (np.diff(watch, axis=1) > 0).any()


@pytest.mark.parametrize("watch_map", [LEADERBOARD, Platt(1.25, -0.3)])
def test_what_is_loaded_is_what_was_saved(watch_map: Isotonic | Platt, tmp_path: Path) -> None:
    fitted = Probabilities(1.7, watch_map, SCORE, Platt(0.123456789, -1e-9))
    fitted.save(tmp_path)
    loaded = Probabilities.load(tmp_path)
    assert (loaded.temperature, loaded.watch_map, loaded.like_map) == (1.7, watch_map, Platt(0.123456789, -1e-9))
    assert loaded.feature_names == NAMES
    (ranked, features), place = world(), np.arange(30)[None].repeat(5, axis=0)
    np.testing.assert_array_equal(loaded.watch(ranked, place), fitted.watch(ranked, place))
    np.testing.assert_array_equal(loaded.like(features, place), fitted.like(features, place))
    assert sorted(p.name for p in tmp_path.iterdir()) == [MAPS, LIKE]


@pytest.mark.parametrize("name", [MAPS, LIKE])
def test_a_missing_file_is_named(name: str, tmp_path: Path) -> None:
    FITTED.save(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(BundleError, match=f"{name} is missing; train again"):
        Probabilities.load(tmp_path)


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        ({"kind": "spline"}, "unknown kind 'spline'"),
        ({}, r"cannot be read \('kind'\)"),
        ({"kind": "platt", "slope": -1.0, "intercept": 0.0}, "slope of at least 0"),
        ({"kind": "platt", "slope": "steep", "intercept": 0.0}, "cannot be read"),
        ({"kind": "isotonic", "score": [0.0, 1.0], "probability": [0.5, 0.4]}, "never fall"),
        ({"kind": "isotonic", "score": [0.0], "probability": []}, "never fall"),
    ],
)
def test_a_broken_map_is_refused(stored: dict, message: str, tmp_path: Path) -> None:  # type: ignore[type-arg]
    with pytest.raises(BundleError, match=message):
        map_of(stored)
    FITTED.save(tmp_path)
    write_json(tmp_path / MAPS, {**read_json(tmp_path / MAPS), "like": stored})
    with pytest.raises(BundleError, match="train again"):
        Probabilities.load(tmp_path)


@pytest.mark.parametrize(
    ("score", "probability"),
    [
        ((), ()),
        ((0.0, 0.0), (0.1, 0.2)),
        ((0.0, 1.0), (-0.1, 0.2)),
        ((0.0, 1.0), (0.1, 1.2)),
        ((0.0, math.nan), (0.1, 0.2)),
    ],
)
def test_knots_that_are_no_rising_map_are_refused(score: tuple[float, ...], probability: tuple[float, ...]) -> None:
    with pytest.raises(ConfigError, match="isotonic map needs knots"):
        Isotonic(score, probability)


@pytest.mark.parametrize(("slope", "intercept"), [(-0.1, 0.0), (math.nan, 0.0), (math.inf, 0.0), (1.0, math.inf)])
def test_a_platt_map_must_rise(slope: float, intercept: float) -> None:
    with pytest.raises(ConfigError, match="Platt map needs"):
        Platt(slope, intercept)
