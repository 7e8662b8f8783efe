"""`recsys models compare`: a drop that hides in overlapping intervals shows, on planted ranks and on a trained home."""

import hashlib
import re
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import typer

from pipelines import pipeline
from pipelines.config import PipelineConfig
from pipelines.versions import print_comparison
from recsys.atomic_io import read_json, write_json
from recsys.bundle import FORMAT
from recsys.errors import RegistryError
from recsys.evaluation.bootstrap import bootstrap_means
from recsys.evaluation.metrics import event_values
from recsys.evaluation.ranks import RANKS_FILE, write_ranks
from recsys.registry import Registry, model_name_for
from tests.conftest import TrainedHome
from tests.pipelines.conftest import run_command
from tests.planted import planted_facts, planted_tables

USERS, EVENTS = 150, 40
KEPT = ("ndcg@10", "hr@10")
GAIN = {"mean": 0.1, "low": 0.05, "high": 0.15}
Register = Callable[..., int]


def planted_ranks(seed: int = 4) -> pd.DataFrame:
    """150 users of 40 events each. Some users are easy and some are hard, which is what makes a mean uncertain."""
    rng = np.random.default_rng(seed)
    ease = rng.beta(0.6, 1.2, USERS)[:, None]
    rank = np.where(rng.random((USERS, EVENTS)) < ease, rng.integers(1, 11, (USERS, EVENTS)), 0)
    user, number = np.indices((USERS, EVENTS))
    columns = {"user_id": user + 1, "timestamp": 1_000 + number, "item_id": number % 7 + 1, "rank": rank}
    return pd.DataFrame({name: values.ravel() for name, values in columns.items()})


def degraded(ranks: pd.DataFrame) -> pd.DataFrame:
    """A tenth of the events lose their item from the list."""
    lost = np.random.default_rng(5).random(len(ranks)) < 0.1
    return ranks.assign(rank=np.where(lost, 0, ranks["rank"]))


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    return Registry(None, tmp_path_factory.mktemp("registry") / "mlflow", model_name_for("demo"))


@pytest.fixture(scope="module")
def register(registry: Registry, tmp_path_factory: pytest.TempPathFactory) -> Register:
    """Register ranks with the metrics that follow from them; without ranks, with metrics alone. The version."""

    def register(ranks: pd.DataFrame, *, keeps: bool = True, fingerprint: str = "a" * 64) -> int:
        folder = tmp_path_factory.mktemp("bundle")
        means = bootstrap_means(ranks["user_id"].to_numpy(), event_values(ranks["rank"].to_numpy(), KEPT))
        metrics = {
            name: {"mean": e.mean, "low": e.low, "high": e.high} for name, e in zip(KEPT, means.estimates, strict=True)
        }
        if keeps:
            write_ranks(ranks, folder / RANKS_FILE)
        files = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}
        facts = replace(
            planted_facts(folder.name, "production"),
            dataset=replace(planted_tables().info, name="demo", fingerprint=fingerprint),
            metrics={**metrics, "retrieval_ndcg@10": 0.01, "ranker_gain_ndcg@10": GAIN, "latency_p99_ms": 1.0},
        )
        write_json(folder / "bundle.json", {"format": FORMAT, **asdict(facts), "files": files})
        return registry.register(folder).version

    return register


@pytest.fixture(scope="module")
def good(register: Register) -> int:
    return register(planted_ranks())


@pytest.fixture(scope="module")
def harmed(register: Register) -> int:
    return register(degraded(planted_ranks()))


def compared(registry: Registry, a: int, b: int, capsys: pytest.CaptureFixture[str], **options: Any) -> list[str]:
    print_comparison(registry, str(a), str(b), **options)
    return capsys.readouterr().out.splitlines()


def by_hand(a: pd.DataFrame, b: pd.DataFrame) -> tuple[float, float]:
    """Mean of b minus a of NDCG@10 with its standard error, by the linearised ratio of sums over users (Cochran 1977,
    Sampling Techniques, ch. 6) in the place of a bootstrap."""
    gains = [np.where((f["rank"] >= 1) & (f["rank"] <= 10), 1 / np.log2(f["rank"] + 1), 0.0) for f in (a, b)]
    difference = gains[1] - gains[0]
    mean = difference.mean()
    per_user = pd.Series(difference - mean).groupby(a["user_id"].to_numpy()).sum()
    return float(mean), float(np.sqrt((per_user**2).sum()) / len(difference))


def test_a_drop_that_overlapping_intervals_hide_is_found(
    registry: Registry, good: int, harmed: int, capsys: pytest.CaptureFixture[str]
) -> None:
    comparison = registry.compare(good, harmed)
    a, b = comparison.metrics["ndcg@10"]
    assert a is not None
    assert b is not None
    assert b.high > a.low, "the premise: the intervals of the two means overlap"  # type: ignore[operator]
    mean, error = by_hand(planted_ranks(), degraded(planted_ranks()))
    found = comparison.differences["ndcg@10"]
    assert found.mean == pytest.approx(mean, abs=1e-12)
    assert b.mean - a.mean == pytest.approx(mean, abs=1e-12)
    assert (found.low, found.high) == (
        pytest.approx(mean - 1.96 * error, abs=0.3 * error),
        pytest.approx(mean + 1.96 * error, abs=0.3 * error),
    )
    assert comparison.differences["hr@10"].high < 0
    assert comparison.worse is True
    assert comparison.verdict == (
        f"Version {harmed} is worse than version {good}: NDCG@10 on demo (synthetic, not MovieLens) changes by"
        f" {mean:+.4f} (95 % interval {found.low:+.4f} to {found.high:+.4f}), paired over 6,000 events of 150 users."
    )
    said = compared(registry, good, harmed, capsys)
    assert said[0].endswith("difference  paired 95 % interval")
    line = next(line for line in said if line.startswith("ndcg@10"))
    assert line.endswith(f"{mean:+.4f}  {found.low:+.4f} to {found.high:+.4f}")
    assert said[-1] == comparison.verdict
    with pytest.raises(typer.Exit) as ended:
        compared(registry, good, harmed, capsys, fail_if_worse=True)
    assert ended.value.exit_code == 1
    said = compared(registry, harmed, good, capsys, fail_if_worse=True)
    assert said[-1].startswith(f"Version {good} is better than version {harmed}: ")


