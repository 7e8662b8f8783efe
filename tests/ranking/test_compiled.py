"""Compiled trees against LightGBM, to the last bit; what is refused; what is done then. Stage: tests. Absent: speed."""

import logging
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

import lightgbm as lgb
import numpy as np
import pytest

from recsys.errors import ConfigError
from recsys.features.state import StateBatch
from recsys.ranking import compiled
from recsys.ranking.compiled import ZERO, CompilationError, CompiledRanker, PackedTrees, compile_ranker
from recsys.ranking.ranker import BoostedRanker, LogisticRanker
from recsys.ranking.tree_kernel import BLOCK, TreeKernel, kernel_ir, tree_kernel
from recsys.recommender import RequestContext
from tests.planted import (
    DAY,
    planted_catalogue,
    planted_histories,
    planted_rankers,
    planted_recommender,
    planted_split,
    planted_timeline,
    planted_training_table,
)

NOW = planted_split().t2 + 1
F = 6
MODELS: dict[str, dict[str, Any]] = {
    "stumps": {"num_leaves": 2},
    "as many as are trained": {"num_leaves": 15},
    "31 leaves": {"num_leaves": 31},
    "32 leaves, the most of a narrow lane": {"num_leaves": 32},
    "33 leaves": {"num_leaves": 33},
    "64 leaves, the most of a wide lane": {"num_leaves": 64},
    "missing values are not known of": {"num_leaves": 15, "use_missing": False},
    "ranks": {"num_leaves": 15, "objective": "lambdarank"},
}


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
    settings = {
        "objective": "binary",
        "min_data_in_leaf": 3,
        "verbosity": -1,
        "num_threads": 1,
        "seed": 3,
        **parameters,
    }
    return lgb.train(settings, lgb.Dataset(x, y, group=[30] * 100, free_raw_data=False), trees)


def ranker(**parameters: Any) -> BoostedRanker:
    return BoostedRanker(booster(**parameters))


def edited(change: Callable[[str], str]) -> BoostedRanker:
    """LightGBM's text, changed. `tree_sizes` goes: it would not fit any more."""
    lines = booster(num_leaves=15).model_to_string().splitlines()
    return BoostedRanker(lgb.Booster(model_str=change("\n".join(x for x in lines if "tree_sizes" not in x) + "\n")))


def assert_equal(ranker: BoostedRanker) -> None:
    """Bit for bit on ordinary rows and on those at the thresholds."""
    ours = CompiledRanker(ranker)
    trees = PackedTrees.from_text(ranker.booster.model_to_string())
    for x in (rows(1_000, seed=1), trees.telling_rows(F, 2_000)):
        np.testing.assert_array_equal(ours.tree_scores(x), ranker.tree_scores(x))
        np.testing.assert_array_equal(ours.score(x), ranker.score(x))


@pytest.mark.parametrize("parameters", MODELS.values(), ids=MODELS)
def test_scores_are_equal_to_the_last_bit(parameters: dict[str, Any]) -> None:
    plain = ranker(**parameters)
    assert f"num_leaves={parameters['num_leaves']}\n" in plain.booster.model_to_string()
    assert_equal(plain)


def test_the_rows_of_the_check_hold_what_trees_go_wrong_at() -> None:
    trees = PackedTrees.from_text(booster(num_leaves=15).model_to_string())
    x = trees.telling_rows(F, 2_000)
    assert x.shape == (2_000, F)
    assert np.isnan(x).any(axis=0).all()
    assert np.isposinf(x).any(axis=0).all()
    assert np.isneginf(x).any(axis=0).all()
    at = trees.threshold[trees.feature == 0]
    assert set(at.tolist()) <= set(x[:, 0].tolist())
    assert set(np.nextafter(at, np.float32(np.inf)).tolist()) <= set(x[:, 0].tolist())
    np.testing.assert_array_equal(x, trees.telling_rows(F, 2_000))


@pytest.mark.parametrize("threshold", ["0", "-0", "1e-36", "-1e-36", repr(ZERO), repr(-ZERO), "2e-35", "1e300", "0.1"])
@pytest.mark.parametrize("kind", ["0", "2", "8", "10"], ids=["none", "none, left", "missing right", "missing left"])
def test_thresholds_near_zero_and_every_kind_of_missing(threshold: str, kind: str) -> None:
    """All splits of the first tree get this threshold and this kind."""

    def change(text: str) -> str:
        first, second, rest = text.partition("\nTree=1\n")
        lines = first.splitlines()
        for i, line in enumerate(lines):
            name, _, values = line.partition("=")
            if name in ("threshold", "decision_type"):
                value = threshold if name == "threshold" else kind
                lines[i] = f"{name}=" + " ".join([value] * len(values.split()))
        return "\n".join(lines) + second + rest

    assert_equal(edited(change))


