"""A data set opened with its settings: what every command of the offline track starts from.

It is a list of what there is, for commands; a stage gets the parts that it reads as arguments (`stages`).
"""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from pipelines import training_set
from pipelines.config import PipelineConfig, config_for, read_tuned, tuned_path, with_tuned
from pipelines.stage_runner import Report, progress, say
from pipelines.training_set import TrainingSet
from recsys.events import EventTable
from recsys.feature_store import FeatureStore
from recsys.registry import Registry, model_name_for
from recsys.settings import Settings
from recsys.workspace import DatasetWorkspace


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
    tuned: bool = True,
    later_ratings: Literal["taken", "new", "none"] = "taken",
    **chosen: Any,
) -> Pipeline:
    """The pipeline of a data set that has been prepared: the named one, or the one used last.

    tuned          False leaves the tuned settings of a data set aside; a synthetic world has none, whatever its name
    later_ratings  of the event table: those that the last training took, every one received so far, or none
    chosen         keyword arguments of `config_for`
    Raises ConfigError for a bad file of tuned settings.
    """
    home = settings.paths().choose(dataset or settings.dataset)
    if later_ratings == "new":
        with contextlib.closing(settings.event_table(home)) as table:
            data = training_set.take(home, table)
    else:
        data = training_set.load(home) if later_ratings == "taken" else training_set.data_set_alone(home)
    config = config_for(data.tables.events, feature_store=settings.feature_store(home).address, **chosen)
    path = tuned_path(data.source.name)
    if tuned and not data.source.synthetic and path.exists():
        # A name alone is not enough: a data set may be published anew under its old name.
        searched = read_tuned(path)
        if searched.fingerprint == data.source.fingerprint:
            config = with_tuned(config, searched)
        else:
            say(f"settings: {path} was searched on other data than this {path.stem}; the rules hold (docs/tuning.md)")
    return Pipeline(home, settings, config, data)