def test_equal_versions_cannot_be_told_apart(
    registry: Registry, register: Register, good: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """The ranks of some events swapped between neighbours: what one user wins, another loses."""
    ranks = planted_ranks()["rank"].to_numpy().reshape(USERS // 2, 2, EVENTS)
    swapped = ranks.copy()
    swapped[:, :, :3] = ranks[:, ::-1, :3]
    version = register(planted_ranks().assign(rank=swapped.ravel()))
    comparison = registry.compare(good, version)
    found = comparison.differences["ndcg@10"]
    assert comparison.worse is False
    assert found.mean == pytest.approx(0.0, abs=1e-12)
    assert found.low < -0.002
    assert found.high > 0.002
    lines = compared(registry, good, version, capsys, fail_if_worse=True)
    assert lines[-1].startswith(f"Versions {good} and {version} cannot be told apart: NDCG@10 on demo")


@pytest.mark.parametrize(
    ("ranks", "options", "problem"),
    [
        (planted_ranks()[1:], {}, "not measured on the same events: 0 only in the first, 1 only in the second"),
        (planted_ranks(), {"keeps": False}, "was registered without the ranks of its test events. Train it again"),
        (planted_ranks(), {"fingerprint": "b" * 64}, "on demo (synthetic, not MovieLens) (data bbbbbbbbbbbb)"),
    ],
    ids=["other events", "no ranks", "other data"],
)
def test_without_a_pairing_it_says_why_and_decides_nothing(
    registry: Registry,
    register: Register,
    good: int,
    ranks: pd.DataFrame,
    options: dict[str, Any],
    problem: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    version = register(ranks, **options)
    comparison = registry.compare(good, version)
    assert (comparison.worse, comparison.differences) == (None, {})
    lines = compared(registry, good, version, capsys)
    assert lines[-1].startswith("No verdict, because the two cannot be compared event by event: ")
    assert problem in lines[-1]
    with pytest.raises(RegistryError, match="--fail-if-worse has nothing to decide by: "):
        compared(registry, good, version, capsys, fail_if_worse=True)


def test_events_of_one_user_decide_nothing(registry: Registry, register: Register) -> None:
    ranks = planted_ranks().query("user_id == 1")
    comparison = registry.compare(register(ranks), register(ranks.assign(rank=0)))
    assert comparison.worse is None
    assert comparison.problem == "The test events are of 1 user(s), too few for an interval."


def test_altered_or_lost_ranks_are_not_compared(
    registry: Registry, register: Register, good: int, tmp_path: Path
) -> None:
    version = register(planted_ranks())
    run_id = registry.resolve(version).run_id
    stored = registry._backend.folder / "artifacts" / registry.model_name / run_id / "artifacts" / "bundle"
    elsewhere = Registry(registry._backend.uri, tmp_path / "reader", registry.model_name)
    pd.testing.assert_frame_equal(elsewhere.ranks(version), registry.ranks(version))
    write_ranks(degraded(planted_ranks()), stored / RANKS_FILE)
    with pytest.raises(RegistryError, match=f"The stored ranks of version {version} of recsys-demo were altered"):
        registry.ranks(version)
    (stored / RANKS_FILE).unlink()
    with pytest.raises(RegistryError, match=f"Could not fetch the ranks of version {version}"):
        registry.ranks(version)
    comparison = registry.compare(good, version)
    assert "Could not fetch the ranks" in str(comparison.problem)
    assert comparison.worse is None


def test_a_harmed_ranker_is_refused_and_fails_the_check(changed_home: TrainedHome) -> None:
    """A second version whose ranker has one tree and nothing to start from."""
    made_small = pipeline.config_for

    def harmed(*arguments: Any, **options: Any) -> PipelineConfig:
        config = made_small(*arguments, **options)
        return replace(config, ranker=replace(config.ranker, max_trees=1, start_from_logistic=False))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "config_for", harmed)
        assert changed_home.run("train") == 0
    at = ("--home", changed_home.root)
    code, out, _ = run_command("models", "compare", "1", "2", "--fail-if-worse", *at)
    assert code == 1, out
    assert re.fullmatch(
        r"Version 2 is worse than version 1: NDCG@10 on .* changes by -0\.\d{4} \(95 % interval -0\.\d{4} to"
        r" -0\.\d{4}\), paired over \d+ events of \d+ users\.",
        out.splitlines()[-1],
    )
    assert "setting ranker.max_trees: 40 -> 1" in out
    assert run_command("models", "compare", "1", "2", *at)[0] == 0
    assert run_command("models", "compare", "2", "1", "--fail-if-worse", *at)[0] == 0
    assert re.search(r"NDCG@10 of version 2 is .* below zero\.", run_command("models", "list", *at)[1])
    assert read_json(changed_home.dataset.work / "registered.json") == {"version": 2, "champion": False}