def test_a_tree_without_a_split_is_its_value() -> None:
    flat = lgb.train(
        {"objective": "binary", "verbosity": -1}, lgb.Dataset(np.zeros((50, F)), np.arange(50) % 5 == 0), 2
    )
    plain = BoostedRanker(flat)
    assert "num_leaves=1\n" in flat.model_to_string()
    assert_equal(plain)


@pytest.mark.parametrize("n", [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 300])
def test_any_number_of_rows_in_any_order_in_memory(n: int) -> None:
    plain, ours = ranker(num_leaves=15), CompiledRanker(ranker(num_leaves=15))
    x = rows(300)
    expected = plain.tree_scores(x)[:n]
    np.testing.assert_array_equal(ours.tree_scores(x[:n]), expected)
    np.testing.assert_array_equal(ours.tree_scores(np.asfortranarray(x)[:n]), expected)
    assert ours.score(x[:n]).dtype == np.float32


def test_threads_share_one_kernel() -> None:
    plain, ours = ranker(num_leaves=15), CompiledRanker(ranker(num_leaves=15))
    parts = [rows(320, seed) for seed in range(40)]
    with ThreadPoolExecutor(4) as pool:
        for x, scores in zip(parts, pool.map(ours.tree_scores, parts), strict=True):
            np.testing.assert_array_equal(scores, plain.tree_scores(x))
    assert tree_kernel(32) is tree_kernel(32)


def test_rows_of_another_width_are_refused() -> None:
    with pytest.raises(ValueError, match="rows have 5 columns, the trees know 6"):
        CompiledRanker(ranker(num_leaves=15)).score(rows(3)[:, :5])


