"""Fitting probabilities where the true ones are known."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import minimize

from recsys.errors import ConfigError, DataError
from recsys.ranking.calibration import COUNT, HABITS, like_scores, log_shares
from recsys.ranking.calibration_training import (
    LIKE_FEATURES,
    MOVIE_SHARE,
    USER_SHARE,
    fit_isotonic,
    fit_platt,
    fit_probabilities,
)
from recsys.ranking.ranker import LogisticRanker
from recsys.ranking.training import RankerSettings, TrainingTable, UnsampledCandidates

NAMES = ("z", *LIKE_FEATURES)
SETTINGS = RankerSettings(max_trees=80, learning_rate=0.1, min_rows_in_leaf=20, early_stopping=20, threads=1)
FOUND = 0.6  # how often the next item is among the candidates
K = 20


def scorer(sharpness: float) -> LogisticRanker:
    """A ranker whose score is `sharpness` times what really decides."""
    weights = np.zeros(len(NAMES), dtype=np.float32)
    weights[0] = sharpness
    return LogisticRanker(NAMES, weights * 0, weights * 0 + 1, weights, 0.0)


def lists(contexts: int, seed: int) -> tuple[UnsampledCandidates, np.ndarray]:
    """One item of K happens with probability FOUND * softmax(z), none otherwise; and those true probabilities."""
    rng = np.random.default_rng(seed)
    z = rng.normal(0, 1.5, (contexts, K))
    z[:, 0] += rng.normal(0, 2, contexts)  # some answers are surer than others
    weight = np.exp(z)
    truth = FOUND * weight / weight.sum(axis=1, keepdims=True)
    draw = rng.random((contexts, 1))
    chosen = (np.cumsum(truth, axis=1) < draw).sum(axis=1)
    happened = np.arange(K) == chosen[:, None]
    features = rng.normal(0, 1, (contexts, K, len(NAMES))).astype(np.float32)
    features[:, :, 0] = z
    features[:, :, NAMES.index(COUNT)] = 3.0
    everywhere = np.ones((contexts, K), dtype=bool)
    return UnsampledCandidates(features, everywhere, happened, np.arange(contexts) * 10 + 5), truth


def liking(features: np.ndarray) -> np.ndarray:
    """True P(like) of rows (R, F)."""
    logit = 0.4 + 1.0 * features[:, NAMES.index(MOVIE_SHARE)] + 0.8 * features[:, NAMES.index(USER_SHARE)]
    return np.asarray(1 / (1 + np.exp(-logit)))


def table(contexts: int = 3_000, seed: int = 0, negatives: int = K) -> TrainingTable:
    """As `build_training_table` would make it: found contexts alone, thinned negatives, and the whole lists."""
    whole, _ = lists(contexts, seed)
    rng = np.random.default_rng(seed + 100)
    features, labels, ratings, sizes, times = [], [], [], [], []
    for c in np.flatnonzero(whole.happened.any(axis=1)):
        others = rng.permutation(np.flatnonzero(~whole.happened[c]))[:negatives]
        rows = np.sort(np.append(others, whole.happened[c].argmax()))
        features.append(whole.features[c, rows])
        labels.append(whole.happened[c, rows])
        liked = rng.random(len(rows)) < liking(whole.features[c, rows])
        ratings.append(np.where(whole.happened[c, rows], np.where(liked, 4.0, 3.5), np.nan))
        sizes.append(len(rows))
        times.append(whole.timestamp[c])
    label = np.concatenate(labels).astype(np.int32)
    return TrainingTable(
        NAMES,
        np.concatenate(features),
        label,
        np.arange(len(label)),
        np.concatenate(ratings).astype(np.float32),
        np.asarray(sizes),
        np.asarray(times),
        np.arange(len(sizes)),
        FOUND,
        whole,
    )


def log_loss(p: np.ndarray, y: np.ndarray) -> float:
    return float(-np.where(y, np.log(p), np.log1p(-p)).mean())


PLACES = np.arange(K)[None]


@pytest.mark.parametrize("sharpness", [1.0, 3.0])
def test_the_true_probability_is_recovered_also_from_a_sharpened_score(sharpness: float) -> None:
    fitted, facts = fit_probabilities(table(), SETTINGS, scorer(sharpness))
    fresh, truth = lists(2_000, 9)
    ranked = (sharpness * fresh.features[:, :, 0]).astype(np.float32)
    got = fitted.watch(ranked, PLACES.repeat(2_000, axis=0)).astype(np.float64)
    assert fitted.temperature == pytest.approx(sharpness, rel=0.15)
    best, mine = log_loss(truth, fresh.happened), log_loss(got, fresh.happened)
    naive = np.clip(np.exp(log_shares(ranked, 1.0)), 1e-12, 1 - 1e-12)
    assert mine < best + 0.002
    assert log_loss(naive, fresh.happened) > best + 0.004, "the softmax alone, at no sharpness, is right"
    order = np.argsort(truth.ravel())
    for part in np.array_split(order, 8):
        assert got.ravel()[part].mean() == pytest.approx(truth.ravel()[part].mean(), rel=0.2, abs=0.002)
    assert got.mean() == pytest.approx(FOUND / K, rel=0.08), "contexts of which nothing was found count"
    assert facts["watch"]["contexts_found"] / facts["watch"]["contexts"] == pytest.approx(FOUND, abs=0.05)


def test_thinned_negatives_do_not_move_the_probabilities() -> None:
    full, thinned = table(1_500), table(1_500, negatives=4)
    assert len(thinned) < len(full) / 3
    one, other = (fit_probabilities(t, SETTINGS, scorer(2.0))[0] for t in (full, thinned))
    assert (one.temperature, one.watch_map) == (other.temperature, other.watch_map)


def test_only_lists_later_than_what_the_early_ranker_saw_are_read() -> None:
    """The lists up to the split say the opposite, and nothing moves."""
    honest = table(800)
    split = honest.timestamp[int(len(honest.group_sizes) * (1 - SETTINGS.holdout)) - 1]
    known = honest.unsampled.timestamp <= split
    assert 0 < known.sum() < len(known)
    features = honest.unsampled.features.copy()
    features[known, :, 0] *= -1
    turned = replace(honest, unsampled=replace(honest.unsampled, features=features))
    one, other = (fit_probabilities(t, SETTINGS, scorer(1.0))[0] for t in (honest, turned))
    assert (one.temperature, one.watch_map) == (other.temperature, other.watch_map)


def test_the_like_score_beats_both_shares_where_both_matter() -> None:
    said: list[str] = []
    fitted, facts = fit_probabilities(table(4_000), SETTINGS, scorer(1.0), report=said.append)
    rng = np.random.default_rng(5)
    rows = rng.normal(0, 1, (4_000, len(NAMES))).astype(np.float32)
    rows[:, NAMES.index(COUNT)] = 3.0
    truth = liking(rows)
    got = fitted.like_map(like_scores(fitted.like_score, rows))
    liked = rng.random(4_000) < truth
    assert log_loss(got, liked) < log_loss(truth, liked) + 0.01
    assert np.abs(got - truth).mean() < 0.06
    like = facts["like"]
    assert like["chosen"].startswith("logistic, ")
    assert like["chosen"] == min(like["log_loss"], key=lambda option: like["log_loss"][option])
    assert like["log_loss"][like["chosen"]] < like["log_loss"]["constant"]
    assert like["auc"]["logistic"] > max(like["auc"]["item's liked share"], like["auc"]["user's liked share"]) > 0.6
    assert [line.split(":")[0] for line in said] == ["P(watch)", "P(like)"]


def test_the_losses_that_decide_are_those_of_the_second_half_of_the_later_contexts() -> None:
    """The item's share alone, recomputed from the table by hand."""
    made = table(2_000)
    _, facts = fit_probabilities(made, SETTINGS, scorer(1.0))
    rows = np.flatnonzero(made.labels == 1)  # one a context
    late = np.array_split(rows, [int(len(rows) * (1 - SETTINGS.holdout))])[1]
    first, second = np.array_split(late, 2)
    share, liked = made.features[:, NAMES.index(MOVIE_SHARE)].astype(np.float64), made.rating >= 4

    def loss(parameters: np.ndarray, part: np.ndarray) -> float:
        return log_loss(1 / (1 + np.exp(-(parameters[0] * share[part] + parameters[1]))), liked[part])

    best = minimize(loss, [0.0, 0.0], args=(first,), tol=1e-10).x
    assert facts["like"]["log_loss"]["item's liked share, platt"] == pytest.approx(loss(best, second), abs=1e-5)
    rate = (liked[first].sum() + 1) / (len(first) + 2)
    constant = log_loss(np.full(len(second), rate), liked[second])
    assert facts["like"]["log_loss"]["constant"] == pytest.approx(constant, abs=1e-9)
    assert facts["like"]["n_compared"] == len(second)
    assert facts["like"]["base_rate"] == pytest.approx(liked[late].mean())


