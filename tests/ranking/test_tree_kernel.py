"""The tree kernel against LightGBM, to the last bit; what it refuses, and what happens then."""

import logging
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import lightgbm as lgb
import numpy as np
import pytest

from recsys.ranking.ranker import BoostedRanker
from recsys.ranking.tree_kernel import BLOCK, ZERO, TreeKernel, UnknownTreesError

F = 6
EDGES = np.array([0.0, -0.0, ZERO, -ZERO, 1e-38, -1e-38, 2e-35, 0.1, 3.4e38, np.inf, -np.inf, np.nan], dtype=np.float32)


def rows(n: int, seed: int = 0) -> np.ndarray:
    """(n, F): dense, half missing, counts with many zeros, tiny, constant, and mostly missing."""
    rng = np.random.default_rng(seed)
    out = rng.standard_normal((n, F)).astype(np.float32)
    out[rng.random(n) < 0.5, 1] = np.nan
    out[:, 2] = rng.poisson(0.7, n)
    out[:, 3] *= np.float32(1e-34)
    out[:, 4] = 2.0
    out[rng.random(n) < 0.9, 5] = np.nan
    return out


@lru_cache
def booster(trees: int = 40, **parameters: Any) -> lgb.Booster:
    x = rows(3_000)
    known = np.nan_to_num(x)
    y = known[:, 0] + known[:, 1] * known[:, 2] + np.isnan(x[:, 1]) + (known[:, 5] > 0.5) > 0.8
    settings = {"objective": "binary", "min_data_in_leaf": 3, "verbosity": -1, "num_threads": 1, "seed": 3}
    return lgb.train({**settings, **parameters}, lgb.Dataset(x, y, group=[30] * 100, free_raw_data=False), trees)


def edited(change: Callable[[str], str]) -> lgb.Booster:
    """LightGBM's text, changed. `tree_sizes` goes: it would not fit any more."""
    lines = booster(num_leaves=15).model_to_string().splitlines()
    return lgb.Booster(model_str=change("\n".join(x for x in lines if "tree_sizes" not in x) + "\n"))


def assert_equal(model: lgb.Booster) -> None:
    """Bit for bit on ordinary rows, on thresholds, beside them, and on everything odd."""
    kernel = TreeKernel(model)
    at = [value for name in model.feature_name() for value in thresholds(model, name)] or [0.0]
    with np.errstate(over="ignore"):
        near = np.array(at, dtype=np.float32)
        near = np.concatenate([near, np.nextafter(near, EDGES[-3]), np.nextafter(near, EDGES[-2])])
    odd = np.concatenate([EDGES, near])
    for x in (rows(1_000, seed=1), np.random.default_rng(2).choice(odd, (2_000, F))):
        np.testing.assert_array_equal(kernel(x), model.predict(x, raw_score=True))


def thresholds(model: lgb.Booster, feature: str) -> list[float]:
    table = model.trees_to_dataframe()
    return table[table["split_feature"] == feature]["threshold"].astype(float).tolist()


@pytest.mark.parametrize(
    "parameters",
    [
        {"num_leaves": 2},
        {"num_leaves": 15},
        {"num_leaves": 31},
        {"num_leaves": 15, "use_missing": False},
        {"num_leaves": 15, "objective": "lambdarank"},
    ],
    ids=lambda parameters: ", ".join(f"{name} {value}" for name, value in parameters.items()),
)
def test_scores_are_equal_to_the_last_bit(parameters: dict[str, Any]) -> None:
    assert_equal(booster(**parameters))


@pytest.mark.parametrize("threshold", ["0", "-0", "1e-36", "-1e-36", repr(ZERO), repr(-ZERO), "2e-35", "inf", "0.1"])
@pytest.mark.parametrize("kind", ["0", "2", "8", "10"], ids=["none", "none, left", "missing right", "missing left"])
def test_thresholds_near_zero_and_every_kind_of_missing(threshold: str, kind: str) -> None:
    """All splits of the first tree get this threshold and this kind."""

    def change(text: str) -> str:
        first, second, rest = text.partition("\nTree=1\n")
        lines = first.splitlines()
        for i, line in enumerate(lines):
            name, _, values = line.partition("=")
            if name in ("threshold", "decision_type"):
                lines[i] = f"{name}=" + " ".join([threshold if name == "threshold" else kind] * len(values.split()))
        return "\n".join(lines) + second + rest

    assert_equal(edited(change))


def test_a_tree_without_a_split_is_its_value() -> None:
    data = lgb.Dataset(np.zeros((50, F)), np.arange(50) % 5 == 0)
    assert_equal(lgb.train({"objective": "binary", "verbosity": -1}, data, 2))


@pytest.mark.parametrize("n", [0, 1, BLOCK, BLOCK + 1])
def test_any_number_of_rows(n: int) -> None:
    x = rows(5 * BLOCK)[:n]
    kernel = TreeKernel(booster(num_leaves=15))
    np.testing.assert_array_equal(kernel(x), kernel(rows(5 * BLOCK))[:n])


def test_other_columns_are_refused() -> None:
    with pytest.raises(ValueError, match="the trees know 6 columns"):
        TreeKernel(booster(num_leaves=15))(np.zeros((3, F + 1), np.float32))


def linear() -> lgb.Booster:
    x = np.nan_to_num(rows(500))
    data = lgb.Dataset(x, x[:, 0] > 0, params={"linear_tree": True})
    return lgb.train({"objective": "binary", "linear_tree": True, "verbosity": -1}, data, 2)


def categorical() -> lgb.Booster:
    x = rows(500)
    data = lgb.Dataset(x, x[:, 2] % 2 == 1, categorical_feature=[2])
    return lgb.train({"objective": "binary", "verbosity": -1, "min_data_per_group": 5}, data, 2)


def several() -> lgb.Booster:
    settings = {"objective": "multiclass", "num_class": 3, "verbosity": -1}
    return lgb.train(settings, lgb.Dataset(rows(500), np.arange(500) % 3), 2)


REFUSED: dict[str, tuple[Callable[[], lgb.Booster], str]] = {
    "linear": (linear, "linear leaves, categorical splits"),
    "categorical": (categorical, "linear leaves, categorical splits"),
    "zero is missing": (lambda: booster(num_leaves=15, zero_as_missing=True), "takes zero for missing"),
    "32 leaves": (lambda: booster(num_leaves=32), "a tree has 32 leaves, the kernel knows up to 31"),
    "several scores": (several, "not summed to one score"),
    "a mean of trees": (
        lambda: booster(boosting="rf", bagging_freq=1, bagging_fraction=0.5, num_leaves=15),
        "not summed to one score",
    ),
}


@pytest.mark.parametrize(("make", "reason"), REFUSED.values(), ids=REFUSED)
def test_what_the_kernel_does_not_know_lightgbm_scores_and_the_log_says_so_once(
    make: Callable[[], lgb.Booster], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = make()
    with pytest.raises(UnknownTreesError, match=reason):
        TreeKernel(model)
    ranker = BoostedRanker(model)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            np.testing.assert_array_equal(ranker.tree_scores(rows(9)), model.predict(rows(9), raw_score=True))
    assert [record.message.count(reason) for record in caplog.records] == [1]


def test_a_kernel_that_scores_otherwise_is_never_handed_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here LightGBM is made to give other scores."""
    model = edited(str)
    right = model.predict
    monkeypatch.setattr(model, "predict", lambda *args, **named: np.nextafter(right(*args, **named), 1e9))
    with pytest.raises(UnknownTreesError, match="score otherwise than in LightGBM"):
        TreeKernel(model)
