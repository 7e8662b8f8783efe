"""A small home that went through the real pipeline, `recsys data` and `recsys train`, once a session.

A test may read this home and run commands that only read; whoever changes anything takes a home of their own.
"""

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import prometheus_client  # noqa: F401  before Feast, whose import would make it keep values in files
import pytest

from recsys import command
from recsys.bundle import read_facts
from recsys.data.synthetic import WorldSize, generate_world
from recsys.workspace import DatasetWorkspace, Workspace

if TYPE_CHECKING:
    from pipelines.config import PipelineConfig

WORLD = WorldSize(n_users=120, n_items=150, n_events=6_000)
SMALL_DIM = 16  # of the two-tower model
SILENT_USERS = (500, 501)  # in users.dat, without ratings


@dataclass(frozen=True)
class TrainedHome:
    """root: what --home names. raw: the official files that it was made from, outside of the home."""

    root: Path
    raw: Path
    name: str = "synthetic"

    @property
    def dataset(self) -> DatasetWorkspace:
        return Workspace(self.root).dataset(self.name)

    @property
    def events(self) -> pd.DataFrame:
        return pd.read_parquet(self.dataset.data / "events.parquet")

    @property
    def items(self) -> pd.DataFrame:
        return pd.read_parquet(self.dataset.data / "items.parquet")

    @property
    def users(self) -> pd.DataFrame:
        return pd.read_parquet(self.dataset.data / "users.parquet")

    def run(self, *arguments: str) -> int:
        """One command on this home; its exit code."""
        return command.run([*arguments, "--home", str(self.root)])


def small(config: "PipelineConfig") -> "PipelineConfig":
    """The same recipe with models that train in a second. One thread: other tests may be running beside."""
    return replace(
        config,
        tower=replace(config.tower, dim=SMALL_DIM, layers=1, max_length=32, batch_events=400),
        ranker=replace(config.ranker, max_trees=40, learning_rate=0.1, early_stopping=10, negatives=30, threads=1),
    )


def use_small_settings(patch: pytest.MonkeyPatch) -> None:
    """Small models, few latency requests, and no notice of files that somebody edits while the tests run."""
    from pipelines import pipeline  # here, so that tests of one module need not load everything

    original: Callable[..., PipelineConfig] = pipeline.config_for

    def config_for(*arguments: Any, **options: Any) -> "PipelineConfig":
        epochs = options.pop("epochs", None) or 2
        if options.get("latency_budget_ms", 50.0) == 50.0:  # the default, which a busy machine may exceed
            options["latency_budget_ms"] = 60_000.0
        return small(original(*arguments, epochs=epochs, **options))

    patch.setattr(pipeline, "config_for", config_for)
    patch.setattr("pipelines.evaluation.LATENCY_REQUESTS", 20)
    patch.setattr("pipelines.evaluation.LATENCY_WARM_UP", 2)
    patch.setattr("pipelines.stage_runner.code_fingerprint", lambda _: "this code")
    for name in ("RECSYS_HOME", "RECSYS_DATASET", "MLFLOW_TRACKING_URI"):
        patch.delenv(name, raising=False)


@pytest.fixture
def small_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    use_small_settings(monkeypatch)


def made_once(temporary: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """A folder that the first of the test processes makes, and all of them read."""
    base = temporary.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    place = base / f"once-{name}"
    with (base / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (place / "made").exists():
            make(place)
            (place / "made").touch()
    return place


@pytest.fixture(scope="session")
def world_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in ml-1m's layout, synthetic, with two users who never rated."""

    def make(place: Path) -> None:
        generate_world(place / "world", WORLD, seed=1)
        with (place / "world" / "users.dat").open("a", encoding="latin-1") as users:
            users.writelines(f"{user}::F::25::3::00000\n" for user in SILENT_USERS)

    return made_once(tmp_path_factory, "world", make) / "world"


@pytest.fixture(scope="session")
def trained_home(world_files: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TrainedHome]:
    """This process's copy of the home that was trained for all."""

    def make(place: Path) -> None:
        home = TrainedHome(place / "home", world_files)
        with pytest.MonkeyPatch.context() as patch:
            use_small_settings(patch)
            assert home.run("data", "--data-dir", str(world_files), "--dataset", home.name) == 0
            assert home.run("train") == 0
        (bundle, *_) = sorted(home.dataset.bundles.iterdir())
        assert read_facts(bundle).parameters["tower"]["dim"] == SMALL_DIM, "trained with settings that are not small"

    home = TrainedHome(tmp_path_factory.mktemp("trained") / "home", world_files)
    shutil.copytree(made_once(tmp_path_factory, "trained", make) / "home", home.root)
    yield home
    shutil.rmtree(home.root)
