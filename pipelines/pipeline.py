"""A data set opened with its settings: what every command of the offline track starts from.

It is a list of what there is, for commands; a stage gets the parts that it reads as arguments (`stages`).
"""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import typer

from pipelines import training_set
from pipelines.config import PipelineConfig, config_for, read_tuned, tuned_path, with_tuned
from pipelines.stage_runner import Report, progress
from pipelines.training_set import TrainingSet
from recsys.events import EventTable
from recsys.feature_store import FeatureStore
from recsys.registry import Registry, model_name_for
from recsys.retrieval.index import Kind
from recsys.settings import Settings
from recsys.workspace import DatasetWorkspace


def say(line: str) -> None:
    typer.echo(line, err=True)


@dataclass(frozen=True)
class Pipeline:
    """home: the data set's place. data: what models learn from. report: prints a line for the person who watches."""

    home: DatasetWorkspace
    settings: Settings
    config: PipelineConfig
    data: TrainingSet
    report: Report = say

    @cached_property
    def store(self) -> FeatureStore:
        return FeatureStore(self.settings.feature_store(self.home))

    @cached_property
    def event_table(self) -> EventTable:
        return self.settings.event_table(self.home)

    @cached_property
    def registry(self) -> Registry:
        uri, mlflow = self.settings.mlflow_tracking_uri, self.settings.paths().mlflow
        return Registry(uri, mlflow, model_name_for(self.home.name))

    def close(self) -> None:
        """Close the connections that were opened."""
        for name in ("store", "event_table"):
            if name in self.__dict__:
                getattr(self, name).close()

    def progress(self, what: str) -> Callable[[int, int], None]:
        return progress(self.report, what)


def open_pipeline(
    dataset: str | None,
    settings: Settings,
    *,
    device: str = "cpu",
    epochs: int | None = None,
    index: Kind = "auto",
    budget_ms: float = 50.0,
    seed: int = 7,
    refit: bool = True,
    tuned: bool = True,
    later_ratings: Literal["taken", "new", "none"] = "taken",
) -> Pipeline:
    """The pipeline of a data set that has been prepared: the named one, or the one used last.

    tuned          False leaves the tuned settings of a data set aside; a synthetic world has none, whatever its name
    later_ratings  of the event table: those that the last training took, every one received so far, or none
    Raises ConfigError for a bad file of tuned settings.
    """
    home = settings.paths().choose(dataset or settings.dataset)
    if later_ratings == "new":
        with contextlib.closing(settings.event_table(home)) as table:
            data = training_set.take(home, table)
    else:
        data = training_set.load(home) if later_ratings == "taken" else training_set.data_set_alone(home)
    config = config_for(
        data.tables.events,
        device=device,
        epochs=epochs,
        index=index,
        seed=seed,
        refit=refit,
        latency_budget_ms=budget_ms,
        feature_store=settings.feature_store(home).address,
    )
    return Pipeline(home, settings, _tuned(config, data) if tuned else config, data)


def _tuned(config: PipelineConfig, data: TrainingSet) -> PipelineConfig:
    """The rules with the tuned settings of these very data over them. A name alone is not enough: a data set may be
    published anew under its old name. Later ratings do not make it another one."""
    info = data.tables.info
    path = tuned_path(info.name)
    if info.synthetic or not path.exists():
        return config
    found = read_tuned(path)
    if found.fingerprint == data.source.fingerprint:
        return with_tuned(config, found)
    say(f"settings: {path} was searched on other data than this {info.name}; the rules hold (docs/tuning.md)")
    return config