def test_the_planted_ranker_with_its_logistic_part(tmp_path: Path) -> None:
    plain, logistic = planted_rankers()
    ours = compile_ranker(plain)
    assert isinstance(ours, CompiledRanker)
    assert ours.base is plain.base is not None
    assert ours.booster is plain.booster
    assert ours.feature_names == plain.feature_names
    features = planted_training_table().features
    np.testing.assert_array_equal(ours.score(features), plain.score(features))
    assert compile_ranker(ours) is ours
    assert compile_ranker(logistic) is logistic, "nothing to compile"
    ours.save(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["ranker.txt", "ranker_base.json"], "no machine code"
    np.testing.assert_array_equal(BoostedRanker.load(tmp_path).score(features), ours.score(features))


def test_the_kernel_by_hand() -> None:
    """x0 <= 1 ? (x1 <= 5 ? 10 : 20) : 30, where missing goes left at x0 and right at x1; and a second tree of 0.5."""
    nan = np.nan
    columns = np.zeros((2, BLOCK), dtype=np.float32)
    columns[:, :6] = [[0, 1, 2, nan, 1, nan], [5, 6, 0, 0, nan, nan]]
    got = tree_kernel(32)(
        columns,
        bounds=np.array([[0, 1, 2], [2, 2, 2]]),
        feature=np.array([0, 1]),
        threshold=np.array([1, 5], dtype=np.float32),
        kept=np.array([~0b011, ~0b001], dtype=np.int32),
        leaf=np.array([[10.0, 20.0, 30.0], [0.5, 0.0, 0.0]]),
    )
    assert got[:6].tolist() == [10.5, 20.5, 30.5, 10.5, 20.5, 20.5]
    assert got[6:].tolist() == [10.5] * (BLOCK - 6)


def linear() -> BoostedRanker:
    x = np.nan_to_num(rows(500))
    data = lgb.Dataset(x, x[:, 0] > 0, params={"linear_tree": True})
    return BoostedRanker(lgb.train({"objective": "binary", "linear_tree": True, "verbosity": -1}, data, 2))


def categorical() -> BoostedRanker:
    x = rows(500)
    data = lgb.Dataset(x, x[:, 2] % 2 == 1, categorical_feature=[2])
    return BoostedRanker(lgb.train({"objective": "binary", "verbosity": -1, "min_data_per_group": 5}, data, 2))


def several() -> BoostedRanker:
    x = rows(500)
    settings = {"objective": "multiclass", "num_class": 3, "verbosity": -1}
    return BoostedRanker(lgb.train(settings, lgb.Dataset(x, np.arange(500) % 3), 2))


def garbled(name: str) -> PackedTrees:
    return PackedTrees.from_text(booster(num_leaves=15).model_to_string().replace(f"\n{name}=", f"\n{name}_="))


REFUSED: dict[str, tuple[Callable[[], BoostedRanker], str]] = {
    "linear": (linear, "linear leaves or categorical splits"),
    "categorical": (categorical, "linear leaves or categorical splits"),
    "zero is missing": (lambda: ranker(num_leaves=15, zero_as_missing=True), "take zero for missing"),
    "65 leaves": (lambda: ranker(num_leaves=65), "a tree has 65 leaves; up to 64 can be compiled"),
    "several scores": (several, "summed to one score"),
    "a mean of trees": (
        lambda: ranker(boosting="rf", bagging_freq=1, bagging_fraction=0.5, num_leaves=15),
        "summed to one score",
    ),
}


@pytest.mark.parametrize(("make", "reason"), REFUSED.values(), ids=REFUSED)
def test_what_the_kernel_does_not_know_is_refused_and_stays_with_lightgbm(
    make: Callable[[], BoostedRanker], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    plain = make()
    with pytest.raises(CompilationError, match=reason):
        CompiledRanker(plain)
    with caplog.at_level(logging.WARNING, logger=compiled.__name__):
        assert compile_ranker(plain) is plain
    assert "the ranker is not compiled, LightGBM scores" in caplog.text
    assert reason in caplog.text


@pytest.mark.parametrize("name", ["leaf_value", "threshold", "decision_type", "left_child", "num_cat", "is_linear"])
def test_text_that_lacks_something_is_refused(name: str) -> None:
    with pytest.raises(CompilationError, match=f"cannot be read: KeyError\\('{name}'\\)"):
        garbled(name)


@pytest.mark.parametrize("error", [ImportError("no llvmlite"), RuntimeError("no target"), OSError("no library")])
def test_without_llvm_lightgbm_goes_on(
    error: Exception, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(_: int) -> TreeKernel:
        raise error

    monkeypatch.setattr(compiled, "tree_kernel", fails)
    plain = ranker(num_leaves=15)
    assert compile_ranker(plain) is plain
    assert f"LLVM cannot be used here: {error}" in caplog.text


def test_a_process_without_llvmlite_learns_it_when_it_compiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llvmlite", None)
    with pytest.raises(ImportError):
        tree_kernel.__wrapped__(32)


def test_a_kernel_that_scores_otherwise_is_never_handed_out(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """One where missing values go the other way at half of the nodes."""
    right = tree_kernel(32)

    def wrong(columns: np.ndarray, bounds: np.ndarray, *rest: np.ndarray) -> np.ndarray:
        return right(columns, np.stack([bounds[:, 0], bounds[:, 0], bounds[:, 2]], axis=1), *rest)

    monkeypatch.setattr(compiled, "tree_kernel", lambda _: wrong)
    plain = ranker(num_leaves=15)
    with pytest.raises(CompilationError, match=r"\d+ of 512 rows score otherwise than in LightGBM"):
        CompiledRanker(plain)
    assert compile_ranker(plain) is plain
    assert "score otherwise" in caplog.text


@pytest.mark.parametrize("bits", [32, 64])
def test_nothing_of_the_template_is_left_over(bits: int) -> None:
    text = kernel_ir(bits)
    assert "$" not in text
    assert f"i{bits}" in text


def users() -> StateBatch:
    return planted_histories().states_at(np.append(planted_histories().user_ids, 123_456), NOW)


def test_another_ranker_in_its_place_shares_the_rest_and_leaves_the_first_as_it_was() -> None:
    recommender, states, context = planted_recommender(), users(), RequestContext(planted_timeline().as_of(NOW // DAY))
    before = recommender.recommend(states, context, 12)
    plain = recommender.with_ranker(None)
    assert plain.ranker is None
    assert recommender.ranker is not None
    assert plain.retrievers is recommender.retrievers
    assert plain.unit_vectors is recommender.unit_vectors
    merged = recommender.retrieve(states)
    expected = planted_catalogue().to_ids(merged.item_idx[:, :12])
    np.testing.assert_array_equal(plain.recommend(states, context, 12).item_ids, expected)
    np.testing.assert_array_equal(recommender.recommend(states, context, 12).scores, before.scores)
    one = np.ones(2, np.float32)
    with pytest.raises(ConfigError, match="the ranker was trained on other features"):
        recommender.with_ranker(LogisticRanker(("a", "b"), one, one, one, 0.0))


@pytest.mark.parametrize("diversity", [0.0, 0.5])
def test_compiled_trees_change_nothing_of_an_answer(diversity: float) -> None:
    recommender, states, context = planted_recommender(), users(), RequestContext(planted_timeline().as_of(NOW // DAY))
    assert recommender.ranker is not None
    compiled = recommender.with_ranker(compile_ranker(recommender.ranker))
    assert isinstance(compiled.ranker, CompiledRanker)
    first, second = (r.recommend(states, context, 20, diversity=diversity) for r in (recommender, compiled))
    for name in ("item_ids", "scores", "position", "features", "watch_probability", "like_probability"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name), err_msg=name)