def test_unknown_values_and_newcomers_do_no_harm() -> None:
    odd = table(600)
    features = odd.features.copy()
    features[::3, NAMES.index("decade")] = np.nan
    newcomer = np.arange(len(features)) % 5 == 0
    features[np.ix_(newcomer, [NAMES.index(name) for name in (COUNT, *HABITS)])] = 0.0
    fitted, _ = fit_probabilities(replace(odd, features=features), SETTINGS, scorer(1.0))
    assert np.isfinite(fitted.like_map(like_scores(fitted.like_score, features))).all()
    moved = features.copy()
    moved[np.ix_(newcomer, [NAMES.index(name) for name in HABITS])] = 99.0
    got = like_scores(fitted.like_score, moved)[newcomer]
    np.testing.assert_array_equal(got, like_scores(fitted.like_score, features)[newcomer])


def test_without_a_later_list_there_is_nothing_to_fit_on() -> None:
    made = table(100)
    early = made.unsampled.timestamp < made.timestamp[10]
    whole = UnsampledCandidates(
        *(getattr(made.unsampled, name)[early] for name in ("features", "present", "happened", "timestamp"))
    )
    with pytest.raises(DataError, match=r"no context with a whole candidate list is later .*\(unsampled_candidates\)"):
        fit_probabilities(replace(made, unsampled=whole), SETTINGS, scorer(1.0))


def test_a_table_without_the_features_of_liking_is_refused() -> None:
    made = table(60)
    with pytest.raises(ConfigError, match=f"reads the feature '{MOVIE_SHARE}'"):
        fit_probabilities(
            replace(made, feature_names=tuple("gone" if n == MOVIE_SHARE else n for n in NAMES)), SETTINGS, scorer(1.0)
        )


@pytest.mark.parametrize(
    ("happened", "rate"),
    [([False] * 4, 1 / 6), ([True] * 4, 5 / 6), ([True, True, False, False], 3 / 6)],
    ids=["never", "always", "the wrong way round"],
)
def test_platt_is_flat_where_the_score_tells_nothing(happened: list[bool], rate: float) -> None:
    got = fit_platt(np.array([1.0, 2.0, 3.0, 4.0]), np.array(happened))
    assert got.slope == 0.0
    assert got(7.0) == pytest.approx(rate)


@pytest.mark.parametrize("fit", [fit_platt, fit_isotonic])
def test_no_example_is_refused(fit) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(DataError, match="at least one example"):
        fit(np.empty(0), np.empty(0, dtype=bool))
